"""How every figure looks: a colour per precision, a marker per runtime, units on the axes."""

from collections.abc import Sequence

import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import (
    EngFormatter,
    FuncFormatter,
    LogLocator,
    NullFormatter,
    PercentFormatter,
)

from edgeopt.runtimes import registered, runtime_named
from edgeopt.schema import PRECISIONS
from edgeopt.study import show_tables

# For series that are neither precisions nor runtimes: colour, marker, line style.
SERIES = (
    ("#CC79A7", "v", "--"),
    ("#009E73", "o", "-"),
    ("#666666", "s", ":"),
    ("#7B3294", "X", "-."),
)
INK = "#222222"
QUIET = "#777777"
WIDTH = 6.4  # inches: a full-width figure of a page, still legible when scaled to a phone
RC = {
    "figure.figsize": (WIDTH, 4.2),
    "figure.constrained_layout.use": True,
    "figure.dpi": 110,
    "savefig.dpi": 160,
    "font.size": 11.5,
    "axes.labelsize": 12,
    "axes.titlesize": 12.5,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "xtick.labelsize": 11,
    "ytick.labelsize": 11,
    "legend.fontsize": 10.5,
    "legend.frameon": False,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": QUIET,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#E3E3E3",
    "grid.linewidth": 0.8,
    "lines.linewidth": 1.8,
    "hatch.linewidth": 0.6,
}


def use_style() -> None:
    """Set how a notebook's figures and tables look.

    ``plt.rc_context(RC)`` sets the figures' alone, for a block.
    """
    mpl.rcParams.update(RC)
    pd.set_option("display.max_colwidth", None)
    show_tables()


def new_axes(ax: Axes | None, *, height: float = 4.2, grid: str = "both") -> Axes:
    """Return ``ax``, or the axes of a new figure of full width, with a grid along ``grid``."""
    if ax is None:
        from matplotlib import pyplot

        _, ax = pyplot.subplots(figsize=(WIDTH, height), layout="constrained")
    if grid != "both":
        ax.grid(False, axis="x" if grid == "y" else "y")
    return ax


def row_height(count: int) -> float:
    """Height in inches of a figure with ``count`` labelled rows."""
    return 1.3 + 0.32 * count


def log_axis(axis: Axis, *, unit: str = "") -> None:
    """Make an axis logarithmic with plain numbers at 1, 2 and 5 of each decade.

    With a ``unit`` the numbers carry it with an SI prefix, e.g. ``5 µJ``.
    """
    axis.axes.set(**{f"{axis.axis_name}scale": "log"})
    low, high = axis.get_view_interval()
    subs = (1, 2, 5) if np.log10(high / low) < 2.5 else (1,)
    axis.set_major_locator(LogLocator(subs=subs))
    plain = FuncFormatter(lambda value, _: f"{value:g}")
    axis.set_major_formatter(EngFormatter(unit) if unit else plain)
    axis.set_minor_formatter(NullFormatter())


def percent_axis(axis: Axis) -> None:
    """Write shares on an axis as percentages."""
    axis.set_major_formatter(PercentFormatter(1.0))


def key_below(ax: Axes, *groups: Sequence[Line2D | Patch]) -> None:
    """Put a legend under the figure, where it covers no data; each group starts a new column."""
    rows = min(3, max(map(len, groups))) if len(groups) > 1 else 1
    blank = Patch(alpha=0, label=" ")
    filled = [[*group, *[blank] * (-len(group) % rows)] for group in groups]
    handles = [handle for group in filled for handle in group]
    ax.figure.legend(
        handles=handles,
        loc="outside lower center",
        ncols=len(handles) // rows,
        handlelength=1.3,
        handletextpad=0.5,
        columnspacing=1.3,
    )


def precision_key(df: pd.DataFrame) -> list[Patch]:
    """Legend entries for the precisions that a table has."""
    found = [name for name in PRECISIONS if name in set(df["precision"])]
    return [Patch(fc=PRECISIONS[name].color, ec=INK, label=name) for name in found]


def runtime_key(df: pd.DataFrame) -> list[Line2D]:
    """Legend entries for the runtimes that a table has."""
    style = {"color": QUIET, "ls": ""}
    found = [runtime_named(name) for name in registered() if name in set(df["runtime"])]
    return [
        Line2D([], [], marker=runtime.marker, label=runtime.title, **style) for runtime in found
    ]


def dot(text: str, face: str) -> Line2D:
    """Legend entry of a round marker."""
    return Line2D([], [], marker="o", ls="", mfc=face, mec=INK, label=text)
