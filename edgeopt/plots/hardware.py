"""Figures of time and hardware: table in, axes out; estimates never look like measurements."""

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import MaxNLocator

from edgeopt.plots.annotations import HALO, beside, label_lines, label_points
from edgeopt.plots.style import (
    INK,
    QUIET,
    candidate_key,
    key_below,
    log_axis,
    new_axes,
    percent_axis,
    row_groups,
    row_height,
)
from edgeopt.runtimes import runtime_named
from edgeopt.schema import PRECISIONS, require_columns, significant

ESTIMATE = {"fc": "white", "ec": QUIET, "hatch": "////", "lw": 1.2}


def latency_distribution(
    samples: pd.DataFrame, candidates: pd.DataFrame, *, rows: int = 24, ax: Axes | None = None
) -> Axes:
    """Every raw latency sample and its box per candidate, the ``rows`` fastest, fastest on top.

    ``samples`` has ``candidate, latency_ms``; ``candidates`` says what each is (``candidate,
    precision, runtime, pruning_level``). Boxes span the quartiles, whiskers the 5th to 95th
    percentile.
    """
    groups = samples.groupby("candidate")["latency_ms"]
    medians = groups.median().sort_values()
    order = medians.index[:rows]
    known = candidates.set_index("candidate").loc[order]
    ax = new_axes(ax, height=row_height(len(order)), grid="x")
    for y, (name, row) in enumerate(known.iterrows()):
        _draw_samples(ax, groups.get_group(name), y, color=PRECISIONS[row["precision"]].color)
    ax.set_yticks(range(len(order)), order)
    log_axis(ax.xaxis)
    ax.set_ylim(len(order) - 0.4, -0.6)
    ax.set_xlabel("Latency of one call (ms)")
    if len(order) < len(medians):
        ax.set_title(f"{len(order)} fastest of {len(medians)} candidates")
    return ax


def drift(samples: pd.DataFrame, *, ax: Axes | None = None) -> Axes:
    """Median latency of each round relative to the candidate's own median, over the rounds.

    Thin lines are candidates, the thick line is their median: the machine's drift, which hits
    all candidates alike because the rounds are interleaved. The highest of those that a round
    took ten percent above their median, three at most, are named.
    """
    require_columns(samples, ["candidate", "round", "latency_ms"], what="drift")
    rounds = samples.pivot_table(
        index="round", columns="candidate", values="latency_ms", aggfunc="median"
    )
    relative = rounds / samples.groupby("candidate")["latency_ms"].median()
    ax = new_axes(ax, height=3.6)
    thin, thick = {"color": QUIET, "lw": 0.8}, {"color": INK, "lw": 2.6, "marker": "o", "ms": 4}
    ax.plot(relative.index, relative, alpha=0.5, **thin)
    ax.plot(relative.index, relative.median(axis=1), **thick)
    percent_axis(ax.yaxis)
    ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    peaks = relative.max().nlargest(3)
    names = [(relative[name].idxmax(), y, name) for name, y in peaks.items() if y > 1.1]
    ax.set(xlabel="Round", ylabel="Median latency\n(% of own median)")
    key = [Line2D([], [], label="one candidate", **thin), Line2D([], [], label="median", **thick)]
    key_below(ax, key)
    label_points(ax, names, avoid=[(x, y) for x, y, _ in names])  # last: all else moves the axes
    return ax


def layer_breakdown(table: pd.DataFrame, *, rows: int = 15, ax: Axes | None = None) -> Axes:
    """Each layer's share of the MACs (hatched) beside its share of the measured time (solid).

    The ``rows`` layers with the most measured time, in call order; shares are of all layers.
    """
    require_columns(table, ["layer", "macs", "measured_ms"], what="layer_breakdown")
    costs = table[["macs", "measured_ms"]]
    shown = (costs / costs.sum()).nlargest(rows, "measured_ms").sort_index()
    ax = new_axes(ax, height=0.4 + 1.3 * row_height(len(shown)), grid="x")
    y = np.arange(len(shown))
    ax.barh(y - 0.19, shown["macs"], 0.36, **ESTIMATE)
    ax.barh(y + 0.19, shown["measured_ms"], 0.36, color=INK)
    ax.set_yticks(y, table.loc[shown.index, "layer"])
    percent_axis(ax.xaxis)
    ax.invert_yaxis()
    ax.set_xlabel("Share of the whole network (%)")
    estimate = Patch(**ESTIMATE, label="estimate: MACs")
    key_below(ax, [estimate, Patch(color=INK, label="measured time")])
    return ax


def roofline(points: pd.DataFrame, ceilings: pd.DataFrame, *, ax: Axes | None = None) -> Axes:
    """Achieved rate over arithmetic intensity, under the roofs of the machine.

    ``points`` has the columns of :func:`edgeopt.hardware.hardware_summary` and ``runtime``,
    ``ceilings`` those of :func:`edgeopt.hardware.measure_ceilings`; the slope is solid for DRAM,
    dotted for the cache.
    """
    x_col, y_col = "arithmetic_intensity", "achieved_gmacs"
    require_columns(points, ["runtime", "precision", x_col, y_col], what="the roofline's points")
    needed = ["name", "precision", "value", "kind"]
    require_columns(ceilings, needed, what="the roofline's ceilings")
    ax = new_axes(ax, height=5.4)
    names = _draw_roofs(ax, ceilings, intensities=points[x_col])
    for _, point in points.iterrows():
        marker = runtime_named(point["runtime"]).marker
        color = PRECISIONS[point["precision"]].color
        ax.scatter(point[x_col], point[y_col], color=color, marker=marker, ec=INK, s=75, zorder=4)
    ax.set_ylim(points[y_col].min() / 3, 3 * ceilings["value"].max())
    ax.set(xlabel="Arithmetic intensity (MACs per byte)", ylabel="Achieved rate (GMAC/s)")
    key_below(ax, *candidate_key(points))
    label_lines(ax, names)
    return ax


