"""The frontier of accuracy against a cost, and how sure it is."""

import math
from collections.abc import Collection, Sequence

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from edgeopt.decision.budgets import accepted_mask
from edgeopt.decision.paired import Correct, accuracy_ties, correctness
from edgeopt.metrics import resampled_quantiles
from edgeopt.schema import require_at_least, require_columns

REFERENCE = 1.1  # times the slowest latency, so that the slowest candidate has an area too


def pareto_frontier(df: pd.DataFrame, x_col: str) -> pd.DataFrame:
    """Keep the accepted rows that no other accepted row beats on ``x_col`` and accuracy.

    Rows come in ascending ``x_col`` with strictly rising ``accuracy``; at equal ``x_col`` the most
    accurate stays. Rows without either number are left out. Columns and index labels are kept.

    Raises
    ------
    ValueError
        When ``accepted``, ``accuracy`` or ``x_col`` is not a column.
    """
    require_columns(df, ["accepted", "accuracy", x_col], what="pareto_frontier")
    rows = df[accepted_mask(df)].dropna(subset=["accuracy", x_col])
    rows = rows.sort_values([x_col, "accuracy"], ascending=[True, False], kind="stable")
    best_before = rows["accuracy"].cummax().shift()
    return rows[best_before.isna() | (rows["accuracy"] > best_before)]


def frontier_twins(df: pd.DataFrame, x_col: str) -> pd.DataFrame:
    """Name the accepted rows that are equal to a frontier row in both numbers, and that row.

    A frontier rises strictly, so that of equal candidates it holds one. Columns: ``candidate,
    equals``.
    """
    frontier = pareto_frontier(df, x_col)
    keys = [x_col, "accuracy"]
    others = df[accepted_mask(df)].drop(index=frontier.index)
    named = frontier[["candidate", *keys]].rename(columns={"candidate": "equals"})
    return others[["candidate", *keys]].merge(named, on=keys)[["candidate", "equals"]]


def frontier_probability(
    correct: Correct,
    samples: pd.DataFrame,
    *,
    replicates: int = 1000,
    seed: int = 0,
    alpha: float = 0.05,
) -> pd.DataFrame:
    """How likely each candidate is on the accuracy/median-latency frontier.

    Each bootstrap replicate draws the images anew, the same for all candidates, and the
    measurement's rounds anew, the same for all, and takes the frontier of that draw. ``correct``
    says which images each candidate gets right, [images] or [seeds, images]; accuracy is the mean
    over seeds, which are not drawn anew. One row per candidate: ``accuracy, latency_p50_ms,
    frontier_probability, tied_with, accuracy_ties``; ``tied_with`` names, joined by commas, the
    candidates whose accuracy the Holm-adjusted paired test over all pairs cannot tell from this
    one's, and the last counts them. No candidate in, no row out.
    """
    columns = ["candidate", "accuracy", "latency_p50_ms", "frontier_probability", "tied_with"]
    if not len(correct):
        return pd.DataFrame(columns=[*columns, "accuracy_ties"])
    require_at_least(1, replicates=replicates)
    table = correctness(correct)
    shares = np.column_stack([values.mean(axis=0) for values in table.values()])
    own_samples = _samples_of(list(table), samples)
    latencies = [
        resampled_quantiles(own, replicates=replicates, seed=seed) for own in own_samples.values()
    ]
    right = _resampled_counts(shares, replicates=replicates, seed=seed)
    on_frontier = _frontier_masks(np.column_stack(latencies), right)
    tied = accuracy_ties(table, alpha=alpha)
    return pd.DataFrame(
        {
            "candidate": list(table),
            "accuracy": shares.mean(axis=0),
            "latency_p50_ms": [own["latency_ms"].median() for own in own_samples.values()],
            "frontier_probability": on_frontier.mean(axis=0),
            "tied_with": [", ".join(names) for names in tied],
            "accuracy_ties": [len(names) for names in tied],
        }
    )


def hypervolume(df: pd.DataFrame, *, x_col: str, reference: tuple[float, float]) -> float:
    """Area between the rows' frontier and a reference point (worst ``x_col``, worst accuracy).

    Smaller ``x_col`` and larger ``accuracy`` are better; rows not better than the reference in
    both add nothing. Unit: that of ``x_col`` times accuracy. Only compare areas with the same
    reference. Source: Zitzler and Thiele 1998, doi:10.1007/BFb0056872.
    """
    require_columns(df, [x_col, "accuracy"], what="hypervolume")
    if not np.isfinite(reference).all():
        raise ValueError(f"reference is {reference}; allowed: two finite numbers")
    x, accuracy = df[[x_col, "accuracy"]].to_numpy(dtype=float).T
    return _area(x, accuracy, reference=reference)


