"""Sphinx settings of the documentation; what the code knows is written from it, not typed again."""

import json
from importlib import import_module
from pathlib import Path
from typing import Any

from edgeopt import __version__
from edgeopt.config import ExperimentConfig
from edgeopt.schema import COLUMNS

project, release = "edgeopt", __version__
extensions = ["myst_nb", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
nb_execution_mode = "off"
myst_heading_anchors = 3
suppress_warnings = ["myst.header"]  # README begins with what a reader types, not with a chapter
html_theme = "sphinx_book_theme"
html_title = "edgeopt"
html_context = {"default_mode": "auto"}
html_theme_options = {
    "home_page_in_toc": True,
    "navbar_persistent": [],
    "use_download_button": False,
}
napoleon_google_docstring = False
autodoc_typehints = "description"
autodoc_preserve_defaults = True
exclude_patterns = ["_build"]

HERE = Path(__file__).parent
ROOMS = (
    "data",
    "model",
    "pruning",
    "quantization",
    "runtimes",
    "metrics",
    "hardware",
    "devices",
    "decision",
    "experiments",
    "search",
    "study",
    "plots",
    "reports",
    "system",
)


def write(name: str, *parts: str) -> None:
    """Write a generated page, only when it changes, so that Sphinx reads it once."""
    path, text = HERE / "generated" / f"{name}.md", "\n".join(parts) + "\n"
    path.parent.mkdir(exist_ok=True)
    if not path.is_file() or path.read_text() != text:
        path.write_text(text)


def table(*rows: tuple[str, ...]) -> str:
    """Rows of cells, the first of them the headings, as a table in Markdown."""
    head, *body = (f"| {' | '.join(cell.replace('|', '/') for cell in row)} |" for row in rows)
    return "\n".join([head, "|" + "---|" * len(rows[0]), *body])


LIMITS = {
    "minimum": "from {}",
    "exclusiveMinimum": "above {}",
    "maximum": "up to {}",
    "exclusiveMaximum": "below {}",
    "minLength": "not empty",
}
REFERENCE = "a mapping, as in `params/search.yaml`"


def allowed(schema: dict[str, Any]) -> str:
    """Say what a JSON schema allows."""
    if "anyOf" in schema:
        return " or ".join(dict.fromkeys(map(allowed, schema["anyOf"])))
    if "enum" in schema or "const" in schema:
        return ", ".join(f"`{value}`" for value in schema.get("enum") or [schema["const"]])
    if "$ref" in schema:
        return REFERENCE
    if "items" in schema:
        least = f" of {schema['minItems']} or more" if "minItems" in schema else ""
        return f"a list{least}: {allowed(schema['items'])}"
    words = schema["type"].replace("null", "`null`")
    limits = [text.format(schema[name]) for name, text in LIMITS.items() if name in schema]
    return ", ".join([words, *limits])


columns = [(f"`{name}`", c.title, c.unit, c.meaning) for name, c in COLUMNS.items()]
properties = ExperimentConfig.model_json_schema()["properties"]
fields = [
    (f"`{name}`", f"`{json.dumps(field.default)}`", allowed(properties[name]))
    for name, field in ExperimentConfig.model_fields.items()
]
write("columns", "# Columns", "", table(("Column", "Title", "Unit", "Meaning"), *columns))
write(
    "parameters",
    "# Parameters",
    "",
    "The quick run's file has all of them, with what they mean:",
    "",
    "```{literalinclude} ../../params/quick.yaml\n:language: yaml\n```",
    "",
    table(("Parameter", "Default", "Allowed"), *fields),
)
for room in ROOMS:
    module = import_module(f"edgeopt.{room}")
    public = {name: getattr(module, name) for name in module.__all__}
    entries = [
        f".. autoclass:: edgeopt.{room}.{name}\n   :members:"
        if isinstance(value, type)
        else f".. autofunction:: edgeopt.{room}.{name}"
        for name, value in public.items()
        if callable(value) and value.__module__.startswith("edgeopt")
    ]
    words = [f"# edgeopt.{room}", "", module.__doc__, "", "```{eval-rst}", *entries, "```"]
    write(room, *words)
