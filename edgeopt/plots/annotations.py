"""Text in figures that covers neither marks nor other text."""

from collections.abc import Sequence

import numpy as np
from matplotlib import patheffects
from matplotlib.axes import Axes
from matplotlib.text import Annotation
from matplotlib.transforms import Bbox

from edgeopt.plots.style import INK, QUIET

# Where a label may sit relative to its point: points of distance, then direction.
OFFSETS = [
    (radius * np.cos(angle), radius * np.sin(angle))
    for radius in (9, 16, 26, 38, 52, 70, 90, 115)
    for angle in np.radians((30, -30, 150, -150, 0, 180, 90, -90, 60, -60, 120, -120))
]
FONT_SIZE = 10
HALO = [patheffects.withStroke(linewidth=3, foreground="white")]


def beside(ax: Axes, x: float, y: float, text: str, *, left: bool = False) -> Annotation:
    """Write a value to the right of its mark, or to its left."""
    shift, side = (-7, "right") if left else (7, "left")
    style = {"va": "center", "fontsize": FONT_SIZE, "path_effects": HALO}
    return ax.annotate(text, (x, y), (shift, 0), textcoords="offset points", ha=side, **style)


def bound(ax: Axes, x: float, text: str, *, width: float = 1.2) -> None:
    """Draw a vertical dashed line with its name above the axes."""
    ax.axvline(x, color=INK, ls="--", lw=width, zorder=1)
    place = ("data", "axes fraction")
    ax.annotate(text, (x, 1), (0, 3), place, "offset points", ha="center", fontsize=FONT_SIZE)


def label_points(
    ax: Axes,
    points: Sequence[tuple[float, float, str]],
    *,
    avoid: Sequence[tuple[float, float]],
    weight: str = "normal",
) -> list[Annotation]:
    """Write ``(x, y, text)`` near each point, where it covers neither a mark nor another text."""
    figure = ax.figure
    figure.draw_without_rendering()  # settles the layout, so that extents are final
    frame = ax.get_window_extent()
    marks = [Bbox.from_bounds(x - 8, y - 8, 16, 16) for x, y in ax.transData.transform(avoid)]
    taken = [text.get_window_extent() for text in ax.texts]
    labels = []
    for x, y, text in points:
        note = ax.annotate(text, (x, y), weight=weight, fontsize=FONT_SIZE)
        size, anchor = note.get_window_extent().size, ax.transData.transform((x, y))
        shifts = [np.asarray(offset) * figure.dpi / 72 for offset in OFFSETS]
        corners = [anchor + shift - _sides(shift) * size for shift in shifts]
        boxes = [Bbox.from_bounds(*corner, *size) for corner in corners]
        cost = [
            box.count_overlaps(marks) + 4 * box.count_overlaps(taken) + 50 * _outside(box, frame)
            for box in boxes
        ]
        best = int(np.argmin(cost + 0.012 * np.hypot(*np.transpose(OFFSETS))))
        note.remove()
        taken.append(boxes[best])
        labels.append(_annotate_at(ax, (x, y), text, OFFSETS[best], weight=weight))
    return labels


def _sides(offset: Sequence[float]) -> np.ndarray:
    """Which point of a text's box faces its mark, as shares of its width and height."""
    return np.array([0.0 if shift > 1 else 1.0 if shift < -1 else 0.5 for shift in offset])


def _outside(box: Bbox, frame: Bbox) -> float:
    """Share of a box that sticks out of a frame."""
    inside = Bbox.intersection(box, frame)
    return 1 - (inside.width * inside.height if inside else 0) / (box.width * box.height)


def _annotate_at(
    ax: Axes, xy: tuple[float, float], text: str, offset: tuple[float, float], *, weight: str
) -> Annotation:
    horizontal, vertical = _sides(offset)
    leader = {"arrowstyle": "-", "color": QUIET, "lw": 0.8, "shrinkA": 0, "shrinkB": 5}
    return ax.annotate(
        text,
        xy,
        offset,
        textcoords="offset points",
        ha={0.0: "left", 1.0: "right", 0.5: "center"}[horizontal],
        va={0.0: "bottom", 1.0: "top", 0.5: "center"}[vertical],
        arrowprops={**leader, "relpos": (horizontal, vertical)},
        fontsize=FONT_SIZE,
        weight=weight,
        path_effects=HALO,
        zorder=6,
        in_layout=False,
    )


def label_lines(ax: Axes, ends: Sequence[tuple[float, float, str, str]]) -> list[Annotation]:
    """Write ``(x, y, text, colour)`` beside line ends, in one column, pushed apart vertically."""
    ax.figure.draw_without_rendering()
    ordered = sorted(ends, key=lambda end: end[1])
    right = max((x for x, *_ in ordered), default=0)
    heights = [ax.transData.transform((right, y))[1] for _, y, *_ in ordered]
    gap = 1.2 * FONT_SIZE * ax.figure.dpi / 72
    slots = np.maximum.accumulate(heights - gap * np.arange(len(heights)))
    spread = slots + gap * np.arange(len(heights))
    shifts = (spread - np.mean(spread) + np.mean(heights) - heights) * 72 / ax.figure.dpi
    style = {"va": "center", "fontsize": FONT_SIZE, "weight": "bold", "annotation_clip": False}
    return [
        ax.annotate(text, (right, y), (11, dy), textcoords="offset points", color=color, **style)
        for (_, y, text, color), dy in zip(ordered, shifts, strict=True)
    ]
