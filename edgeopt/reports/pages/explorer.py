"""All candidates of a run to explore: filters, a chart with any axes, and a table to sort."""

import base64
import gzip
import json
from typing import Any

import itables
import pandas as pd
from IPython.display import HTML
from markupsafe import Markup
from plotly.offline import get_plotlyjs

from edgeopt.reports.pages.card import ENERGY, MEMORY, PAGES, bound_names, render
from edgeopt.reports.records.results import ROLES, Results
from edgeopt.runtimes import registered, runtime_named
from edgeopt.schema import COLUMNS, PRECISIONS, display_unit, known
from edgeopt.study import cell_text, column_heading
from edgeopt.study.layout import FRONTIER_FIGURE

FILTERS = ("model", "runtime", "precision")
COSTS = ("latency_p50_ms", "latency_p95_ms", "latency_ms", *MEMORY, *ENERGY, "macs")
QUALITIES = ("accuracy", "macro_f1", "agreement", "test_accuracy")
AXES = {"x": COSTS, "y": QUALITIES}
LAST_OF_ALL = "1e308"  # what is not known comes behind all numbers
NUMBERS = (*COSTS, *QUALITIES, "call_share")
FIRST = ("candidate", "latency_p50_ms", "accuracy", "memory_mb", "standing", "decided_by")
LAST = ("call_share", "int8_mac_share", "pruning_level", "recipe", "error")
ORDER = (*FIRST, *(name for name in (*QUALITIES, *COSTS) if name not in FIRST), *LAST)
MARKS = {"o": "\u25cf", "s": "\u25a0", "^": "\u25b2", "D": "\u25c6", "v": "\u25bc"}
SYMBOLS = {"o": "circle", "s": "square", "^": "triangle-up", "D": "diamond", "v": "triangle-down"}


def explorer(results: Results) -> HTML:
    """Show the candidates of a run as filters, chart and table; nothing when it has none.

    The table works without a script too, which then neither filters nor sorts.
    """
    sweep = results.sweep
    if sweep is None:
        return HTML("")
    shown = [name for name in ORDER if name in sweep and sweep[name].notna().any()]
    axes = {side: [n for n in names if n in shown] for side, names in AXES.items()}
    scales = {name: scale_of(name, sweep) for name in shown}
    titles = {name: column_heading(name, unit) for name, (_, unit) in scales.items()}
    latency = sweep.get("latency_p50_ms", pd.Series(dtype=float))
    drawable = all(axes.values())
    return render(
        "explorer.html.j2",
        filters=[(n, COLUMNS[n].title, options(n, sweep)) for n in FILTERS if n in sweep],
        axes={side: [(name, titles[name]) for name in names] for side, names in axes.items()},
        drawable=drawable,
        still=FRONTIER_FIGURE if results.run.path(FRONTIER_FIGURE).is_file() else "",  # until drawn
        wide=latency.max() > 10 * latency.min() > 0,
        heads=[(name, title, name in NUMBERS) for name, title in titles.items()],
        rows=zip(*(cells(sweep[name], *scale) for name, scale in scales.items()), strict=True),
        json=script_json(chart_data(results, {n: scales[n][0] for n in [*axes["x"], *axes["y"]]})),
        plotly=packed_plotly() if drawable else "",
        script=Markup((PAGES / "explorer.js").read_text(encoding="utf-8")),
    )


def scale_of(name: str, sweep: pd.DataFrame) -> tuple[float, str]:
    """Scale and unit of a column; texts have none."""
    numeric = pd.api.types.is_numeric_dtype(sweep[name]) and sweep[name].dtype != bool
    return display_unit(name, sweep[name].abs().max()) if numeric else (1, "")


def options(name: str, sweep: pd.DataFrame) -> list[dict[str, str]]:
    """Values of a filter in the order of the package, with the colour or symbol of each."""
    present = [str(value) for value in sweep[name].unique()]
    order = [*registered(), *PRECISIONS, *present]
    runtimes = {v: runtime_named(v) for v in present if v in registered()}
    return [
        {
            "value": v,
            "title": runtimes[v].title if v in runtimes else v,
            "color": PRECISIONS[v].color if v in PRECISIONS else "",
            "mark": MARKS.get(runtimes[v].marker, MARKS["o"]) if v in runtimes else "",
        }
        for v in sorted(present, key=order.index)
    ]


def cells(column: pd.Series, scale: float, unit: str) -> list[dict[str, Any]]:
    """Cells of a column: their text, what they are sorted by, and how they are set."""
    number = column.name in NUMBERS
    return [
        {
            "text": cell_text(value, scale, unit) if known(value) or number else "",
            "order": value if known(value) else LAST_OF_ALL,
            "css": "number" if number else column.name,
        }
        for value in column.tolist()
    ]


def chart_data(results: Results, scales: dict[str, float]) -> dict[str, Any]:
    """Collect what the chart draws: numbers in display units, groups, colours, roles."""
    sweep = results.sweep
    columns = {}
    for name, scale in scales.items():
        own = [column for column in (name, *bound_names(name)) if column in sweep]
        columns |= {column: _scaled(sweep[column], scale) for column in own}
    accepted = sweep["accepted"].eq(True) if "accepted" in sweep else pd.Series(True, sweep.index)
    return {
        "tables": f"_itables_{itables.__version__.replace('.', '_')}",
        "names": sweep["candidate"].astype(str).tolist(),
        "columns": columns,
        "bounds": {n: bound_names(n) for n in scales if columns.keys() >= {*bound_names(n)}},
        "filters": {name: sweep[name].astype(str).tolist() for name in FILTERS if name in sweep},
        "accepted": accepted.tolist(),
        "colors": {n: "" if n == "fp32" else p.color for n, p in PRECISIONS.items()},
        "symbols": {
            name: SYMBOLS.get(runtime_named(name).marker, SYMBOLS["o"])
            for name in sweep.get("runtime", pd.Series(dtype=object)).unique()
            if name in registered()
        },
        "roles": {
            word: results.decision[role]["candidate"]
            for role, word in ROLES.items()
            if results.decision and results.decision[role]
        },
    }


def _scaled(column: pd.Series, scale: float) -> list[float | None]:
    return [None if pd.isna(value) else float(f"{value * scale:.6g}") for value in column]


def packed_plotly() -> Markup:
    """Pack Plotly's script as gzip in base64, 2 of its 4.8 MB; ``explorer.js`` unpacks it."""
    packed = gzip.compress(get_plotlyjs().encode(), mtime=0)
    return Markup(base64.b64encode(packed).decode())


def script_json(value: Any) -> Markup:
    """JSON that can stand in a script element: no text in it can end the element."""
    text = json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    return Markup(text.replace("<", "\\u003c"))
