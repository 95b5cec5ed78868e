"""README's results: the decision card, the frontier and its table, from the files of a run."""

import logging
from collections.abc import Mapping
from io import BytesIO
from pathlib import Path
from typing import Any

import pandas as pd
from PIL import Image

from edgeopt.reports.pages.browser import open_browser
from edgeopt.reports.pages.card import SIZES
from edgeopt.reports.records.results import Results, finished, read_results
from edgeopt.reports.records.stamps import INDEX
from edgeopt.schema import COLUMNS, quantity
from edgeopt.study import RunFolder
from edgeopt.study.layout import FRONTIER_FIGURE, FRONTIER_TABLE
from edgeopt.system import write_atomically

BEGIN, END = "<!-- results -->", "<!-- /results -->"
CARD, FRONTIER = "docs/decision-card.png", "docs/frontier.png"
NAMED = {"baseline": "{} (baseline)", "pick": "**{}** (pick)"}
SHOWN = ("accuracy", "test_accuracy", "latency_p50_ms", "latency_p95_ms", *SIZES)
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
    results = read_results(run)
    if results.missing:
        raise FileNotFoundError(f"run {run.name}: {' '.join(results.missing)}")
    table = results_table(results)
    frontier = run.require(FRONTIER_FIGURE)
    (root / "docs").mkdir(exist_ok=True)
    with Image.open(frontier) as figure:
        words = figure.info["Description"]
        on_white(figure).save(root / FRONTIER, optimize=True)
    parts = [
        f"## What the {run.name} run found",
        *card_picture(run.require(INDEX), results.decision["reason"], path=root / CARD),
        picture(words, FRONTIER),
        table.to_markdown(index=False, colalign=("left", *["right"] * (table.shape[1] - 1))),
        origin(results),
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


def card_picture(index: Path, reason: str, *, path: Path) -> list[str]:
    """Save and name the picture of the decision card; nothing where no browser is installed.

    It is taken at twice the size, so that its text is sharp.
    """
    view = {"width": 1280, "height": 900}
    try:
        with open_browser() as browser:
            tab = browser.new_page(viewport=view, device_scale_factor=2, color_scheme="light")
            tab.goto(index.resolve().as_uri())
            shot = Image.open(BytesIO(tab.locator(".card-of-pick").screenshot()))
    except FileNotFoundError as error:
        log.warning("README gets no picture of the decision card: %s", error)
        return []
    # Text and lines on one ground: 64 colours show no difference and take a third of the bytes.
    shot.convert("RGB").quantize(64).save(path, optimize=True)
    return [picture(f"Decision card. {reason}", CARD)]


def on_white(figure: Image.Image) -> Image.Image:
    """Put a figure with a transparent ground on white, which any page shows alike."""
    ground = Image.new("RGBA", figure.size, "white")
    return Image.alpha_composite(ground, figure.convert("RGBA")).convert("RGB")


def picture(alt: str, path: str) -> str:
    """Write a picture in Markdown."""
    words = " ".join(alt.split()).replace("[", "\\[").replace("]", "\\]")
    return f"![{words}]({path})"


def results_table(results: Results) -> pd.DataFrame:
    """Frontier and baseline, fastest first: the candidate and the numbers of ``SHOWN`` as text."""
    frontier = results.run.read_table(FRONTIER_TABLE)
    rows = results.rows
    names = {rows[role]["candidate"]: NAMED[role] for role in NAMED if role in rows}
    kept = results.sweep[results.sweep["candidate"].isin({*frontier["candidate"], *names})]
    shown = kept.sort_values("latency_p50_ms").to_dict("records")
    return pd.DataFrame([_table_row(row, names.get(row["candidate"], "{}")) for row in shown])


def _table_row(row: Mapping[str, Any], name: str) -> dict[str, str]:
    numbers = {COLUMNS[key].title: quantity(key, row.get(key)) for key in SHOWN}
    low, high = (quantity("accuracy", row.get(f"accuracy_{side}")) for side in ("low", "high"))
    numbers[COLUMNS["accuracy"].title] += f" ({low} to {high})"
    return {COLUMNS["candidate"].title: name.format(row["candidate"]), **numbers}


def origin(results: Results) -> str:
    """Say which run the results are of, on what, and how to make them again."""
    facts, run = results.manifest, results.run
    threads = f"{facts['threads']} thread{'' if facts['threads'] == 1 else 's'}"
    scaled = facts["parameters"].get("latency_multiplier", 1) != 1
    kind = "estimated from what was measured" if scaled else "measured"
    return (
        "The frontier of accuracy against median latency within the memory budget, and the "
        "baseline. Accuracy on validation images with its 95% interval; test images scored once. "
        f"Run `{run.name}` on {facts['data']['name']}, {kind} on {facts['host']['cpu']} with "
        f"{threads}, finished {finished(facts['notebooks'])}; `make readme` writes this part."
    )
