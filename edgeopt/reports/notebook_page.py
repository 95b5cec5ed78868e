"""An executed notebook -> a page that stands alone: contents, code behind a click, no network."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import nbformat
from bs4 import BeautifulSoup, Tag
from markupsafe import Markup
from nbconvert import HTMLExporter
from nbconvert.preprocessors import CoalesceStreamsPreprocessor
from traitlets.config import Config

from edgeopt.reports.page_parts import figure_numbers, write_page
from edgeopt.study import ASSETS, RunFolder

# No scripts and no widgets: both would be loaded from a network.
DISPLAYED = ["text/html", "image/svg+xml", "image/png", "image/jpeg", "text/markdown", "text/plain"]
NUMBER = re.compile(r"[-+]?(\d[\d,]*\.?\d*(e[-+]?\d+)?|inf)%?|NaN|None|", re.IGNORECASE)
LONG_TEXT = 40


def write_notebook_page(
    run: RunFolder, name: str, *, others: Mapping[str, Mapping[str, Any]]
) -> Path:
    """Write ``<name>.html`` beside the executed ``<name>.ipynb``.

    ``others`` are the states of all notebooks of the run in order, for the links to the next and
    the one before.
    """
    body = notebook_body(run.path(f"{name}.ipynb"))
    names = list(others)
    place = names.index(name)
    return write_page(
        run.path(f"{name}.html"),
        "notebook.html.j2",
        run=run.name,
        state=others[name],
        body=Markup(str(body)),
        contents=headings(body),
        previous=[(n, others[n]) for n in names[max(place - 1, 0) : place]],
        following=[(n, others[n]) for n in names[place + 1 : place + 2]],
    )


def notebook_body(executed: Path) -> BeautifulSoup:
    """Render the notebook's cells as HTML, its figures with their numbers."""
    exporter = HTMLExporter(
        template_name="notebook_body",
        extra_template_basedirs=[str(ASSETS)],
        embed_images=True,
        preprocessors=[CoalesceStreamsPreprocessor],
        config=Config({"NbConvertBase": {"display_data_priority": DISPLAYED}}),
    )
    pictures = sorted((executed.parent / "figures").glob("*.png"))
    numbers = {picture.stem: figure_numbers(picture) for picture in pictures}
    notebook = nbformat.read(executed, as_version=4)
    html, _ = exporter.from_notebook_node(notebook, resources={"numbers": numbers})
    body = BeautifulSoup(html, "html.parser")
    for link in body.select("a.anchor-link"):
        link.decompose()
    for block in body.select(".output-html pre[style]"):
        del block["style"]  # a scroll area of its own, which no keyboard reaches
    for table in body.select("table.dataframe"):
        tidy_table(table)
    return body


def tidy_table(table: Tag) -> None:
    """Make a data frame's table read well: one row of headings, no counter, numbers aligned.

    A table with cells that span several rows or columns keeps its form.
    """
    for style in table.parent.find_all("style"):
        style.decompose()
    del table["border"]
    rows = [line.find_all(["th", "td"]) for line in table.find_all("tr")]
    if len({len(cells) for cells in rows}) != 1:
        return
    if len(table.thead.find_all("tr")) == 2:
        _join_headings(*rows[:2])
        del rows[1]
    head, *body = rows
    if not head[0].get_text() and all(cells[0].get_text().isdigit() for cells in body):
        for cells in rows:
            cells.pop(0).decompose()
    for cells in body:
        cells[0].name, cells[0]["scope"] = "th", "row"
    for column in zip(head, *body, strict=True):
        _align(*column)


def _join_headings(names: list[Tag], index: list[Tag]) -> None:
    """Put the index's name, in a row of its own, where the first row names the columns' axis."""
    for cell, below in zip(names, index, strict=True):
        if below.get_text():
            cell.string = below.get_text()
    index[0].parent.decompose()


def _align(head: Tag, *cells: Tag) -> None:
    """Mark a column as numbers or as long words; its heading goes with it."""
    head["scope"] = "col"
    texts = [cell.get_text(strip=True) for cell in cells]
    if all(map(NUMBER.fullmatch, texts)):
        for cell in (head, *cells):
            cell["class"] = "number"
    elif max(map(len, texts)) > LONG_TEXT:
        for cell in cells:
            cell["class"] = "words"


def headings(body: BeautifulSoup) -> list[dict[str, Any]]:
    """Second and third level headings of a page: ``level, id, text``, in order."""
    found = body.find_all(["h2", "h3"], id=True)
    return [
        {"level": int(tag.name[1]), "id": tag["id"], "text": tag.get_text(strip=True)}
        for tag in found
    ]
