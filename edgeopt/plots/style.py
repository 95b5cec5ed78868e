"""How every figure looks: a colour per precision, a marker per runtime, units on the axes."""

from collections.abc import Sequence

import numpy as np
import pandas as pd
from matplotlib import ticker
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from edgeopt.runtimes import registered, runtime_named
from edgeopt.schema import MINUS, PRECISIONS

INK = "#222222"
QUIET = "#777777"
NAME_HEIGHT = 0.21  # inches of a line in a legend
WIDTH = 6.4  # inches: a full-width figure of a page, still legible when scaled to a phone


def new_axes(ax: Axes | None, *, height: float = 4.2, grid: str = "both") -> Axes:
    """Return ``ax``, or the axes of a new figure of full width; grid "x" is vertical lines."""
    if ax is None:
        from matplotlib import pyplot

        _, ax = pyplot.subplots(figsize=(WIDTH, height), layout="constrained")
    if grid == "x":
        ax.grid(False, axis="y")
    return ax


def row_height(count: int) -> float:
    """Height in inches of a figure with ``count`` labelled rows."""
    return 1.1 + 0.26 * count


def row_groups(ax: Axes, names: Sequence[str]) -> None:
    """Name groups of rows, one a unit of height, the first on top, with thin lines between them."""
    ax.set_yticks(range(len(names)), names)
    ax.set_ylim(len(names) - 0.5, -0.5)
    borders = np.arange(1, len(names)) - 0.5
    ax.hlines(borders, 0, 1, QUIET, lw=0.6, transform=ax.get_yaxis_transform())


def log_axis(axis: Axis, *, unit: str = "") -> None:
    """Make an axis logarithmic with plain numbers at 1, 2 and 5 of each decade.

    With a ``unit`` the numbers carry it with an SI prefix, e.g. ``5 µJ``.
    """
    axis.axes.set(**{f"{axis.axis_name}scale": "log"})
    low, high = axis.get_view_interval()
    subs = (1, 2, 5) if np.log10(high / low) < 2.5 else (1,)
    # A narrow range holds one of these or none; LogLocator would then set too many.
    few = ticker.MaxNLocator(4)
    axis.set_major_locator(few if high < 2.5 * low else ticker.LogLocator(subs=subs))
    axis.set_major_formatter(ticker.EngFormatter(unit) if unit else "{x:g}")
    axis.set_minor_formatter(ticker.NullFormatter())


def percent_axis(axis: Axis) -> None:
    """Write shares on an axis as percentages."""
    axis.set_major_formatter(lambda share, _: f"{100 * share:.4g}%".replace("-", MINUS))


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


def key_above(ax: Axes, entries: Sequence[Line2D]) -> None:
    """Put a legend of names over the axes, one a line; the figure grows by it."""
    figure = ax.figure
    figure.set_figheight(figure.get_figheight() + NAME_HEIGHT * len(entries))
    figure.legend(handles=entries, loc="outside upper left", handletextpad=0.3)


def candidate_key(df: pd.DataFrame) -> tuple[list[Patch], list[Line2D]]:
    """Legend entries for the precisions that a table has, and for the runtimes if it has any."""
    precisions = [name for name in PRECISIONS if name in set(df["precision"])]
    runtimes = [runtime_named(name) for name in registered() if name in set(df.get("runtime", ()))]
    return (
        [Patch(fc=PRECISIONS[name].color, ec=INK, label=name) for name in precisions],
        [Line2D([], [], marker=r.marker, label=r.title, color=QUIET, ls="") for r in runtimes],
    )


def dot(text: str, face: str, *, marker: str = "o") -> Line2D:
    """Legend entry of a marker."""
    return Line2D([], [], marker=marker, ls="", mfc=face, mec=INK, label=text)
