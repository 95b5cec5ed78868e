"""Figures of pruning, quantization, its collapse and its recovery: table in, axes out."""

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from edgeopt.plots.annotations import FONT_SIZE, beside, bound, label_lines
from edgeopt.plots.style import INK, dot, key_below, new_axes, percent_axis, row_height
from edgeopt.quantization import OUTLIER
from edgeopt.runtimes import runtime_named
from edgeopt.schema import (
    PRECISIONS,
    PRUNED_RECIPES,
    display_unit,
    label,
    require_columns,
    significant,
)

ALONE = "#9DB4C0"
# For series that are neither precisions nor runtimes: colour, marker, line style.
SERIES = (
    ("#CC79A7", "v", "--"),
    ("#009E73", "o", "-"),
    ("#666666", "s", ":"),
    ("#7B3294", "X", "-."),
)


def pruning_curves(df: pd.DataFrame, *, ax: Axes | None = None) -> Axes:
    """Accuracy over the pruning level, one line per recipe, from the baseline on.

    Several rows per point are seeds: the line is their mean and the bar their range. A single row
    has its Wilson interval, where the table has one.
    """
    require_columns(df, ["pruning_level", "accuracy", "recipe"], what="pruning_curves")
    ax = new_axes(ax)
    pruned, start = df[df["pruning_level"] > 0], df[df["pruning_level"] == 0]
    ends = []
    for name, (color, marker, line) in zip(PRUNED_RECIPES, SERIES, strict=False):
        rows = pruned[pruned["recipe"] == name]
        if rows.empty:
            continue
        points = _points_with_bars(pd.concat([start, rows]))
        reach = points[["below", "above"]].T
        style = {"color": color, "marker": marker, "ls": line, "ms": 7, "capsize": 3}
        ax.errorbar(points.index, points["mean"], reach, **style)
        ends.append((points.index[-1], points["mean"].iloc[-1], name, color))
    percent_axis(ax.xaxis)
    percent_axis(ax.yaxis)
    ax.set(xlabel=label("pruning_level"), ylabel=label("accuracy"))
    label_lines(ax, ends)
    return ax


def filter_norms(norms: pd.DataFrame, *, ax: Axes | None = None) -> Axes:
    """L1 norm of every filter, largest first, a line per layer; columns ``layer, l1_norm``."""
    require_columns(norms, ["layer", "l1_norm"], what="filter_norms")
    ax = new_axes(ax, height=3.8)
    handles = []
    for index, (layer, rows) in enumerate(norms.groupby("layer", sort=False)):
        color, marker, line = SERIES[index % len(SERIES)]
        ranked = rows["l1_norm"].sort_values(ascending=False)
        rank = np.arange(1, len(ranked) + 1)
        ax.plot(rank, ranked, ls=line, color=color, lw=1, zorder=1)
        ax.scatter(rank, ranked, color=color, marker=marker, s=48, zorder=2)
        handles.append(Line2D([], [], color=color, marker=marker, ls=line, label=layer))
    key_below(ax, handles)
    ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    ax.set(xlabel="Rank of the filter in its layer", ylabel="L1 norm of the filter", ylim=(0, None))
    return ax


def quantization(table: pd.DataFrame, *, ax: Axes | None = None) -> Axes:
    """Weights of every precision and runtime as bars, with the agreement with fp32 beside them."""
    needed = ["runtime", "precision", "weight_bytes", "agreement"]
    require_columns(table, needed, what="the quantization figure")
    rows = table.dropna(subset=["weight_bytes"]).sort_values("weight_bytes", ignore_index=True)
    ax = new_axes(ax, height=row_height(len(rows)), grid="x")
    scale, unit = display_unit("weight_bytes", rows["weight_bytes"].max())
    for y, row in rows.iterrows():
        weights, look = scale * row["weight_bytes"], PRECISIONS[row["precision"]]
        ax.barh(y, weights, color=look.color, hatch=look.hatch, ec="white", lw=0)
        beside(ax, weights, y, f"{significant(weights)} {unit}, {row['agreement']:.1%}")
    titles = rows["runtime"].map(lambda name: runtime_named(name).title)
    ax.set_yticks(rows.index, titles + " " + rows["precision"])
    ax.set_xlim(0, 1.6 * scale * rows["weight_bytes"].max())
    ax.invert_yaxis()
    ax.set(xlabel=f"Weights ({unit})", title="Weights, top-1 agreement with fp32")
    return ax


