"""Predictions -> quality numbers and their intervals."""

from collections.abc import Sequence

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray
from sklearn.metrics import confusion_matrix, f1_score, precision_recall_fscore_support
from statsmodels.stats.proportion import proportion_confint

from edgeopt.schema import require_at_least


def wilson_interval(correct: int, total: int, *, confidence: float = 0.95) -> tuple[float, float]:
    """Wilson score interval (low, high) of the proportion ``correct / total``.

    Raises ``ValueError`` unless ``0 <= correct <= total``, ``total >= 1`` and
    ``0 < confidence < 1``. Source: Wilson 1927, doi:10.1080/01621459.1927.10502953.
    """
    require_at_least(1, total=total)
    if not 0 <= correct <= total:
        raise ValueError(f"correct is {correct}; allowed: 0 to total ({total})")
    if not 0 < confidence < 1:
        raise ValueError(f"confidence is {confidence}; allowed: above 0 and below 1")
    low, high = proportion_confint(correct, total, alpha=1 - confidence, method="wilson")
    share = correct / total  # by rounding the ends may fall short of a share of 0 or 1
    return float(min(low, share)), float(max(high, share))


def quality_row(labels: ArrayLike, predictions: ArrayLike, *, num_classes: int) -> dict[str, float]:
    """Accuracy with its Wilson 95% interval, and macro-F1, of class indices [N].

    Macro-F1 averages the classes that occur in the labels or in the predictions; a class in
    neither has no F1. Raises ``ValueError`` for empty or unequal arrays, for an index outside
    ``range(num_classes)``, and for labels of one class, on which a constant answer looks perfect.
    """
    labels, predictions = _checked(labels, predictions, num_classes=num_classes)
    if (labels == labels[0]).all():
        raise ValueError(
            f"all {len(labels)} labels are class {labels[0]}; allowed: 2 or more classes"
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
    numbers = precision_recall_fscore_support(
        labels, predictions, labels=range(len(names)), zero_division=np.nan
    )
    columns = zip(("precision", "recall", "f1", "support"), numbers, strict=True)
    table = pd.DataFrame({"class_name": names, **dict(columns)})
    return table[["class_name", "support", "precision", "recall", "f1"]]


def confusion_table(
    labels: ArrayLike, predictions: ArrayLike, *, class_names: Sequence[str]
) -> pd.DataFrame:
    """Image counts [K, K]: a row per true class, a column per predicted class."""
    names = _checked_names(class_names)
    labels, predictions = _checked(labels, predictions, num_classes=len(names))
    counts = confusion_matrix(labels, predictions, labels=range(len(names)))
    axes = {"index": names, "columns": names}
    return pd.DataFrame(counts, **axes).rename_axis(index="true_class", columns="predicted_class")


def _checked(
    labels: ArrayLike, predictions: ArrayLike, *, num_classes: int
) -> tuple[NDArray, NDArray]:
    require_at_least(2, num_classes=num_classes)
    arrays = {"labels": np.asarray(labels), "predictions": np.asarray(predictions)}
    for name, array in arrays.items():
        if array.ndim != 1 or array.size == 0:
            raise ValueError(f"{name} has shape {array.shape}; allowed: (N,) with N >= 1")
        if array.dtype.kind not in "iu":
            raise ValueError(f"{name} has dtype {array.dtype}; allowed: integer class indices")
        outside = array[(array < 0) | (array >= num_classes)]
        if outside.size:
            raise ValueError(f"{name} hold class {outside[0]}; allowed: 0 to {num_classes - 1}")
    images = [len(array) for array in arrays.values()]
    if images[0] != images[1]:
        raise ValueError(
            f"labels has {images[0]} images and predictions has {images[1]}; "
            "allowed: the same number"
        )
    return arrays["labels"], arrays["predictions"]


def _checked_names(class_names: Sequence[str]) -> list[str]:
    names = list(class_names)
    if repeated := sorted({name for name in names if names.count(name) > 1}):
        raise ValueError(f"class_names repeat {', '.join(repeated)}; allowed: distinct names")
    return names
