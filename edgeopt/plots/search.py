"""Figures of the search: latency by widths, and what was found over the uniform levels."""

from collections.abc import Collection, Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from edgeopt.plots.annotations import label_points
from edgeopt.plots.style import INK, QUIET, dot, key_below, log_axis, new_axes, percent_axis
from edgeopt.runtimes import runtime_named
from edgeopt.schema import PRECISIONS, label, require_columns
from edgeopt.search import LatencyMap, LayerMap

SHOWN_LINES = 5


def latency_map(known: LatencyMap | LayerMap, *, precision: str, ax: Axes | None = None) -> Axes:
    """Draw a map: latency by widths where networks were timed whole, else how far sums are off."""
    if isinstance(known, LatencyMap):
        return latency_steps(known.table, known.groups, precision=precision, ax=ax)
    return layer_sums(known.checked, ax=ax)


def latency_steps(
    table: pd.DataFrame, groups: Sequence[str], *, precision: str, ax: Axes | None = None
) -> Axes:
    """Latency against the width of the first group of layers, one line per width of the second.

    Takes the table of a :class:`edgeopt.search.LatencyMap`. Bars are 95% intervals of the ratio to
    the unpruned network; of many lines, five evenly spread ones are drawn.
    """
    needed = [*groups, "latency_p10_ms", "latency_ratio", "latency_ratio_low", "latency_ratio_high"]
    require_columns(table, needed, what="the figure of latency steps")
    ax = new_axes(ax, height=4.6)
    first, *others = groups
    shown = _spread_lines(table.dropna(subset="latency_p10_ms"), others)
    tips = []
    for number, (words, rows) in enumerate(shown):
        rows = rows.sort_values(first)
        base = rows["latency_p10_ms"] / rows["latency_ratio"]
        ends = [rows[f"latency_ratio_{end}"] * base for end in ("low", "high")]
        shade = 0.3 + 0.7 * (number + 1) / len(shown)
        style = {"color": PRECISIONS[precision].color, "alpha": shade}
        ax.vlines(rows[first], *ends, lw=1, **style)
        ax.plot(rows[first], rows["latency_p10_ms"], marker="o", ms=4, lw=1.4, **style)
        tips.append((rows[first].iloc[-1], rows["latency_p10_ms"].iloc[-1], words))
    ax.set(xlabel=f"Channels of {first}", ylabel=label("latency_p10_ms"))
    ax.set_ylim(0, None)
    ax.margins(x=0.08)
    if others:
        ax.set_title(f"Beside each line: channels of {', '.join(others)}", loc="right", fontsize=10)
        label_points(ax, tips, avoid=[tip[:2] for tip in tips])
    return ax


def _spread_lines(table: pd.DataFrame, others: Sequence[str]) -> list[tuple[str, pd.DataFrame]]:
    """Choose the lines to draw: those nearest to evenly spread widths of the other group."""
    if not others:
        return [("", table)]
    [other] = others
    widths = np.sort(table[other].unique())
    wanted = np.linspace(widths[0], widths[-1], min(SHOWN_LINES, len(widths)))
    near = dict.fromkeys(int(widths[np.abs(widths - width).argmin()]) for width in wanted)
    return [(f"{width}", table[table[other] == width]) for width in near]


def layer_sums(checked: pd.DataFrame, *, ax: Axes | None = None) -> Axes:
    """Latency predicted from the layers against the one that whole networks have.

    Takes :attr:`edgeopt.search.LayerMap.checked`; the lines are 10% off.
    """
    require_columns(
        checked, ["latency_p10_ms", "predicted_ms", "fitted"], what="the figure of layer sums"
    )
    ax = new_axes(ax, height=4.6)
    rows = checked.dropna(subset=["latency_p10_ms", "predicted_ms"])
    for fitted, face in ((True, "none"), (False, INK)):
        own = rows[rows["fitted"] == fitted]
        ax.scatter(own["latency_p10_ms"], own["predicted_ms"], s=34, fc=face, ec=INK, zorder=3)
    ends = np.array([rows["latency_p10_ms"].min() * 0.95, rows["latency_p10_ms"].max() * 1.05])
    ax.plot(ends, ends, color=INK, lw=1.2)
    for share in (0.9, 1.1):
        ax.plot(ends, share * ends, color=QUIET, lw=0.8, ls="--")
    ax.set(xlabel=label("latency_p10_ms"), ylabel="Predicted from the layers (ms)")
    key_below(ax, [dot("checked", INK), dot("set the prediction", "none")])
    return ax


def searched_frontier(
    sweep: pd.DataFrame,
    *,
    searched: Collection[str],
    labels: dict[str, str],
    ax: Axes | None = None,
) -> Axes:
    """Accuracy against median latency: what the search found over the uniform levels.

    Bars are 95% intervals of both; ``searched`` names the candidates that were found, ``labels``
    what is written beside a candidate.
    """
    ends = ["accuracy_low", "accuracy_high", "latency_p50_low_ms", "latency_p50_high_ms"]
    needed = ["candidate", "precision", "runtime", "accuracy", "latency_p50_ms", *ends]
    require_columns(sweep, needed, what="the figure of the search")
    ax = new_axes(ax, height=5.2)
    rows = sweep.dropna(subset=["accuracy", "latency_p50_ms"])
    for found, own in rows.groupby(rows["candidate"].isin(searched)):
        for row in own.itertuples():
            _draw_point(ax, row, found=found)
        front = own.sort_values("latency_p50_ms")
        front = front[front["accuracy"] >= front["accuracy"].cummax()]
        line = {"color": INK if found else QUIET, "lw": 2, "ls": "-" if found else "--"}
        ax.step(front["latency_p50_ms"], front["accuracy"], where="post", zorder=1, **line)
    log_axis(ax.xaxis)
    percent_axis(ax.yaxis)
    ax.margins(y=0.12)
    ax.set(xlabel=label("latency_p50_ms"), ylabel=label("accuracy"))
    spots = [*zip(rows["latency_p50_ms"], rows["accuracy"], strict=True)]
    points = [(*spot, labels[name]) for spot, name in zip(spots, rows["candidate"], strict=True)]
    own = rows.iloc[0]  # a search has one precision and one runtime
    faces = {"uniform levels": "white", "found by the search": PRECISIONS[own["precision"]].color}
    marker = runtime_named(own["runtime"]).marker
    key_below(ax, [dot(text, face, marker=marker) for text, face in faces.items()])
    label_points(ax, points, avoid=spots)  # last: all else moves the axes
    return ax


def _draw_point(ax: Axes, row: Any, *, found: bool) -> None:
    """Draw a candidate with both intervals, grey and hollow where it was not searched for."""
    color = PRECISIONS[row.precision].color if found else QUIET
    style = {"color": color, "lw": 0.8, "alpha": 0.5, "zorder": 2}  # thinner than the frontiers
    ax.hlines(row.accuracy, row.latency_p50_low_ms, row.latency_p50_high_ms, **style)
    ax.vlines(row.latency_p50_ms, row.accuracy_low, row.accuracy_high, **style)
    face = {"fc": color, "ec": INK} if found else {"fc": "white", "ec": QUIET}
    marker = runtime_named(row.runtime).marker
    ax.scatter(row.latency_p50_ms, row.accuracy, s=60, marker=marker, zorder=3, **face)
