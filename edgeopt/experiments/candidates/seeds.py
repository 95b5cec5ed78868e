"""What candidates answer over all seeds: accuracy with its interval, macro-F1, recalls."""

from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import Executor

import numpy as np
import pandas as pd

from edgeopt.data import Split
from edgeopt.decision import Answers, share_interval
from edgeopt.experiments.candidates.candidate import Candidate, split_logits
from edgeopt.metrics import per_class_table, quality_row
from edgeopt.runtimes import Artifact, load_session
from edgeopt.system import run_in_order


def score(
    candidates: Sequence[Candidate],
    splits: Mapping[str, Split],
    *,
    executor: Executor | None = None,
) -> dict[str, np.ndarray]:
    """Predicted classes [seeds, N] of every prepared candidate on its model's split."""
    ran = [candidate for candidate in candidates if candidate.artifact and not candidate.error]
    jobs = [(candidate.artifact, splits[candidate.spec.model]) for candidate in ran]
    return _by_name(ran, run_in_order(_classify, jobs, executor=executor))


def _classify(job: tuple[Artifact, Split]) -> np.ndarray:
    artifact, split = job
    return split_logits(load_session(artifact), split).argmax(1)


def _by_name(candidates: Sequence[Candidate], rows: Iterable[np.ndarray]) -> dict[str, np.ndarray]:
    """Stack the rows [N] of each candidate's seeds, by its name."""
    found: dict[str, list[np.ndarray]] = {}
    for candidate, row in zip(candidates, rows, strict=True):
        found.setdefault(candidate.name, []).append(row)
    return {name: np.stack(own) for name, own in found.items()}


def with_every_seed(right: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Leave out the candidates that lack a seed, of right answers [seeds, N]."""
    seeds = max(map(len, right.values()))
    return {name: rows for name, rows in right.items() if len(rows) == seeds}


def right_answers(candidates: Sequence[Candidate], *, labels: np.ndarray) -> dict[str, np.ndarray]:
    """Which images [seeds, N] every prepared candidate gets right, by its name."""
    ran = [candidate for candidate in candidates if candidate.logits is not None]
    return _by_name(ran, (candidate.logits.argmax(1) == labels for candidate in ran))


def answers_of(
    candidates: Sequence[Candidate], *, labels: np.ndarray, class_names: Sequence[str]
) -> Answers:
    """Collect the right answers of the candidates that ran with every seed, on the same images."""
    return Answers(with_every_seed(right_answers(candidates, labels=labels)), labels, class_names)


def accuracy_over_seeds(right: Mapping[str, np.ndarray]) -> pd.DataFrame:
    """Accuracy of every candidate from its right answers [seeds, N], with its interval.

    Columns: candidate, seeds, accuracy, accuracy_low, accuracy_high. The interval is over both
    other seeds and other images; with one seed, or where all answers are right or all wrong, it
    is Wilson's, over images alone.
    """
    rows = [(name, len(own), own.mean(), *share_interval(own)) for name, own in right.items()]
    columns = ["candidate", "seeds", "accuracy", "accuracy_low", "accuracy_high"]
    return pd.DataFrame(rows, columns=columns)


def with_seeds(
    sweep: pd.DataFrame, candidates: Sequence[Candidate], *, labels: np.ndarray
) -> pd.DataFrame:
    """Put the means over seeds in the place of the first seed's quality.

    ``candidates`` are those of all seeds, prepared on the same images. Accuracy comes with its
    interval; macro-F1 and agreement are plain means. Adds ``seeds``, the number of trainings. A
    candidate whose first seed failed has no accuracy, whatever the others did.
    """
    table = accuracy_over_seeds(right_answers(candidates, labels=labels))
    facts = [{"candidate": c.name, **c.facts} for c in candidates if c.logits is not None]
    facts = pd.DataFrame(facts, columns=["candidate", "macro_f1", "agreement"])
    table = table.merge(facts.groupby("candidate").mean(), "left", "candidate")
    ran = sweep.loc[sweep["status"] == "ok", "candidate"]
    table = table[table["candidate"].isin(ran)]
    return sweep.drop(columns=[*table.columns[2:]]).merge(table, "left", "candidate")


def with_test(
    sweep: pd.DataFrame,
    predicted: Mapping[str, np.ndarray],
    *,
    labels: np.ndarray,
    class_names: Sequence[str],
) -> pd.DataFrame:
    """Add what the test images say of every candidate, from its predicted classes [seeds, N].

    New columns: ``test_accuracy, test_accuracy_low, test_accuracy_high, test_macro_f1``, the mean
    over the seeds.
    """
    right = {name: classes == labels for name, classes in predicted.items()}
    table = accuracy_over_seeds(right).drop(columns="seeds").set_index("candidate")
    table["macro_f1"] = [
        np.mean([quality_row(labels, row, num_classes=len(class_names))["macro_f1"] for row in own])
        for own in predicted.values()
    ]
    return sweep.join(table.add_prefix("test_"), on="candidate")


def recall_table(
    candidates: Sequence[Candidate], labels: np.ndarray, *, class_names: Sequence[str]
) -> pd.DataFrame:
    """Per-class quality of every prepared candidate, the mean over its seeds.

    Columns: ``class_name, support, precision, recall, f1, candidate``.
    """
    ran = [candidate for candidate in candidates if candidate.logits is not None]
    tables = [per_class_table(labels, c.logits.argmax(1), class_names=class_names) for c in ran]
    by_class = pd.concat(
        [table.assign(candidate=c.name) for c, table in zip(ran, tables, strict=True)]
    ).groupby(["candidate", "class_name"], sort=False)
    means = by_class.mean().reset_index().astype({"support": int})
    return means[["class_name", "support", "precision", "recall", "f1", "candidate"]]
