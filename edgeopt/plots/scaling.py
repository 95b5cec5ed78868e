"""Figure of how candidates' latency changes with threads and batch: table in, axes out."""

import pandas as pd
from matplotlib.axes import Axes

from edgeopt.plots.style import (
    INK,
    QUIET,
    dot,
    key_below,
    log_axis,
    new_axes,
    row_groups,
    row_height,
)
from edgeopt.schema import require_columns

ONE_THREAD, MORE_THREADS, LARGER_BATCH = INK, "none", QUIET


def scaling(table: pd.DataFrame, *, ax: Axes | None = None) -> Axes:
    """Milliseconds per image of every candidate, on a log axis: alone, by threads, in batches.

    Takes :func:`edgeopt.experiments.measure_scaling`. Numbers beside the markers are threads where
    the marker is hollow and images of a batch where it is grey.
    """
    needed = ["candidate", "threads", "batch_size", "ms_per_image"]
    require_columns(table, needed, what="the scaling figure")
    rows = table.dropna(subset="ms_per_image")
    names = [*dict.fromkeys(table["candidate"])]
    ax = new_axes(ax, height=row_height(2 * len(names)), grid="x")
    for row in rows.itertuples():
        height = names.index(row.candidate) + (0.2 if row.batch_size > 1 else -0.2)
        alone = row.threads == row.batch_size == 1
        face = ONE_THREAD if alone else MORE_THREADS if row.threads > 1 else LARGER_BATCH
        ax.scatter(row.ms_per_image, height, s=46, fc=face, ec=INK, zorder=3)
        number = "" if alone else f"{max(row.threads, row.batch_size)}"
        ax.annotate(
            number,
            (row.ms_per_image, height),
            (0, 5),
            textcoords="offset points",
            ha="center",
            fontsize=9,
        )
    log_axis(ax.xaxis)
    row_groups(ax, names)
    ax.set_xlabel("Latency per image (ms), lower is better")
    key_below(
        ax,
        [
            dot("one thread, one image", ONE_THREAD),
            dot("more threads", MORE_THREADS),
            dot("batches, one thread", LARGER_BATCH),
        ],
    )
    return ax
