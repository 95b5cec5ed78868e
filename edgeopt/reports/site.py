"""Executed notebooks -> a site of static files: Sphinx, MyST-NB and the book theme."""

import fcntl
import logging
import re
import shutil
import subprocess
import sys
from collections.abc import Iterable, Mapping
from html import escape
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from urllib.parse import quote

import nbformat
import pandas as pd
from IPython.display import HTML
from PIL import Image

from edgeopt.reports.pages.card import PAGES
from edgeopt.reports.records.manifest import MANIFEST, read_manifest
from edgeopt.reports.records.results import file_list, finished, read_summary
from edgeopt.reports.records.stamps import INDEX, read_record
from edgeopt.schema import DASH, quantity
from edgeopt.study import FIGURE_DPI, RunFolder, read_table, table_html
from edgeopt.system import write_atomically

SHOWN_LINES = 5
PHOTOS = ("samples", "gallery")
INJECTED = "injected-parameters"
ALL_RUNS = '<a href="../index.html">All runs</a>'
NBSP = "\N{NO-BREAK SPACE}"
log = logging.getLogger(__name__)


def build_run_site(run: RunFolder, names: Iterable[str], *, title: str) -> Path:
    """Build the site of a run from its executed notebooks, the first of which is the front page.

    Those that were not executed are left out. Returns ``index.html``.
    """
    front, *chapters = [name for name in names if run.path(f"{name}.ipynb").is_file()]
    pages = {"index": published(run, front), **{name: published(run, name) for name in chapters}}
    contents = "\n".join(["```{toctree}", ":hidden:", "", *chapters, "```"])
    pages["index"].cells.append(nbformat.v4.new_markdown_cell(contents))
    sources = {f"{name}.ipynb": nbformat.writes(page) for name, page in pages.items()}
    build(sources, run.root, title=title)
    return run.path(INDEX)


def build(sources: Mapping[str, str], out: Path, *, title: str, footer: str = ALL_RUNS) -> None:
    """Build a site from the texts of its pages; ``out`` gets it at once, the front page last.

    What Sphinx only warns of is logged. Raises ``OSError`` where it could not write, and else
    ``RuntimeError`` with all that it said.
    """
    with TemporaryDirectory(prefix="edgeopt-site-") as scratch:
        source, made = Path(scratch) / "source", Path(scratch) / "site"
        shutil.copytree(PAGES / "site", source)
        for name, text in sources.items():
            (source / name).write_text(text, encoding="utf-8")
        options = ["-q", "-b", "html", "-d", f"{scratch}/trees", "-D", f"html_title={title}"]
        options += ["-D", f"html_theme_options.extra_footer={footer}", str(source), str(made)]
        command = [sys.executable, "-m", "sphinx", *options]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            if unwritten := re.findall(r"OSError: (\[Errno \d+\] .+)", done.stderr):
                raise OSError(f"the site of {out} cannot be built: {unwritten[-1]}")
            raise RuntimeError(f"Sphinx could not build the site of {out}: {done.stderr.strip()}")
        for warning in done.stderr.splitlines():
            log.warning("site of %s: %s", out, warning)
        for name in ("_static", "_images"):
            shutil.rmtree(out / name, ignore_errors=True)
        left = shutil.ignore_patterns("*.map", ".buildinfo", "_sources", INDEX)
        shutil.copytree(made, out, dirs_exist_ok=True, ignore=left)
        write_atomically(out / INDEX, (made / INDEX).read_bytes())


def published(run: RunFolder, name: str) -> nbformat.NotebookNode:
    """Make an executed notebook ready for its page.

    Long code and parameters are folded, figures become the files in the run's folder with caption
    and numbers, and what the notebook wrote is linked at its end.
    """
    notebook = nbformat.read(run.path(f"{name}.ipynb"), as_version=4)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    declared = set(code[0].metadata.get("tags", []))
    overridden = any(INJECTED in cell.metadata.get("tags", []) for cell in code)
    for cell in code:
        tags = cell.metadata.get("tags", [])
        if "parameters" in tags and overridden:  # papermill's own follow
            cell.metadata["tags"] = ["remove-cell"]
        elif INJECTED in tags:
            cell.metadata["tags"] = [*(declared & {"remove-input"} or {"hide-input"})]
        elif "parameters" in tags or cell.source.count("\n") >= SHOWN_LINES:
            cell.metadata["tags"] = [*tags, "hide-input"]
        cell.outputs = [output for output in cell.outputs if output.get("name") != "stderr"]
        for output in cell.outputs:
            words = output.get("metadata", {}).get("image/png", {})
            if "figure" in words:
                output.data = {"text/html": figure_html(run, words["figure"], words)}
                output.metadata = {}
    record = read_record(run.path(f"{name}.ipynb"))
    if record and record.outputs:
        written = file_list("Files of this chapter", [f"{name}.ipynb", *sorted(record.outputs)])
        notebook.cells.append(nbformat.v4.new_markdown_cell(written))
    return notebook