def device_estimates(estimates: pd.DataFrame, *, ax: Axes | None = None) -> Axes:
    """Estimated latency per device and candidate, hollow and dotted: nothing here is measured.

    Takes :func:`edgeopt.hardware.estimate_on_devices` with the candidates' ``runtime`` and
    ``pruning_level``.
    """
    low, high = "latency_estimate_ms", "latency_estimate_high_ms"
    needed = ["device", "candidate", "precision", "runtime", "pruning_level", low, high]
    require_columns(estimates, [*needed, "fits_ram", "fits_flash"], what="device_estimates")
    estimates = estimates.assign(**{high: estimates[high].fillna(estimates[low])})
    devices = list(dict.fromkeys(estimates["device"]))
    candidates = list(dict.fromkeys(estimates["candidate"]))
    pitch = 1 / (len(candidates) + 1)
    ax = new_axes(ax, height=1.8 + 0.24 * len(devices) / pitch, grid="x")
    left = estimates[low].min() / 3
    for _, row in estimates.iterrows():
        y = devices.index(row["device"]) + pitch * (candidates.index(row["candidate"]) + 1) - 0.5
        color, marker = PRECISIONS[row["precision"]].color, runtime_named(row["runtime"]).marker
        if pd.notna(row[low]):
            ax.hlines(y, left, row[low], color=color, ls=":", lw=1)
            ax.hlines(y, row[low], row[high], color=color, lw=1)
            ax.scatter(row[low], y, s=45, marker=marker, fc="white", ec=color, zorder=3)
        beside(ax, left if pd.isna(row[low]) else row[high], y, _estimate_words(row))
    log_axis(ax.xaxis)
    ax.set_xlim(left, estimates[high].max() * 60)
    row_groups(ax, devices)
    ax.set(xlabel="Latency, estimate (ms)", title="Estimates, not measurements")
    key_below(ax, *candidate_key(estimates))
    return ax


def _estimate_words(row: pd.Series) -> str:
    level = f", {row['pruning_level']:.0%} pruned" if row["pruning_level"] else ", unpruned"
    if pd.isna(row["latency_estimate_ms"]):
        return f"no rate known for {row['precision']}{level}"
    ends = row[["latency_estimate_ms", "latency_estimate_high_ms"]].unique()
    words = " to ".join(significant(float(f"{end:.2g}")) for end in ends)
    fits = "" if row["fits_ram"] and row["fits_flash"] else " (does not fit)"
    return f"{words}{level}{fits}"


def _draw_samples(ax: Axes, values: pd.Series, y: int, *, color: str) -> None:
    heights = y + np.random.default_rng(0).uniform(-0.36, 0.36, len(values))
    ax.plot(values, heights, ".", ms=2, alpha=0.3, color=color, zorder=1, rasterized=True)
    ax.boxplot(
        [values],
        positions=[y],
        orientation="horizontal",
        whis=(5, 95),
        widths=0.45,
        showfliers=False,
        patch_artist=True,
        manage_ticks=False,
        boxprops={"fc": color, "ec": INK},
        medianprops={"color": "white", "lw": 1.6},
    )


def _draw_roofs(
    ax: Axes, ceilings: pd.DataFrame, *, intensities: pd.Series
) -> list[tuple[float, float, str, str]]:
    """Draw a roof per precision and a slope per memory level; the roofs' names are returned."""
    kind = ceilings["kind"]
    ceilings = ceilings.assign(kind=np.where(kind == "measured", "", " (" + kind + ")"))
    compute = ceilings[ceilings["name"] == "compute"]
    slopes = ceilings[ceilings["name"].isin(["memory", "cache"])]
    top, ridge = compute["value"].max(), compute["value"].max() / slopes["value"].min()
    low, high = min(intensities.min(), ridge / 8) / 3, max(intensities.max(), ridge) * 3
    ax.set(xlim=(low, high))
    log_axis(ax.xaxis)
    log_axis(ax.yaxis)
    small = {"textcoords": "offset points", "fontsize": 10, "path_effects": HALO}
    for _, slope in slopes.iterrows():
        cached = slope["name"] == "cache"
        ends = np.array([low, top / slope["value"]])
        ax.plot(ends, slope["value"] * ends, ls=":" if cached else "-", color=QUIET, lw=1.6)
        text = f"{'cache' if cached else 'DRAM'} {slope['value']:.0f} GB/s{slope['kind']}"
        ax.annotate(text, (ends[1], top), (0, 4), ha="right" if cached else "center", **small)
    names = []
    for _, roof in compute.iterrows():
        color, line = PRECISIONS[roof["precision"]].color, PRECISIONS[roof["precision"]].line
        ax.hlines(roof["value"], roof["value"] / slopes["value"].max(), high, color=color, ls=line)
        text = f"{roof['precision']} {roof['value']:.0f} GMAC/s{roof['kind']}"
        names.append((high, roof["value"], text, INK))
    return names
