"""Figure of how candidates' latency changes with threads and batch: table in, axes out."""

import pandas as pd
from matplotlib.axes import Axes

from edgeopt.plots.annotations import beside
from edgeopt.plots.style import (
    INK,
    QUIET,
    dot,
    key_below,
    log_axis,
    new_axes,
    row_groups,
)
from edgeopt.schema import require_columns

ONE_THREAD, MORE_THREADS, LARGER_BATCH = INK, "none", QUIET
LINE_HEIGHT = 0.17  # inches of a marker with its number


def scaling(table: pd.DataFrame, *, ax: Axes | None = None) -> Axes:
    """Milliseconds per image of every candidate, on a log axis: alone, by threads, in batches.

    Takes :func:`edgeopt.experiments.measure_scaling`. Numbers beside the markers are threads where
    the marker is hollow and images of a batch where it is grey.
    """
    needed = ["candidate", "threads", "batch_size", "ms_per_image"]
    require_columns(table, needed, what="the scaling figure")
    rows = table.dropna(subset="ms_per_image")
    names = [*dict.fromkeys(table["candidate"])]
    settings = sorted({*zip(rows["batch_size"], rows["threads"], strict=True)})
    height = 1.1 + LINE_HEIGHT * len(names) * (len(settings) + 1)
    ax = new_axes(ax, height=height, grid="x")
    for row in rows.itertuples():
        place = settings.index((row.batch_size, row.threads)) + 1
        y = names.index(row.candidate) + place / (len(settings) + 1) - 0.5
        alone = row.threads == row.batch_size == 1
        face = ONE_THREAD if alone else MORE_THREADS if row.threads > 1 else LARGER_BATCH
        ax.scatter(row.ms_per_image, y, s=36, fc=face, ec=INK, zorder=3)
        if not alone:
            beside(ax, row.ms_per_image, y, f"{max(row.threads, row.batch_size)}")
    ax.margins(x=0.12)  # for the numbers
    log_axis(ax.xaxis)
    row_groups(ax, names)
    ax.set_xlabel("Latency per image (ms)")
    key_below(
        ax,
        [
            dot("one thread, one image", ONE_THREAD),
            dot("more threads", MORE_THREADS),
            dot("batches, one thread", LARGER_BATCH),
        ],
    )
    return ax
