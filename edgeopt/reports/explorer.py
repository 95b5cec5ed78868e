"""Sweep table -> what the interactive frontier and table of a run's index need, as JSON."""

import json
from collections.abc import Mapping
from typing import Any

import pandas as pd
from markupsafe import Markup

from edgeopt.plots import style
from edgeopt.reports.page_parts import SHARES, known
from edgeopt.runtimes import registered, runtime_named
from edgeopt.schema import COLUMNS, MIB, PRECISIONS
from edgeopt.study import RunFolder
from edgeopt.study.layout import SWEEP

TEXTS = ("candidate", "recipe", "precision", "runtime")
MEMORY = ("memory_mb", "artifact_bytes", "peak_activation_bytes", "peak_rss_bytes")
ENERGY = ("energy_proxy_j", "energy_model_j", "energy_measured_j")
COSTS = ("latency_p50_ms", "latency_p95_ms", "latency_ms", *MEMORY, *ENERGY, "macs")
QUALITIES = ("accuracy", "macro_f1", "agreement", "test_accuracy")
FIRST = ("accuracy", "latency_p50_ms", "memory_mb", "artifact_bytes")
LAST = ("throughput_sps", "int8_mac_share", "pruning_level", *TEXTS[1:])
REST = tuple(name for name in (*QUALITIES, *COSTS) if name not in FIRST)
ORDER = ("candidate", *FIRST, *REST, *LAST)
SYMBOLS = {"o": "circle", "s": "square", "^": "triangle-up", "D": "diamond"}
OUTLINES = {
    "o": "M8 3a5 5 0 1 0 .01 0z",
    "s": "M3.5 3.5h9v9h-9z",
    "^": "M8 3l5.5 10h-11z",
    "D": "M8 2l6 6-6 6-6-6z",
}


def read_sweep(run: RunFolder) -> tuple[pd.DataFrame | None, str]:
    """Read the candidates of a run; None and the reason when there are none."""
    path = run.path(SWEEP)
    if not path.is_file():
        return None, f"No candidates: no notebook of this run has written {path.name}."
    try:
        sweep = pd.read_csv(path)
    except pd.errors.ParserError as error:
        return None, f"No candidates: {path.name} cannot be read: {error}"
    except pd.errors.EmptyDataError:
        return None, f"No candidates: {path.name} is empty."
    if sweep.empty or "candidate" not in sweep:
        return None, f"No candidates: {path.name} has no rows, or no column candidate."
    return sweep, ""


def bound_names(name: str) -> tuple[str, str]:
    """Name the columns of a number's interval: ``x_low_ms, x_high_ms`` for ``x_ms``."""
    stem, unit = (name.removesuffix("_ms"), "_ms") if name.endswith("_ms") else (name, "")
    return f"{stem}_low{unit}", f"{stem}_high{unit}"


def explorer_data(
    sweep: pd.DataFrame, *, roles: Mapping[str, str], reasons: Mapping[str, str]
) -> dict[str, Any]:
    """Everything that the explorer's template and script need.

    ``roles`` maps a word such as ``Pick`` to a candidate; ``reasons`` says why a candidate was
    rejected. Shares become percentages, bytes KiB or MiB.
    """
    shown = [name for name in ORDER if name in sweep and sweep[name].notna().any()]
    columns = [column_spec(name, sweep[name]) for name in shown]
    columns.insert(1, {"key": "state", "title": "State", "kind": "text", "axis": None})
    columns.append({"key": "reason", "title": "Reason", "kind": "text", "axis": None})
    axes = [column for column in columns if column["axis"]]
    page = {
        "columns": columns,
        "axes": axes,
        "filters": [name for name in ("runtime", "precision") if name in sweep],
        "bounds": {
            axis["key"]: bound_names(axis["key"])
            for axis in axes
            if set(bound_names(axis["key"])) <= set(sweep.columns)
        },
        "values": column_values(sweep, reasons=reasons),
        "haystack": sweep[[c for c in TEXTS if c in sweep]].agg(_searchable, axis=1).to_list(),
        "colors": {name: _color(name) for name in PRECISIONS},
        "symbols": {name: SYMBOLS[runtime_named(name).marker] for name in registered()},
        "roles": dict(roles),
        "sort": next((axis["key"] for axis in axes if axis["axis"] == "x"), "candidate"),
    }
    latency = sweep.get("latency_p50_ms", pd.Series(dtype=float)).dropna()
    return {
        "columns": columns,
        "axes": axes,
        "filters": [_filter(name, sweep) for name in page["filters"]],
        "drawable": {axis["axis"] for axis in axes} == {"x", "y"},
        "failed": int(sweep["status"].eq("failed").sum()) if "status" in sweep else 0,
        "wide": bool(len(latency) and latency.max() > 10 * latency.min() > 0),
        "json": script_json(page),
    }


