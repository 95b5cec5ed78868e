"""Figures of data, training and quality: table in, axes out."""

from collections.abc import Sequence
from dataclasses import replace
from functools import partial

import numpy as np
import pandas as pd
import seaborn as sns
import torch
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator
from torch import Tensor

from edgeopt.data import Split
from edgeopt.plots.annotations import beside, label_lines
from edgeopt.plots.style import INK, QUIET, dot, key_below, new_axes, percent_axis, row_height
from edgeopt.schema import require_columns, signed

FELL, ROSE = "#7B3294", "#009E73"  # of no precision
SHEET_COLUMNS = 20
GALLERY_COLUMNS = 6


def training_history(history: pd.DataFrame, *, ax: Axes | None = None) -> Axes:
    """Training and validation accuracy after each epoch, one line per ``seed`` if there are any."""
    require_columns(history, ["epoch", "train_accuracy", "val_accuracy"], what="training_history")
    ax = new_axes(ax, height=3.6)
    runs = history.groupby(history.get("seed", pd.Series(0, index=history.index)))
    ends = []
    for column, text, color, line in (
        ("train_accuracy", "training", QUIET, "--"),
        ("val_accuracy", "validation", INK, "-"),
    ):
        for _, run in runs:
            values = run[["epoch", column]].dropna()
            ax.plot(values["epoch"], values[column], ls=line, color=color, marker="o", ms=4, lw=1.4)
        if history[column].notna().any():
            mean = history.groupby("epoch")[column].mean()
            ends.append((mean.index[-1], mean.iloc[-1], text, color))
    ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    percent_axis(ax.yaxis)
    ax.set(xlabel="Epoch", ylabel="Accuracy")
    label_lines(ax, ends)
    return ax


def confusion_matrix(
    table: pd.DataFrame,
    *,
    before: pd.DataFrame | None = None,
    title: str = "",
    ax: Axes | None = None,
) -> Axes:
    """Share of each true class (row) that is predicted as each class; zeros are left blank.

    Takes image counts, true classes in the index and predicted classes in the columns. With a
    second such table, ``before``, the change from it is drawn, in points of each true class. Beside
    others, on axes given, it has no bar of colours, and labels at the edge of the figure only.
    """
    shares, written = 100 * table.div(table.sum(axis=1), axis=0), "{:.0f}".format
    bar = {"label": "Share of the true class (%)", "shrink": 0.7}
    look = {"cmap": "Blues", "vmin": 0, "vmax": 100, "cbar": ax is None, "cbar_kws": bar}
    if before is not None:
        shares = shares - 100 * before.div(before.sum(axis=1), axis=0)
        written = partial(signed, digits=0)
        most = shares.abs().max(axis=None, skipna=True)
        most = most if most > 1 else 1
        look = {"cmap": "PuOr", "vmin": -most, "vmax": most, "cbar": False}
    texts = shares.map(lambda share: written(share) if abs(share) >= 0.5 else "")
    line = {"square": True, "linewidths": 0.5, "linecolor": "#EEEEEE"}
    ax = new_axes(ax, height=5.6)
    sns.heatmap(shares, ax=ax, annot=texts, fmt="", annot_kws={"fontsize": 10}, **line, **look)
    ax.tick_params(axis="x", rotation=45)
    for text in ax.get_xticklabels():
        text.set(ha="right", rotation_mode="anchor")
    ax.set(xlabel="Predicted class", ylabel="True class", title=title)
    ax.label_outer()
    return ax


