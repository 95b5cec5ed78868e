"""Predictions -> quality numbers and their intervals."""

from collections.abc import Sequence

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray
from sklearn.metrics import confusion_matrix, f1_score, precision_recall_fscore_support
from statsmodels.stats.proportion import proportion_confint


def wilson_interval(correct: int, total: int, *, confidence: float = 0.95) -> tuple[float, float]:
    """Wilson score interval (low, high) of the proportion ``correct / total``.

    Raises ``ValueError`` unless ``0 <= correct <= total``, ``total >= 1`` and
    ``0 < confidence < 1``. Source: Wilson 1927, doi:10.1080/01621459.1927.10502953.
    """
    if total < 1:
        raise ValueError(f"total is {total}; allowed: 1 or more")
    if not 0 <= correct <= total:
        raise ValueError(f"correct is {correct}; allowed: 0 to total ({total})")
    if not 0 < confidence < 1:
        raise ValueError(f"confidence is {confidence}; allowed: above 0 and below 1")
    low, high = proportion_confint(correct, total, alpha=1 - confidence, method="wilson")
    share = correct / total  # by rounding the ends may fall short of a share of 0 or 1
    return float(min(low, share)), float(max(high, share))


def quality_row(labels: ArrayLike, predictions: ArrayLike, *, num_classes: int) -> dict[str, float]:
    """Accuracy with its Wilson 95 % interval, and macro-F1, of class indices [N].

    Macro-F1 averages the classes that occur in the labels or in the predictions; a class in
    neither has no F1. Raises ``ValueError`` for empty or unequal arrays, for an index outside
    ``range(num_classes)``, and for labels of one class, on which a constant answer looks perfect.
    """
    labels, predictions = _checked(labels, predictions, num_classes=num_classes)
    if len(present := np.unique(labels)) < 2:
        raise ValueError(
            f"all {len(labels)} labels are class {present[0]}; allowed: 2 or more classes"
        )
    correct = int(np.sum(labels == predictions))
    low, high = wilson_interval(correct, len(labels))
    return {
        "accuracy": correct / len(labels),
        "accuracy_low": low,
        "accuracy_high": high,
        "macro_f1": float(f1_score(labels, predictions, average="macro")),
    }


def per_class_table(
    labels: ArrayLike, predictions: ArrayLike, *, class_names: Sequence[str]
) -> pd.DataFrame:
    """One row per class: ``class_name, support, precision, recall, f1``.

    A ratio without a denominator is NaN, not 0: the recall of a class without test images, the
    precision of a class that is never predicted.
    """
    names = _checked_names(class_names)
    labels, predictions = _checked(labels, predictions, num_classes=len(names))
    precision, recall, f1, support = precision_recall_fscore_support(
        labels, predictions, labels=range(len(names)), zero_division=np.nan
    )
    return pd.DataFrame(
        {
            "class_name": names,
            "support": support,
            "precision": precision,
            "recall": recall,
            "f1": f1,
        }
    )


def confusion_table(
    labels: ArrayLike, predictions: ArrayLike, *, class_names: Sequence[str]
) -> pd.DataFrame:
    """Image counts [K, K]: a row per true class, a column per predicted class."""
    names = _checked_names(class_names)
    labels, predictions = _checked(labels, predictions, num_classes=len(names))
    counts = confusion_matrix(labels, predictions, labels=range(len(names)))
    return pd.DataFrame(
        counts,
        index=pd.Index(names, name="true_class"),
        columns=pd.Index(names, name="predicted_class"),
    )


def agreement(predictions_a: ArrayLike, predictions_b: ArrayLike) -> float:
    """Share of images [N] on which two models name the same class."""
    first, second = _paired(predictions_a, predictions_b, names=("predictions_a", "predictions_b"))
    return float(np.mean(first == second))


def _paired(
    first: ArrayLike, second: ArrayLike, *, names: tuple[str, str]
) -> tuple[NDArray, NDArray]:
    arrays = np.asarray(first), np.asarray(second)
    for name, array in zip(names, arrays, strict=True):
        if array.ndim != 1 or array.size == 0:
            raise ValueError(f"{name} has shape {array.shape}; allowed: (N,) with N >= 1")
        if array.dtype.kind not in "iu":
            raise ValueError(f"{name} has dtype {array.dtype}; allowed: integer class indices")
    if len(arrays[0]) != len(arrays[1]):
        raise ValueError(
            f"{names[0]} has {len(arrays[0])} images and {names[1]} has {len(arrays[1])}; "
            "allowed: the same number"
        )
    return arrays


def _checked(
    labels: ArrayLike, predictions: ArrayLike, *, num_classes: int
) -> tuple[NDArray, NDArray]:
    if num_classes < 2:
        raise ValueError(f"num_classes is {num_classes}; allowed: 2 or more")
    names = ("labels", "predictions")
    arrays = _paired(labels, predictions, names=names)
    for name, array in zip(names, arrays, strict=True):
        outside = array[(array < 0) | (array >= num_classes)]
        if outside.size:
            raise ValueError(f"{name} hold class {outside[0]}; allowed: 0 to {num_classes - 1}")
    return arrays


def _checked_names(class_names: Sequence[str]) -> list[str]:
    names = list(class_names)
    repeated = sorted({name for name in names if names.count(name) > 1})
    if repeated:
        raise ValueError(f"class_names repeat {', '.join(repeated)}; allowed: distinct names")
    return names
