"""Figures of the sweep: table in, axes out."""

from collections.abc import Collection
from itertools import count

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.lines import Line2D

from edgeopt.decision import accepted_mask, pareto_frontier
from edgeopt.plots.annotations import beside, bound, label_points
from edgeopt.plots.style import (
    INK,
    QUIET,
    candidate_key,
    key_above,
    key_below,
    log_axis,
    new_axes,
    percent_axis,
    row_groups,
    row_height,
)
from edgeopt.runtimes import RUNTIMES, registered, runtime_named
from edgeopt.schema import PRECISIONS, TIMES, label, require_columns

REFUSED = {"marker": "x", "color": INK, "lw": 1.4}
ENERGIES = ("energy_proxy_j", "energy_model_j")
COSTS = {"latency_ratio": "Median latency", "weights_ratio": "Weights"}


def frontier(
    df: pd.DataFrame,
    x_col: str = "latency_p50_ms",
    *,
    pick: str | None = None,
    baseline: str | None = None,
    refused: Collection[str] = (),
    ax: Axes | None = None,
) -> Axes:
    """Accuracy against ``x_col`` (log), with Wilson bars and the frontier of the accepted.

    Hollow markers are over the memory budget; of the others, those of the ``refused`` candidates,
    which another limit excludes, are crossed out. With a ``frontier_probability`` column, larger
    markers are more surely on the frontier; dotted lines are the floors of the runtimes' calls.
    ``pick`` and ``baseline`` name the candidates to point out; the names are above the axes.
    """
    needed = ["candidate", "accepted", "accuracy", "accuracy_low", "accuracy_high", x_col]
    require_columns(df, needed, what="the frontier figure")
    ax = new_axes(ax, height=5.6)
    rows = df.dropna(subset=[x_col, "accuracy"])
    front = pareto_frontier(rows, x_col)
    _draw_candidates(ax, rows, x_col, "accuracy")
    crossed = rows[rows["candidate"].isin(refused) & accepted_mask(rows)]
    ax.scatter(crossed[x_col], crossed["accuracy"], s=70, zorder=5, **REFUSED)
    _draw_wilson_bars(ax, rows, x_col, strong=rows.index.isin(front.index))
    ax.step(front[x_col], front["accuracy"], where="post", color=INK, lw=1.2, zorder=2)
    log_axis(ax.xaxis, unit="J" if x_col in ENERGIES else "")
    percent_axis(ax.yaxis)
    ax.margins(y=0.1)
    ax.set(xlabel=label(x_col), ylabel=label("accuracy"))
    if x_col == "latency_p50_ms" and "call_floor_ms" in df:
        _draw_floors(ax, rows)
    state = _state_key()
    if len(crossed):
        state.append(Line2D([], [], ls="", **REFUSED, label="refused"))
    key_below(ax, *candidate_key(rows), state)
    _name_points(ax, rows, front, x_col=x_col, pick=pick, baseline=baseline)
    return ax


def _draw_floors(ax: Axes, rows: pd.DataFrame) -> None:
    """Mark what the call of each runtime takes at least, by its marker on the lower edge."""
    for runtime, floor in rows.groupby("runtime")["call_floor_ms"].min().dropna().items():
        marker = runtime_named(runtime).marker if runtime in registered() else "o"
        ax.axvline(floor, color=QUIET, lw=0.8, ls=(0, (1, 3)), zorder=0)
        style = {"marker": marker, "color": QUIET, "clip_on": False, "ms": 5}
        ax.plot(floor, 0, transform=ax.get_xaxis_transform(), **style)