def per_class_change(before_after: pd.DataFrame, *, ax: Axes | None = None) -> Axes:
    """Recall of each class before (hollow) and after (filled) compression, largest fall on top.

    Columns: ``class_name, before, after`` and, where known, the interval of the latter,
    ``after_low, after_high``.
    """
    require_columns(before_after, ["class_name", "before", "after"], what="per_class_change")
    rows = before_after.assign(change=before_after["after"] - before_after["before"])
    rows = rows.sort_values("change", ignore_index=True)
    ax = new_axes(ax, height=row_height(len(rows)), grid="x")
    colors = rows["change"].map(lambda change: FELL if change < 0 else ROSE if change else QUIET)
    if "after_low" in rows:
        ax.hlines(rows.index, rows["after_low"], rows["after_high"], color=QUIET, lw=0.9, zorder=1)
    ax.hlines(rows.index, rows["before"], rows["after"], color=colors, lw=2.5, zorder=2)
    ax.scatter(rows["before"], rows.index, s=55, fc="white", ec=INK, zorder=3)
    ax.scatter(rows["after"], rows.index, s=55, c=colors, ec=INK, zorder=4)
    for y, row in rows.iterrows():
        right = max(row["before"], row["after"], row.get("after_high", 0))
        beside(ax, right, y, signed(100 * row["change"], digits=1))
    ax.set_yticks(rows.index, rows["class_name"])
    percent_axis(ax.xaxis)
    ax.margins(x=0.12)
    ax.invert_yaxis()
    ax.set_xlabel("Recall (change in points beside)")
    faces = {"before": "white", "after: fell": FELL, "after: rose": ROSE, "the same": QUIET}
    key_below(ax, [dot(text, face) for text, face in faces.items()])
    return ax


def sample_images(
    split: Split, *, names: Sequence[str], per_class: int = 2, ax: Axes | None = None
) -> Axes:
    """Contact sheet: the first images of each class, a column per class, as the network sees them.

    The labels are indices into ``names``, of which the first 20 are shown; a class with fewer
    images than ``per_class`` leaves places empty. ``mean`` and ``std`` are left out: they move the
    colours to where a screen cannot show them.
    """
    names = names[:SHEET_COLUMNS]
    chosen = torch.ones(per_class, len(names), *split.shape)
    for column in range(len(names)):
        places = np.flatnonzero(split.labels.numpy() == column)[:per_class]
        chosen[: len(places), column] = _plain_images(split, places)
    framed = torch.nn.functional.pad(chosen, (1, 1, 1, 1)).permute(0, 3, 1, 4, 2)
    sheet = framed.flatten(0, 1).flatten(1, 2).numpy()  # [rows * H, columns * W, C]
    ax = new_axes(ax, height=1.0 + 6.0 * per_class / len(names))
    ax.imshow(sheet.squeeze(), cmap="gray", vmin=0, vmax=1)
    width = sheet.shape[1] / len(names)
    ax.set_xticks(width * (np.arange(len(names)) + 0.5), names, rotation=40, ha="right")
    ax.tick_params(length=0)
    ax.set_yticks([])
    ax.grid(False)
    ax.spines[:].set_visible(False)
    return ax


def lost_images(
    split: Split,
    *,
    before: np.ndarray,
    after: np.ndarray,
    names: Sequence[str],
    rows: int = 2,
    ax: Axes | None = None,
) -> Axes:
    """First images that ``before`` answers right and ``after`` wrong, with the true class and that.

    ``before`` and ``after`` are predicted classes [N] of the images of ``split``, indices into
    ``names``. Where there is none the figure says so.
    """
    labels = split.labels.numpy()
    lost = np.flatnonzero((before == labels) & (after != labels))[: rows * GALLERY_COLUMNS]
    ax = new_axes(ax, height=0.4 + 1.6 * rows)
    ax.axis("off")
    ax.set(xlim=(0, GALLERY_COLUMNS), ylim=(1.5 * rows, 0), aspect="equal")
    if not len(lost):
        ax.text(0.5, 0.5, "There is no such image.", transform=ax.transAxes, ha="center")
        return ax
    for number, (place, picture) in enumerate(zip(lost, _plain_images(split, lost), strict=True)):
        row, column = divmod(number, GALLERY_COLUMNS)
        left, top = column + 0.05, 1.5 * row + 0.5
        words = f"{names[labels[place]]}\n\u2192 {names[after[place]]}"
        ax.text(column + 0.5, top - 0.06, words, ha="center", va="bottom", fontsize=10)
        box = (left, left + 0.9, top + 0.9, top)
        shown = picture.numpy().transpose(1, 2, 0).squeeze()
        ax.imshow(shown, cmap="gray", vmin=0, vmax=1, extent=box)
    return ax


def _plain_images(split: Split, places: np.ndarray) -> Tensor:
    """Images [N, C, H, W] at these positions, without mean and std."""
    return replace(split.select(places), mean=None, std=None).take(len(places))
