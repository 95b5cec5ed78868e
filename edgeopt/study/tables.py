"""What notebooks show: figures in one style, and tables with units and at most four digits."""

import re
from collections.abc import Hashable
from html import escape
from typing import Any

import pandas as pd

from edgeopt.schema import DASH, column, display_unit, known, significant
from edgeopt.study.folder import ASSETS

FIGURE_STYLE = ASSETS / "figures.mplstyle"
MAX_ROWS = 200
SHORT_TEXT, LONG_TEXT = 12, 40  # up to which a text keeps to one line, and is a name


def use_style() -> None:
    """Set how figures look, and let the notebook that runs show tables by :func:`table_html`."""
    from IPython import get_ipython
    from matplotlib import style

    style.use(FIGURE_STYLE)
    pd.set_option("display.max_colwidth", None)
    if shell := get_ipython():
        shell.display_formatter.formatters["text/html"].for_type(pd.DataFrame, table_html)


def table_html(df: pd.DataFrame) -> str:
    """Write a table as HTML: an index that says something is its first columns.

    Headings of a named axis, such as a pivot's, are values and stay as they are. Numbers are in the
    unit of their column, which its heading names; columns with a unit of bytes take the one that
    suits their largest number. Cells are escaped. Rows beyond 200 are left out,
    which a last line says.
    """
    flat = flatten(df)
    named = any(name is not None for name in df.columns.names)
    own = {*flat} - {*df.index.names} if named else set()
    columns = [_column(name, flat.iloc[:, place], own) for place, name in enumerate(flat)]
    heads = "".join(f'<th scope="col"{css}>{escape(head)}</th>' for head, css, _ in columns)
    body = []
    for row in list(zip(*(cells for *_, cells in columns), strict=True))[:MAX_ROWS]:
        kinds = ('th scope="row"', *["td"] * (len(row) - 1))
        cells = [
            f"<{kind}{css}>{escape(text)}</{kind[:2]}>"
            for kind, (_, css, _), text in zip(kinds, columns, row, strict=True)
        ]
        body.append(f"<tr>{''.join(cells)}</tr>")
    left = f"<p>{len(flat) - MAX_ROWS:,} more rows.</p>" if len(flat) > MAX_ROWS else ""
    return (
        '<div class="table" tabindex="0"><table class="dataframe">'
        f"<thead><tr>{heads}</tr></thead><tbody>{''.join(body)}</tbody></table></div>{left}"
    )


def flatten(df: pd.DataFrame) -> pd.DataFrame:
    """Make a table of plain columns: a named index goes first, headings of several levels join."""
    columns = [", ".join(map(str, n)) if isinstance(n, tuple) else n for n in df.columns]
    plain = df.set_axis(columns, axis=1)
    counted = df.index.empty or pd.api.types.is_integer_dtype(df.index)
    return plain if df.index.names == [None] and counted else plain.reset_index()


def column_heading(name: Hashable, unit: str) -> str:
    """Heading of a column, with the unit that its numbers are shown in; proper names stay."""
    plain = re.fullmatch(r"[a-z][a-z0-9_., ]*", str(name))
    title = "" if name == "index" else column(str(name)).title if plain else str(name)
    return f"{title} ({unit})" if unit else title


def _column(name: Hashable, cells: pd.Series, own: set[Hashable]) -> tuple[str, str, list[str]]:
    """Heading, class and texts of a column; those of ``own`` keep their names."""
    values = cells.tolist()
    numeric = all(isinstance(v, int | float) and not isinstance(v, bool) for v in values)
    largest = max((abs(v) for v in values if known(v)), default=0) if numeric else 0
    scale, unit = display_unit(str(name), largest)
    shown = unit or ("%" if str(name).endswith("(%)") else "")
    texts = [cell_text(value, scale if numeric else 1, shown) for value in values]
    longest = max(map(len, texts), default=0)
    kind = "number" if numeric else "words" if longest > LONG_TEXT else "name"
    css = "" if kind == "name" and longest <= SHORT_TEXT else f' class="{kind}"'
    return str(name) if name in own else column_heading(name, unit), css, texts


def cell_text(value: Any, scale: float = 1, unit: str = "") -> str:
    """Write a cell: a dash for what is not known, yes or no, a number in its column's unit."""
    if not known(value):
        return DASH
    if isinstance(value, bool):
        return "yes" if value else "no"
    if not isinstance(value, int | float):
        return str(value)
    if unit == "%":
        return f"{scale * value:.1f}"
    return significant(value * scale if scale != 1 else value)
