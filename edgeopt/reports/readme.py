"""README's results: the decision card, the frontier and its table, from the files of a run."""

import logging
import shutil
from collections.abc import Mapping
from io import BytesIO
from pathlib import Path
from typing import Any

import pandas as pd
from PIL import Image

from edgeopt.reports.browser import open_browser
from edgeopt.reports.explorer import read_sweep
from edgeopt.reports.manifest import read_manifest
from edgeopt.reports.page_parts import as_text, describe, with_unit
from edgeopt.reports.pages import finished, read_summary
from edgeopt.reports.stamps import INDEX
from edgeopt.schema import COLUMNS
from edgeopt.study import RunFolder
from edgeopt.study.layout import FRONTIER_FIGURE, FRONTIER_TABLE
from edgeopt.system import write_atomically

BEGIN, END = "<!-- results -->", "<!-- /results -->"
CARD, FRONTIER = "docs/decision-card.png", "docs/frontier.png"
SHOWN = (
    "accuracy",
    "test_accuracy",
    "latency_p50_ms",
    "latency_p95_ms",
    "memory_mb",
    "artifact_bytes",
)
log = logging.getLogger(__name__)


def write_readme(run: RunFolder, *, root: Path) -> Path:
    """Write a run's results between the marks of ``README.md``, and the pictures into ``docs/``.

    Raises
    ------
    FileNotFoundError
        Naming what the run has not made yet.
    ValueError
        When a file of the run cannot be read, or README has no marks.
    """
    readme = root / "README.md"
    before, after = outside(readme.read_text(encoding="utf-8"))
    facts = read_manifest(run)
    summary, reason = read_summary(run)
    if summary is None:
        raise FileNotFoundError(f"run {run.name}: {reason}")
    table = results_table(run, summary)
    frontier = run.require(FRONTIER_FIGURE)
    (root / "docs").mkdir(exist_ok=True)
    shutil.copyfile(frontier, root / FRONTIER)
    parts = [
        f"## What the {run.name} run found",
        *card_picture(run.require(INDEX), summary, root=root),
        picture(figure_words(frontier), FRONTIER),
        markdown_table(table),
        origin(run, facts),
    ]
    text = "\n\n".join([before + BEGIN, *parts, END + after])
    return write_atomically(readme, text.encode())


def outside(text: str) -> tuple[str, str]:
    """Split off what stands before and after the marks."""
    before, first, rest = text.partition(BEGIN)
    _, second, after = rest.partition(END)
    if not (first and second):
        raise ValueError(f"README.md has no place for results: put {BEGIN} and {END} in it")
    return before, after


def card_picture(index: Path, summary: Mapping[str, Any], *, root: Path) -> list[str]:
    """Save and name the picture of the decision card; nothing where no browser is installed."""
    try:
        photograph(index, ".card", to=root / CARD)
    except FileNotFoundError as error:
        log.warning("README gets no picture of the decision card: %s", error)
        return []
    return [picture(f"Decision card. {summary['reason']}", CARD)]


def photograph(page: Path, selector: str, *, to: Path, width: int = 960) -> None:
    """Save a picture of one element of a page, at twice the size so that its text is sharp."""
    with open_browser() as browser:
        view = {"width": width, "height": 900}
        tab = browser.new_page(viewport=view, device_scale_factor=2, color_scheme="light")
        tab.goto(page.resolve().as_uri())
        shot = Image.open(BytesIO(tab.locator(selector).screenshot()))
    # Text and lines on one ground: 64 colours show no difference and take a third of the bytes.
    shot.convert("RGB").quantize(64).save(to, optimize=True)


def figure_words(path: Path) -> str:
    """Alt text that a figure carries."""
    with Image.open(path) as figure:
        return figure.info["Description"]


def picture(alt: str, path: str) -> str:
    """Write a picture in Markdown."""
    words = " ".join(alt.split()).replace("[", "\\[").replace("]", "\\]")
    return f"![{words}]({path})"


def results_table(run: RunFolder, summary: Mapping[str, Any]) -> pd.DataFrame:
    """Frontier and baseline, fastest first: ``Variant`` and the numbers of ``SHOWN`` as text."""
    sweep, reason = read_sweep(run)
    if sweep is None:
        raise FileNotFoundError(f"run {run.name}: {reason}")
    frontier = run.read_table(FRONTIER_TABLE)
    roles = {
        (summary[role] or {}).get("candidate"): word
        for role, word in (("baseline", "baseline"), ("pick", "pick"))
    }
    kept = sweep[sweep["candidate"].isin({*frontier["candidate"], *roles})]
    rows = kept.sort_values("latency_p50_ms").to_dict("records")
    return pd.DataFrame([_table_row(row, role=roles.get(row["candidate"], "")) for row in rows])


def _table_row(row: Mapping[str, Any], *, role: str) -> dict[str, str]:
    name = f"**{describe(row)}** ({role})" if role == "pick" else describe(row)
    numbers = {COLUMNS[key].title: with_unit(row.get(key), key) for key in SHOWN}
    low, high = (as_text(row.get(f"accuracy_{side}"), "accuracy") for side in ("low", "high"))
    numbers[COLUMNS["accuracy"].title] += f" ({low} to {high})"
    return {"Variant": f"{name} ({role})" if role == "baseline" else name, **numbers}


def markdown_table(df: pd.DataFrame) -> str:
    """Write a table of texts in Markdown, its first column to the left and the others right."""
    rows = [list(df), ["---", *["---:"] * (df.shape[1] - 1)], *df.to_numpy().tolist()]
    return "\n".join("| " + " | ".join(c.replace("|", "\\|") for c in row) + " |" for row in rows)


def origin(run: RunFolder, facts: Mapping[str, Any]) -> str:
    """Say which run the results are of, on what, and how to make them again."""
    threads = f"{facts['threads']} thread{'' if facts['threads'] == 1 else 's'}"
    return (
        "The frontier of accuracy against median latency within the memory budget, and the "
        "baseline. Accuracy on validation images with its 95% interval; test images scored once. "
        f"Run `{run.name}` on {facts['data']['name']}, measured on {facts['host']['cpu']} with "
        f"{threads}, finished {finished(facts['notebooks'])}; `make readme` writes this part."
    )
