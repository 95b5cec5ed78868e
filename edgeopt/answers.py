"""Right answers of every candidate, seed and image -> recalls and the intervals of the gates."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.stats import t

from edgeopt.metrics import wilson_interval
from edgeopt.paired import correctness, paired_difference, two_level_spread
from edgeopt.schema import require_known


@dataclass(frozen=True, eq=False)
class Answers:
    """Which images [seeds, N] every candidate gets right, and their classes [N]."""

    correct: Mapping[str, NDArray[np.bool_]]
    labels: NDArray[np.int64]
    class_names: Sequence[str]

    def __post_init__(self) -> None:
        images = {rows.shape[1] for rows in correctness(self.correct).values()}
        if images != {len(self.labels)}:
            raise ValueError(f"correct is of {images} images; allowed: {len(self.labels)} (labels)")

    def recalls(self) -> pd.DataFrame:
        """Recall of every class that has images, mean over seeds: candidate, class_name, recall."""
        rows = [
            (name, self.class_names[label], right[:, self.labels == label].mean())
            for name, right in correctness(self.correct).items()
            for label in np.unique(self.labels)
        ]
        return pd.DataFrame(rows, columns=["candidate", "class_name", "recall"])


def gate_intervals(answers: Answers, *, baseline: str, confidence: float) -> pd.DataFrame:
    """Intervals of what the quality gates judge, on the same images and seeds for all.

    Columns: ``candidate, gate, class_name, images, value, low, high``; one row for the gates
    ``accuracy`` and ``accuracy_drop`` (against the baseline), one a class that has images for
    ``worst_recall`` and ``worst_recall_drop``. Of the chance ``1 - confidence`` half goes to the
    fall of accuracy and half to the recalls, shared by classes and gates (Bonferroni), so that a
    candidate whose every true value lies exactly on its gate is refused at most so often.

    Raises
    ------
    ValueError
        When the baseline is not among the answers, or ``confidence`` is not between 0 and 1.
    """
    correct = correctness(answers.correct)
    require_known(baseline, allowed=tuple(correct), what="baseline candidate")
    labels = np.unique(answers.labels)
    classes = {answers.class_names[label]: answers.labels == label for label in labels}
    of_a_class = 1 - (1 - confidence) / (2 * len(classes))
    rows = []
    for name, right in correct.items():
        pair = (right, correct[baseline])
        rows += _rows(name, "", *pair, gates=("accuracy", "accuracy_drop"), confidence=confidence)
        for class_name, mask in classes.items():
            own = (rows_of[:, mask] for rows_of in pair)
            gates = ("worst_recall", "worst_recall_drop")
            rows += _rows(name, class_name, *own, gates=gates, confidence=of_a_class)
    columns = ["candidate", "gate", "class_name", "images", "value", "low", "high"]
    return pd.DataFrame(rows, columns=columns)


def class_shares(
    correct: Mapping[str, NDArray[np.bool_]],
    labels: NDArray[np.int64],
    *,
    before: str,
    after: str,
    names: Sequence[str],
) -> pd.DataFrame:
    """Recall of every class of two candidates, the mean over seeds, with the later's interval.

    Columns: ``class_name, before, after, after_low, after_high``; ``before`` or ``after`` is NaN
    where the candidate has no answers.
    """
    rows = []
    for label in np.unique(labels):
        own = {n: correct[n][:, labels == label] for n in (before, after) if n in correct}
        low, high = share_interval(own[after]) if after in own else (np.nan, np.nan)
        shares = [own[n].mean() if n in own else np.nan for n in (before, after)]
        rows.append((names[label], *shares, low, high))
    columns = ["class_name", "before", "after", "after_low", "after_high"]
    return pd.DataFrame(rows, columns=columns)


def share_interval(right: NDArray[np.bool_], *, confidence: float = 0.95) -> tuple[float, float]:
    """Interval of the share of right answers [seeds, N]; Wilson's for one seed."""
    spread = two_level_spread(right.astype(float))
    if spread is None:
        return wilson_interval(int(right[0].sum()), right.shape[1], confidence=confidence)
    mean, (error, freedom) = right.mean(), spread
    half = t.ppf((1 + confidence) / 2, freedom) * error
    return max(0.0, float(mean - half)), min(1.0, float(mean + half))


def _rows(
    candidate: str,
    class_name: str,
    right: NDArray[np.bool_],
    baseline: NDArray[np.bool_],
    *,
    gates: tuple[str, str],
    confidence: float,
) -> list[tuple]:
    """Share of right answers and its fall from the baseline's, each with its interval."""
    drop = paired_difference(baseline, right, confidence=confidence)
    share = (right.mean(), *share_interval(right, confidence=confidence))
    found = (share, (drop.difference, drop.low, drop.high))
    return [
        (candidate, gate, class_name, right.shape[1], *numbers)
        for gate, numbers in zip(gates, found, strict=True)
    ]