def column_spec(name: str, column: pd.Series) -> dict[str, Any]:
    """Say how the page shows a column: heading with unit, kind of cell, and its axis."""
    title, kind = COLUMNS[name].title, "text" if name in TEXTS else "number"
    if name in SHARES or name == "pruning_level":
        kind = "percent"
    _, unit = display_unit(name, column)
    axis = "x" if name in COSTS else "y" if name in QUALITIES else None
    return {
        "key": name,
        "title": f"{title} ({unit})" if unit else title,
        "kind": kind,
        "axis": axis,
    }


def display_unit(name: str, column: pd.Series) -> tuple[float, str]:
    """Scale and unit in which the page counts a column; that of bytes suits the largest."""
    if name in SHARES or name == "pruning_level":
        return 100, "%"
    if name in MEMORY:
        count = MIB if name == "memory_mb" else 1
        return (count / MIB, "MiB") if column.max() * count >= MIB else (count / 1024, "KiB")
    return (1e6, "\N{MICRO SIGN}J") if name.endswith("_j") else (1, COLUMNS[name].unit)


def column_values(sweep: pd.DataFrame, *, reasons: Mapping[str, str]) -> dict[str, list[Any]]:
    """Cells of every column that the page uses, in display units; null where not known."""
    values = {}
    for name in ORDER:
        if name in TEXTS and name in sweep:
            values[name] = [str(value) if known(value) else None for value in sweep[name]]
        elif name in sweep:
            scale, _ = display_unit(name, sweep[name])
            own = [column for column in (name, *bound_names(name)) if column in sweep]
            values |= {column: _scaled(sweep[column], scale) for column in own}
    rows = sweep.to_dict("records")
    values["accepted"] = [_accepted(row) for row in rows]
    verdicts = [verdict(row, reasons=reasons) for row in rows]
    values["state"], values["reason"] = (list(side) for side in zip(*verdicts, strict=True))
    return values


def verdict(row: Mapping[str, Any], *, reasons: Mapping[str, str]) -> tuple[str, str]:
    """Say whether a candidate is eligible, refused by a gate, over budget or failed, and why."""
    if row.get("status") == "failed":
        return "failed", str(row["error"]) if known(row.get("error")) else ""
    reason = reasons.get(row["candidate"], "")
    if not _accepted(row):
        return "over budget", reason
    return ("refused", reason) if reason else ("eligible", "")


def _accepted(row: Mapping[str, Any]) -> bool:
    return row.get("status") != "failed" and bool(row.get("accepted", True) == 1)


def _scaled(column: pd.Series, scale: float) -> list[float | None]:
    return [None if pd.isna(value) else float(f"{value * scale:.6g}") for value in column]


def _searchable(row: pd.Series) -> str:
    return " ".join(str(value) for value in row if known(value)).lower()


def _color(precision: str) -> str:
    """Colour of a precision; black ones follow the text, so that they show on a dark page too."""
    color = PRECISIONS[precision].color
    return "currentColor" if color == style.INK else color


def _filter(name: str, sweep: pd.DataFrame) -> dict[str, Any]:
    order = registered() if name == "runtime" else PRECISIONS
    present = {str(value) for value in sweep[name]}
    values = [*(v for v in order if v in present), *sorted(present - set(order))]
    return {
        "key": name,
        "title": COLUMNS[name].title,
        "options": [
            {
                "value": value,
                "title": runtime_named(value).title if value in registered() else value,
                "color": _color(value) if value in PRECISIONS else None,
                "path": OUTLINES[runtime_named(value).marker] if value in registered() else None,
            }
            for value in values
        ],
    }


def script_json(value: Any) -> Markup:
    """JSON that can stand in a script element: no text in it can end the element."""
    text = json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    return Markup(text.replace("<", "\\u003c"))