def diagnosis_bars(diagnosis: pd.DataFrame, *, rows: int = 12, ax: Axes | None = None) -> Axes:
    """Signal-to-noise ratio of the tensors that eight bits hold worst.

    Takes :func:`edgeopt.experiments.diagnose` in its order, worst first. Beside each tensor stand
    the accuracy with only it rounded, of the worst ones, and, where one channel is wider than the
    median one by :data:`edgeopt.quantization.OUTLIER` times, that channel; such a tensor is dark.
    """
    needed = ["layer", "sqnr_db", "accuracy_alone", "worst_channel", "outlier_ratio"]
    require_columns(diagnosis, needed, what="the diagnosis figure")
    worst = diagnosis.head(rows).reset_index(drop=True)
    ax = new_axes(ax, height=0.5 + row_height(len(worst)), grid="x")
    outlier = worst["outlier_ratio"] > OUTLIER
    colors = np.where(outlier, INK, ALONE)
    ax.scatter(worst["sqnr_db"], worst.index, s=70, c=colors, ec=INK, zorder=2)
    for y, row in worst.iterrows():
        accuracy = f"{row['accuracy_alone']:.1%}" if pd.notna(row["accuracy_alone"]) else ""
        channel = f"channel {row['worst_channel']}" if outlier[y] else ""
        _write_in_margin(ax, y, ", ".join(filter(None, [accuracy, channel])))
    _write_in_margin(ax, -0.75, "accuracy, it alone in int8")
    ax.set_yticks(worst.index, worst["layer"])
    ax.set_ylim(len(worst) - 0.4, -0.6)
    ax.set_xlabel("Signal-to-quantization-noise ratio (dB)")
    if outlier.any():
        key_below(ax, [dot("no channel far wider", ALONE), dot("one channel far wider", INK)])
    return ax


def recovery(attempts: pd.DataFrame, *, target: float, ax: Axes | None = None) -> Axes:
    """Accuracy after each remedy, in the order tried, with what it costs beside it.

    Columns: ``remedy, accuracy`` (NaN where the remedy failed), ``latency_ms`` (NaN where it was
    not measured), ``int8_mac_share``, which is written where only a part is int8, and ``reached``:
    such steps are filled; ``simulated``, where it is there: such dots are dotted, and it is
    written. ``target`` is the accuracy that is wanted; the first row is fp32.
    """
    needed = ["remedy", "accuracy", "latency_ms", "int8_mac_share", "reached"]
    require_columns(attempts, needed, what="the recovery figure")
    steps = attempts.reset_index(drop=True)
    ax = new_axes(ax, height=0.3 + row_height(len(steps)), grid="x")
    colors = np.where(steps.index == 0, PRECISIONS["fp32"].color, PRECISIONS["int8"].color)
    faces = np.where(steps["reached"] | (steps.index == 0), colors, "white")
    guessed = steps.get("simulated", pd.Series(False, steps.index)).astype(bool)
    for told, line in ((~guessed, "-"), (guessed, ":")):
        own = {"c": faces[told], "ec": colors[told], "ls": line, "lw": 1.6, "zorder": 2}
        ax.scatter(steps["accuracy"][told], steps.index[told], s=70, **own)
    for y, step in steps.iterrows():
        _write_in_margin(ax, y, _step_words(step))
    bound(ax, target, f"wanted: {target:.1%}")
    ax.set_yticks(steps.index, steps["remedy"])
    ax.set_ylim(len(steps) - 0.4, -0.6)
    percent_axis(ax.xaxis)
    ax.xaxis.set_major_locator(MaxNLocator(nbins=3))
    ax.set_xlabel(label("remedy_accuracy"))
    return ax


def _step_words(step: pd.Series) -> str:
    if pd.isna(step["accuracy"]):
        return "failed"
    latency = f", {step['latency_ms']:.3g} ms" if pd.notna(step["latency_ms"]) else ""
    share = f", {step['int8_mac_share']:.0%} int8" if 0 < step["int8_mac_share"] < 1 else ""
    guess = ", simulated" if step.get("simulated", False) else ""
    return f"{step['accuracy']:.1%}{latency}{share}{guess}"


def _write_in_margin(ax: Axes, y: float, text: str) -> None:
    place = ("axes fraction", "data")
    ax.annotate(text, (1.02, y), xycoords=place, va="center", fontsize=FONT_SIZE)


def _points_with_bars(rows: pd.DataFrame) -> pd.DataFrame:
    """Mean per pruning level, with the reach of the bar below and above it."""
    groups = rows.groupby("pruning_level")["accuracy"]
    low, high = groups.min(), groups.max()
    mean = groups.mean().clip(low, high)  # that of equal numbers may be off in its last bit
    if groups.size().max() == 1 and "accuracy_low" in rows:
        interval = rows.set_index("pruning_level").loc[mean.index]
        low, high = interval["accuracy_low"], interval["accuracy_high"]
    return pd.DataFrame({"mean": mean, "below": mean - low, "above": high - mean})
