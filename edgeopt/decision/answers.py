"""Right answers of every candidate, seed and image -> recalls and the intervals of the gates."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.stats import t

from edgeopt.decision.paired import (
    SeedSpread,
    correctness,
    paired_difference,
    pooled_seed_spread,
    two_level_spread,
)
from edgeopt.metrics import wilson_interval


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

    def table(self) -> pd.DataFrame:
        """Write them down: ``candidate, seed`` and ``right``, an x and the bits in hexadecimal."""
        rows = [
            (name, seed, f"x{np.packbits(images).tobytes().hex()}")
            for name, right in correctness(self.correct).items()
            for seed, images in enumerate(right)
        ]
        return pd.DataFrame(rows, columns=["candidate", "seed", "right"])

    @classmethod
    def from_table(
        cls, table: pd.DataFrame, *, labels: NDArray[np.int64], class_names: Sequence[str]
    ) -> "Answers":
        """Read what :meth:`table` wrote, of the images with these labels [N]."""
        correct = {
            name: np.array([_bits(text, count=len(labels)) for text in rows["right"]])
            for name, rows in table.groupby("candidate", sort=False)
        }
        return cls(correct, labels, class_names)

    def recalls(self) -> pd.DataFrame:
        """Recall of every class that has images, mean over seeds: candidate, class_name, recall."""
        rows = [
            (name, self.class_names[label], right[:, self.labels == label].mean())
            for name, right in correctness(self.correct).items()
            for label in np.unique(self.labels)
        ]
        return pd.DataFrame(rows, columns=["candidate", "class_name", "recall"])


def _bits(text: str, *, count: int) -> NDArray[np.bool_]:
    packed = np.frombuffer(bytes.fromhex(text.removeprefix("x")), np.uint8)
    return np.unpackbits(packed, count=count).astype(bool)


def gate_intervals(answers: Answers, *, baseline: str, confidence: float) -> pd.DataFrame:
    """Intervals of what the quality gates judge, on the same images and seeds for all.

    Columns: ``candidate, gate, class_name, seeds, images, value, low, high``; one row for the gates
    ``accuracy`` and ``accuracy_drop`` (against the baseline), one a class that has images for
    ``worst_recall`` and ``worst_recall_drop``. Of the chance ``1 - confidence`` half goes to the
    fall of accuracy and half to the recalls, shared by classes and gates (Bonferroni), so that a
    candidate whose every true value lies exactly on its gate is refused at most so often; a limit
    on accuracy itself, where one is set, adds half of it. A class is taken to vary with the seeds
    at least as the classes do on average, because two or three seeds that happen to agree would
    seem too sure (simulated: at most 5% wrong refusals at 95%; with two seeds that move all
    classes alike by six points, 11%). The baseline falls by 0 from itself, whatever the images.
    """
    correct = correctness(answers.correct)
    labels = np.unique(answers.labels)
    classes = {answers.class_names[label]: answers.labels == label for label in labels}
    of_a_class = 1 - (1 - confidence) / (2 * len(classes))
    of_all = sum(mask.mean() ** 2 for mask in classes.values())  # the mean's share of the spread
    rows = []
    for name, right in correct.items():
        tables = right.astype(float), right.astype(float) - correct[baseline]
        spreads = [pooled_seed_spread([t[:, mask] for mask in classes.values()]) for t in tables]
        common = [s and s._replace(variance=of_all * s.variance) for s in spreads]
        rows += _rows(name, "", (right, correct[baseline]), confidence=confidence, spreads=common)
        for class_name, mask in classes.items():
            own = right[:, mask], correct[baseline][:, mask]
            rows += _rows(name, class_name, own, confidence=of_a_class, spreads=spreads)
    columns = ["candidate", "gate", "class_name", "seeds", "images", "value", "low", "high"]
    table = pd.DataFrame(rows, columns=columns)
    of_itself = table["candidate"].eq(baseline) & table["gate"].str.endswith("_drop")
    table.loc[of_itself, ["low", "high"]] = 0.0
    return table


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


def share_interval(
    right: NDArray[np.bool_], *, confidence: float = 0.95, at_least: SeedSpread | None = None
) -> tuple[float, float]:
    """Interval of the share of right answers [seeds, N]; Wilson's for one seed.

    Several seeds: Wilson's of as many images as would vary as much (doi:10.1093/jssam/smy019), with
    Student's quantile. How much the answers vary is taken from them and two more images, one right
    and one wrong with every seed: few answers that happen to agree would seem too sure.
    """
    seeds, images = right.shape
    if seeds == 1:
        return wilson_interval(int(right.sum()), images, confidence=confidence)
    padded = np.pad(right.astype(float), ((0, 0), (1, 1)), constant_values=(0, 1))
    error, freedom = two_level_spread(padded, at_least=at_least)
    variance = padded.mean() * (1 - padded.mean())
    effective = variance / error**2 * images / padded.shape[1]
    limit, mean = t.ppf((1 + confidence) / 2, freedom), right.mean()
    shrink = 1 + limit**2 / effective
    centre = (mean + limit**2 / (2 * effective)) / shrink
    half = np.sqrt(mean * (1 - mean) / effective + (limit / (2 * effective)) ** 2)
    return float(centre - limit * half / shrink), float(centre + limit * half / shrink)


def _rows(
    candidate: str,
    class_name: str,
    right_and_baseline: tuple[NDArray[np.bool_], NDArray[np.bool_]],
    *,
    confidence: float,
    spreads: Sequence[SeedSpread | None],
) -> list[tuple]:
    """Share of right answers and its fall from the baseline's, each with its interval."""
    (right, baseline), (of_share, of_drop) = right_and_baseline, spreads
    gate, of = "worst_recall" if class_name else "accuracy", (class_name, *right.shape)
    share = share_interval(right, confidence=confidence, at_least=of_share)
    drop = paired_difference(baseline, right, confidence=confidence, at_least=of_drop)
    return [
        (candidate, gate, *of, right.mean(), *share),
        (candidate, f"{gate}_drop", *of, drop.difference, drop.low, drop.high),
    ]