def _area(x: NDArray, accuracy: NDArray, *, reference: tuple[float, float]) -> float:
    worst_x, worst_accuracy = reference
    inside = np.flatnonzero((x < worst_x) & (accuracy > worst_accuracy))
    inside = inside[np.argsort(x[inside])]
    steps = np.diff(x[inside], append=worst_x)
    heights = np.maximum.accumulate(accuracy[inside]) - worst_accuracy
    return float(np.sum(steps * heights))


def hypervolume_gain(
    correct: Correct,
    samples: pd.DataFrame,
    *,
    added: Collection[str],
    chance: float,
    replicates: int = 1000,
    seed: int = 0,
) -> tuple[float, float, float]:
    """Share by which candidates enlarge the hypervolume of the others, with its 95% interval.

    Accuracy against median latency, with 1.1 times the slowest of all and the accuracy of
    ``chance`` as the reference. Images and rounds are drawn anew as in
    :func:`frontier_probability`, and with them the slowest. Infinite where something is added to
    candidates of which none beats ``chance``. Raises ``ValueError`` when there are no others.
    """
    table = correctness(correct)
    if not {*table} - {*added}:
        raise ValueError(f"all candidates are added: {[*added]}; allowed: some to compare with")
    shares = np.column_stack([values.mean(axis=0) for values in table.values()])
    own = _samples_of(list(table), samples)
    drawn = [resampled_quantiles(o, replicates=replicates, seed=seed) for o in own.values()]
    right = _resampled_counts(shares, replicates=replicates, seed=seed) / len(shares)
    medians = np.array([rows["latency_ms"].median() for rows in own.values()])
    others = np.array([name not in added for name in table])

    def gain(latency: NDArray, accuracy: NDArray) -> float:
        reference = (REFERENCE * latency.max(), chance)
        before = _area(latency[others], accuracy[others], reference=reference)
        after = _area(latency, accuracy, reference=reference)
        if after == before:
            return 0.0
        return after / before - 1 if before else math.inf

    gains = [gain(*pair) for pair in zip(np.column_stack(drawn), right, strict=True)]
    low, high = np.quantile(gains, [0.025, 0.975], method="inverted_cdf")  # of what may be infinite
    return gain(medians, shares.mean(axis=0)), float(low), float(high)


def _samples_of(candidates: Sequence[str], samples: pd.DataFrame) -> dict[str, pd.DataFrame]:
    require_columns(samples, ["candidate", "round", "latency_ms"], what="frontier_probability")
    failed = samples.loc[samples["latency_ms"].isna(), "candidate"]
    groups = dict(list(samples[~samples["candidate"].isin(failed)].groupby("candidate")))
    if lacking := [name for name in candidates if name not in groups]:
        raise ValueError(f"no latency samples of {', '.join(lacking)}: not measured, or failed")
    own_samples = {name: groups[name] for name in candidates}
    rounds = {name: own["round"].nunique() for name, own in own_samples.items()}
    if len(set(rounds.values())) > 1:
        raise ValueError(f"latency samples have different numbers of rounds: {rounds}")
    return own_samples


def _resampled_counts(right: NDArray[np.float64], *, replicates: int, seed: int) -> NDArray:
    """Right answers [replicates, candidates] on images drawn anew."""
    images = len(right)
    draws = np.random.default_rng((seed, 1)).integers(images, size=(replicates, images))
    weights = np.stack([np.bincount(draw, minlength=images) for draw in draws])
    return (weights.astype(float) @ right).round(9)  # thirds of seeds must still tie


def _frontier_masks(latencies: NDArray, right: NDArray) -> NDArray[np.bool_]:
    """Which candidates are on the frontier, row by row of two [replicates, candidates] arrays."""
    order = np.lexsort((-right, latencies), axis=-1)
    ranked = np.take_along_axis(right, order, axis=1)
    best = np.maximum.accumulate(ranked, axis=1)
    rises = np.hstack([np.ones((len(best), 1), dtype=bool), ranked[:, 1:] > best[:, :-1]])
    masks = np.empty_like(rises)
    np.put_along_axis(masks, order, rises, axis=1)
    return masks