def budgets(df: pd.DataFrame, *, ax: Axes | None = None) -> Axes:
    """Weights of every pruning level and precision against the memory budgets.

    Runtimes share a marker: their weights are the same. The active budget is the bold line.
    """
    needed = ["memory_mb", "pruning_level", "precision", "accepted", "active_budget_mb"]
    require_columns(df, needed, what="the budgets figure")
    limits = df.columns.str.extract(r"^violates_(.+)mb$", expand=False).dropna().astype(float)
    active = df["active_budget_mb"].iloc[0]
    levels = sorted(df["pruning_level"].unique())
    rows = df.dropna(subset=["memory_mb"]).drop(columns="runtime", errors="ignore")
    rows = rows.drop_duplicates(["pruning_level", "precision", "memory_mb"])
    # Precisions stand beside each other, so that equal numbers do not cover each other.
    present = [name for name in PRECISIONS if name in {*rows["precision"]}]
    dodge = 0.6 * ((rows["precision"].map(present.index) + 0.5) / len(present) - 0.5)
    rows = rows.assign(height=rows["pruning_level"].map(levels.index) + dodge)
    ax = new_axes(ax, height=1.6 + 0.6 * len(levels), grid="x")
    _draw_candidates(ax, rows, "memory_mb", "height")
    for limit in sorted({active, *limits}):
        words, width = (" active", 2.4) if limit == active else ("", 1)
        bound(ax, limit, f"{limit:g}{words}", width=width)
    row_groups(ax, [f"{level:.0%}" for level in levels])
    ax.set(xlabel=label("memory_mb"), ylabel=label("pruning_level"), xlim=(0, None))
    key_below(ax, *candidate_key(rows), _state_key())
    return ax


def precision_ratios(ratios: pd.DataFrame, *, ax: Axes | None = None) -> Axes:
    """Latency and weights of each precision relative to fp32 in the same runtime, on a log axis.

    Takes :func:`edgeopt.hardware.precision_ratios`.
    """
    require_columns(ratios, ["runtime", "precision", *COSTS], what="precision_ratios")
    order = ratios["runtime"].map(list(registered()).index)
    ratios = ratios.loc[order.sort_values(kind="stable").index]
    ax = new_axes(ax, height=row_height(len(COSTS) * (len(ratios) + 1)), grid="x")
    names = []
    for cost, title in COSTS.items():
        names.append(title)
        for row in ratios.to_dict("records"):
            runtime, precision, ratio = runtime_named(row["runtime"]), row["precision"], row[cost]
            style = {"marker": runtime.marker, "color": PRECISIONS[precision].color}
            ax.scatter(ratio, len(names), s=75, ec=INK, zorder=3, **style)
            beside(ax, ratio, len(names), f"{ratio:#.3g}{TIMES}", left=ratio < 1)
            names.append(f"{runtime.title} {precision}")
    ax.axvline(1, color=INK, lw=1.2, zorder=1)
    log_axis(ax.xaxis)
    if ratios.empty:
        ax.text(1.1, 0.5, "nothing beside fp32 was measured")
    drawn = [1, *ratios[[*COSTS]].to_numpy().flat]
    ax.set(xlim=(min(drawn) / 2, 2 * max(drawn)), ylim=(len(names) - 0.4, -0.6))
    ax.set_yticks(range(len(names)), names)
    for tick in ax.get_yticklabels()[:: len(ratios) + 1]:
        tick.set_weight("bold")
    ax.set_xlabel("Ratio to fp32 in the same runtime")
    return ax


def energy_tiers(
    df: pd.DataFrame, *, unavailable: str | None = None, ax: Axes | None = None
) -> Axes:
    """Two estimates of energy against each other; ``unavailable`` says why none is measured."""
    require_columns(df, ["accepted", *ENERGIES], what="energy_tiers")
    ax = new_axes(ax, height=5.2)
    rows = df.dropna(subset=list(ENERGIES))
    _draw_candidates(ax, rows, *ENERGIES)
    log_axis(ax.xaxis, unit="J")
    log_axis(ax.yaxis, unit="J")
    ax.set(
        xlabel=f"Energy proxy: latency {TIMES} assumed power", ylabel="Energy model: 45 nm figures"
    )
    ax.set_title("Two estimates of one inference's energy", pad=24)
    # The reason's parenthesis, a path, is for the table; the line has to fit a phone.
    reason = unavailable.partition(" (")[0] if unavailable else "neither axis is one"
    ax.text(0, 1.02, f"Measurement: {reason}", transform=ax.transAxes, fontsize=10)
    key_below(ax, *candidate_key(rows), _state_key())
    return ax


