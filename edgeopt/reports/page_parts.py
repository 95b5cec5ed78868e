"""What all pages share: templates, numbers in words, figures with their alt text and numbers."""

import base64
import math
from collections.abc import Mapping
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

import jinja2
import pandas as pd
from markupsafe import Markup
from PIL import Image

from edgeopt.plots import style
from edgeopt.schema import COLUMNS, MIB, label
from edgeopt.study import ASSETS, FIGURE_DPI, RunFolder
from edgeopt.system import write_atomically

SHARES = {"accuracy", "test_accuracy", "macro_f1", "agreement", "int8_mac_share"}
JOULES = ((1, "J"), (1e-3, "mJ"), (1e-6, "\N{MICRO SIGN}J"), (1e-9, "nJ"))
MAX_ROWS = 200
TIMES = "\N{MULTIPLICATION SIGN}"
DASH = "\N{EN DASH}"


def known(value: Any) -> bool:
    """Whether a cell holds something: not None, not NaN, not empty."""
    return (
        value is not None and value != "" and not (isinstance(value, float) and math.isnan(value))
    )


def as_text(value: Any, column: str = "") -> str:
    """Write a table cell in the unit of its column's label; a dash when it is not known."""
    if not known(value):
        return DASH
    if isinstance(value, str | bool):
        return str(value)
    if column == "pruning_level":
        return f"{100 * value:.4g}%"
    return f"{100 * value:.1f}%" if column in SHARES else significant(value)


def with_unit(value: Any, column: str) -> str:
    """Write a number with a unit that suits its size, e.g. ``7.8 KiB`` or ``62.5 uJ``."""
    if not known(value):
        return DASH
    if column == "memory_mb" or column.endswith("_bytes"):
        count = value * MIB if column == "memory_mb" else value
        return f"{count / MIB:,.2f} MiB" if count >= MIB else f"{count / 1024:,.1f} KiB"
    if column.endswith("_j"):
        scale, unit = next((s, u) for s, u in JOULES if value >= s or s == JOULES[-1][0])
        return f"{significant(value / scale)} {unit}"
    return f"{as_text(value, column)} {COLUMNS[column].unit}".strip()


def significant(value: float, digits: int = 3) -> str:
    """Write a number with so many significant digits; below a thousandth with an exponent."""
    if isinstance(value, int) or float(value).is_integer() or abs(value) >= 10**digits:
        return f"{value:,.0f}"
    if abs(value) < 1e-3:
        return f"{value:.{digits - 1}e}"
    decimals = digits - 1 - math.floor(math.log10(abs(value)))
    return f"{value:.{max(decimals, 0)}f}"


def signed(points: float) -> str:
    """Write a difference with its sign; one that rounds to zero has none."""
    text = f"{points:+.1f}"
    return "0.0" if float(text) == 0 else text


def describe(row: Mapping[str, Any]) -> str:
    """Name a candidate in words, e.g. ``ExecuTorch int8, 25% pruned, fine-tuned``."""
    if not known(row.get("runtime")) or not known(row.get("pruning_level")):
        return str(row.get("candidate"))
    recipe = row.get("recipe")
    how = f", {recipe}" if recipe in ("fine-tuned", "scratch") else ""
    return style.describe(row) + how


def change(row: Mapping[str, Any], name: str) -> str:
    """Write second against first: points for accuracy, a ratio for anything else."""
    first, second = row[f"{name}_first"], row[f"{name}_second"]
    if not (known(first) and known(second)):
        return DASH
    if name == "accuracy":
        return signed(100 * (second - first))
    return f"{second / first:.2f}{TIMES}"


def table_html(df: pd.DataFrame) -> Markup:
    """Render a table of text; cells are escaped, and rows beyond 200 are left out with a word."""
    shown = df.head(MAX_ROWS)
    body = [
        [(column, as_text(value, column)) for column, value in row.items()]
        for row in shown.to_dict("records")
    ]
    numeric = {column for column in df if pd.api.types.is_numeric_dtype(df[column])}
    heads = [(column, label(column)) for column in df]
    return Markup(
        templates()
        .get_template("table.html.j2")
        .render(heads=heads, rows=body, numeric=numeric, omitted=len(df) - len(shown))
    )


@dataclass(frozen=True)
class FigurePart:
    """A figure of a run: its name, words, picture as a data URI, and the numbers it draws."""

    name: str
    alt: str
    uri: str
    width: int
    height: int
    numbers: Markup


def read_figures(run: RunFolder) -> list[FigurePart]:
    """Read all figures of a run in the order of drawing; alt texts come with the pictures."""
    paths = sorted(run.path("figures").glob("*.png"))
    return [_read_figure(path) for path in sorted(paths, key=lambda path: path.stat().st_mtime_ns)]


def _read_figure(path: Path) -> FigurePart:
    with Image.open(path) as picture:
        buffer = BytesIO()
        # Drawn figures have few colours: lossless they are smaller than with losses, and sharp.
        picture.convert("RGB").save(buffer, format="WEBP", lossless=True, method=4)
        alt = picture.info.get("Description") or path.stem.replace("_", " ")
        width, height = picture.size
    uri = f"data:image/webp;base64,{base64.b64encode(buffer.getvalue()).decode()}"
    shown = [pixels * 96 // FIGURE_DPI for pixels in (width, height)]
    return FigurePart(path.stem, alt, uri, *shown, figure_numbers(path))


def figure_numbers(picture: Path) -> Markup:
    """Render the numbers beside a figure as a table; empty when none were saved with it."""
    table = picture.with_suffix(".csv")
    return table_html(pd.read_csv(table)) if table.is_file() else Markup("")


def templates() -> jinja2.Environment:
    """Templates of the pages: everything put into them is escaped."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(ASSETS),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(text=as_text, unit=with_unit, describe=describe, change=change)
    environment.globals["asset"] = _asset
    return environment


def _asset(name: str) -> Markup:
    """Read a style sheet or script of ours, to stand inside the page."""
    return Markup((ASSETS / name).read_text(encoding="utf-8"))


def write_page(path: Path, template: str, **context: Any) -> Path:
    """Render a template into a page, whole or not at all."""
    html = templates().get_template(template).render(**context)
    return write_atomically(path, html.encode())
