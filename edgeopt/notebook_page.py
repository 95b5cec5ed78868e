"""An executed notebook -> a page that stands alone: contents, code behind a click, no network."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import nbformat
from bs4 import BeautifulSoup
from markupsafe import Markup
from nbconvert import HTMLExporter
from traitlets.config import Config

from edgeopt.page_parts import figure_numbers, write_page
from edgeopt.rundir import ASSETS, RunFolder

# No scripts and no widgets: both would be loaded from a network.
DISPLAYED = ["text/html", "image/svg+xml", "image/png", "image/jpeg", "text/markdown", "text/plain"]


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
        body=Markup(body),
        contents=headings(body),
        previous=[(n, others[n]) for n in names[max(place - 1, 0) : place]],
        following=[(n, others[n]) for n in names[place + 1 : place + 2]],
    )


def notebook_body(executed: Path) -> str:
    """Render the notebook's cells as HTML, its figures with their numbers."""
    exporter = HTMLExporter(
        template_name="notebook_body",
        extra_template_basedirs=[str(ASSETS)],
        embed_images=True,
        config=Config({"NbConvertBase": {"display_data_priority": DISPLAYED}}),
    )
    pictures = sorted((executed.parent / "figures").glob("*.png"))
    numbers = {picture.stem: figure_numbers(picture) for picture in pictures}
    notebook = nbformat.read(executed, as_version=4)
    body, _ = exporter.from_notebook_node(notebook, resources={"numbers": numbers})
    return body


def headings(body: str) -> list[dict[str, Any]]:
    """Second and third level headings of a page: ``level, id, text``, in order."""
    page = BeautifulSoup(body, "html.parser")
    for link in page.select("a.anchor-link"):
        link.decompose()
    found = page.find_all(["h2", "h3"], id=True)
    return [
        {"level": int(tag.name[1]), "id": tag["id"], "text": tag.get_text(strip=True)}
        for tag in found
    ]