def _state_key() -> list[Line2D]:
    """Legend entries of what a marker's face says about a candidate."""
    style = {"marker": "o", "ls": "", "color": QUIET}
    hollow = Line2D([], [], mfc="none", label="over budget", **style)
    return [Line2D([], [], label="in budget", **style), hollow]


def _draw_candidates(ax: Axes, rows: pd.DataFrame, x: str, y: str) -> None:
    """Markers by precision and runtime, hollow where not accepted, larger where more probable."""
    if rows.empty:
        ax.text(0.5, 0.5, "no candidate was measured", transform=ax.transAxes, ha="center")
    unsure = pd.Series(0.1, index=rows.index)
    sizes = 36 + 110 * rows.get("frontier_probability", unsure).fillna(0)
    for (_, row), size, fill in zip(rows.iterrows(), sizes, accepted_mask(rows), strict=True):
        marker, face, edge = _look(row, fill=fill)
        ax.scatter(row[x], row[y], s=size, marker=marker, fc=face, ec=edge, lw=1.0, zorder=3)


def _draw_wilson_bars(ax: Axes, rows: pd.DataFrame, x: str, *, strong: np.ndarray) -> None:
    for (_, row), bold in zip(rows.iterrows(), strong, strict=True):
        style = {"lw": 1.6, "alpha": 0.9} if bold else {"lw": 0.7, "alpha": 0.2}
        color = PRECISIONS[row["precision"]].color
        ax.vlines(row[x], row["accuracy_low"], row["accuracy_high"], color=color, **style)


def _name_points(
    ax: Axes, rows: pd.DataFrame, front: pd.DataFrame, *, x_col: str, pick: str, baseline: str
) -> None:
    """Write numbers beside the frontier's points, from left to right, and their names on top."""
    if pick is not None and pick not in set(rows["candidate"]):
        known = ", ".join(rows["candidate"])
        raise ValueError(f"pick {pick!r} is not among the measured candidates: {known}")
    chosen = rows[rows["candidate"] == pick]
    ax.scatter(chosen[x_col], chosen["accuracy"], s=260, fc="none", ec=INK, lw=2, zorder=4)
    named = rows[rows["candidate"].isin([*front["candidate"], pick, baseline])].sort_values(x_col)
    numbers, roles = count(1), {baseline: "baseline", pick: "pick"}
    if pick == baseline:
        roles = {pick: "pick, baseline"}
    tags = [roles.get(name) or f"{next(numbers)}" for name in named["candidate"]]
    entries = zip(named.iterrows(), accepted_mask(named), tags, strict=True)
    key_above(ax, [_entry(row, tag, fill=fill) for (_, row), fill, tag in entries])
    points = zip(named[x_col], named["accuracy"], tags, strict=True)
    label_points(ax, [*points], avoid=rows[[x_col, "accuracy"]].to_numpy(), weight="bold")


def _entry(row: pd.Series, tag: str, *, fill: bool) -> Line2D:
    """Legend entry of a candidate: its marker, what stands beside its point, its name."""
    marker, face, edge = _look(row, fill=fill)
    style = {"marker": marker, "mfc": face, "mec": edge, "ms": 8, "ls": ""}
    return Line2D([], [], label=f"{tag}: {row['candidate']}", **style)


def _look(row: pd.Series, *, fill: bool) -> tuple[str, str, str]:
    """Marker, face and edge of a candidate."""
    color = PRECISIONS[row["precision"]].color
    marker = runtime_named(row.get("runtime", RUNTIMES[0])).marker
    return (marker, color, INK) if fill else (marker, "none", color)