def figure_html(run: RunFolder, stem: str, words: Mapping[str, Any]) -> str:
    """Write a figure with its caption, its numbers, and a name that a link can point to."""
    kind = "photo dark-light" if stem.startswith(PHOTOS) else "dark-light"
    numbers, table = run.path(f"figures/{stem}.csv"), ""
    if numbers.is_file():
        link = f'<p><a href="figures/{stem}.csv" download>{stem}.csv</a></p>'
        inside = link + table_html(read_table(numbers))
        table = f"<details><summary>The numbers of this figure</summary>{inside}</details>"
    alt = escape(words["alt"])
    return (
        f'<figure class="result" id="figure-{stem}"><div tabindex="0"><img class="{kind}" '
        f'src="figures/{stem}.png" width="{words["width"]}" alt="{alt}"></div>'
        f'<figcaption>{alt} <a href="#figure-{stem}" aria-label="Link to this figure">#</a>'
        f"</figcaption>{table}</figure>"
    )


def saved_figure(run: RunFolder, stem: str) -> HTML:
    """Show a figure that a chapter has saved; nothing where there is none."""
    path = run.path(f"figures/{stem}.png")
    if not path.is_file():
        return HTML("")
    with Image.open(path) as picture:
        words = {"alt": picture.info["Description"], "width": picture.width * 96 // FIGURE_DPI}
    return HTML(figure_html(run, stem, words))


def build_runs_index(folder: Path) -> Path:
    """Build the index of all runs that have a manifest, the latest first; one process at a time."""
    with (folder / ".index.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        return _runs_index(folder)


def _runs_index(folder: Path) -> Path:
    rows, problems = [], []
    for path in folder.glob(f"*/{MANIFEST}"):
        try:
            rows.append(_run_row(RunFolder(path.parent)))
        except (OSError, ValueError) as error:  # another process may be making it again
            problems.append(f"Run {path.parent.name} is not listed: {error}")
    listed = "No run has been published yet: `make report` makes the first."
    if rows:
        table = pd.DataFrame(rows).sort_values("Finished", ascending=False)
        listed = table.to_markdown(index=False, disable_numparse=True)
    compared = [path.parent.name for path in sorted(folder.glob("compare-*/index.html"))]
    links = [f'- <a href="{name}/index.html">{name}</a>' for name in compared]
    parts = ["# All runs", listed, *problems, "## Comparisons", "\n".join(links)]
    parts.append("Compare two runs, candidate by candidate: `make compare RUN=first WITH=second`.")
    build({"index.md": "\n\n".join(parts)}, folder, title="edgeopt: all runs", footer="")
    return folder / INDEX


def _run_row(run: RunFolder) -> dict[str, str]:
    manifest = read_manifest(run)
    summary, _ = read_summary(run)
    pick = (summary or {}).get("pick") or {}
    states = {state["status"] for state in manifest["notebooks"].values()}
    complete = "complete" if states == {"done"} else "partial"
    row = {
        "State": "failed" if "failed" in states else complete,
        "Recommended": pick.get("candidate", "nothing fits" if summary else "no decision"),
        "Validation accuracy": quantity("accuracy", pick.get("accuracy")),
        "Latency, median": quantity("latency_p50_ms", pick.get("latency_p50_ms")).replace(
            " ", NBSP
        ),
        "Data": manifest["data"].get("name", DASH),
        "Seeds": str(len(manifest["parameters"].get("seeds", []))),
        "Host": manifest["host"]["cpu"],
        "Commit": manifest["git"]["commit"][:7],
        "Finished": finished(manifest["notebooks"]),
    }
    link = f'<a href="{quote(run.name)}/index.html">{escape(run.name)}</a>'
    return {"Run": link} | {heading: escape(cell) for heading, cell in row.items()}
