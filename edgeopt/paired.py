"""Paired comparison of candidates that answered the same images."""

from collections.abc import Mapping
from itertools import combinations

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray
from scipy.optimize import brentq
from scipy.stats import binom
from statsmodels.stats.contingency_tables import mcnemar
from statsmodels.stats.multitest import multipletests

Correct = pd.DataFrame | Mapping[str, ArrayLike]

PAIRED_COLUMNS = (
    "candidate",
    "parent",
    "images",
    "accuracy",
    "accuracy_difference",
    "lost",
    "gained",
    "p_value",
    "p_holm",
    "significant",
    "detectable_difference",
)


def paired_comparison(
    correct: Correct,
    *,
    parent: str | Mapping[str, str],
    alpha: float = 0.05,
    power: float = 0.8,
) -> pd.DataFrame:
    """Exact McNemar test of every variant against its parent on the same images.

    ``correct`` says per candidate which images [N] it gets right, in one order for all. ``parent``
    is one candidate's name, or a mapping from each variant to its parent.

    One row per variant: ``lost`` images only the parent gets right, ``gained`` only the variant;
    ``p_holm`` is adjusted over all rows (Holm) and ``significant`` when at most ``alpha``;
    ``detectable_difference`` is the accuracy difference that this test set would find with
    probability ``power`` at the pair's observed disagreement and at ``alpha / rows``, Holm's
    first and strictest step. No variant in, no row out. Source: McNemar 1947,
    doi:10.1007/BF02295996.
    """
    check_share(alpha=alpha, power=power)
    table = correctness_table(correct)
    pairs = _pairs(table, parent)
    if not pairs:
        return pd.DataFrame(columns=list(PAIRED_COLUMNS))
    rows = [_paired_row(table[variant], table[base]) for variant, base in pairs]
    result = pd.DataFrame(rows)
    result["significant"], result["p_holm"] = _holm(result["p_value"], alpha=alpha)
    disagreement = (result["lost"] + result["gained"]) / len(table)
    result["detectable_difference"] = [
        detectable_difference(len(table), disagreement=share, alpha=alpha / len(pairs), power=power)
        for share in disagreement
    ]
    return result[list(PAIRED_COLUMNS)]


def detectable_difference(
    images: int, *, disagreement: float, alpha: float = 0.05, power: float = 0.8
) -> float:
    """Smallest accuracy difference that the exact McNemar test finds with probability ``power``.

    With N images, a share ``d`` on which the two disagree, and a difference ``D``, the number
    ``n`` of disagreements is Binomial(N, d), and ``b`` of them favour the better one,
    Binomial(n, (d + D) / 2d). The test rejects when ``2 P(Binomial(n, 1/2) <= min(b, n - b)) <=
    alpha``; the power is the probability of that, summed over ``n`` and ``b``. A difference
    above ``d`` brings its own disagreement: ``d = D``. NaN when even a difference of 1 is missed.
    """
    check_share(alpha=alpha, power=power)
    if images < 1:
        raise ValueError(f"images is {images}; allowed: 1 or more")
    if not 0 <= disagreement <= 1:
        raise ValueError(f"disagreement is {disagreement}; allowed: 0 to 1")
    if power <= alpha:
        raise ValueError(f"power is {power}; allowed: above alpha ({alpha})")
    options = {"images": images, "disagreement": disagreement, "alpha": alpha}
    if mcnemar_power(1.0, **options) < power:
        return np.nan
    return float(brentq(lambda d: mcnemar_power(d, **options) - power, 1e-9, 1.0, xtol=1e-6))


def mcnemar_power(difference: float, *, images: int, disagreement: float, alpha: float) -> float:
    """Probability that the exact McNemar test rejects; see ``detectable_difference``."""
    share = max(disagreement, difference)
    low, high = binom.ppf([1e-9, 1 - 1e-9], images, share)
    counts = np.arange(low, high + 1)
    # the largest b with 2 P(Binomial(n, 1/2) <= b) <= alpha; -1 when no b has it
    limit = binom.ppf(alpha / 2, counts, 0.5)
    limit -= 2 * binom.cdf(limit, counts, 0.5) > alpha
    favoured = (share + difference) / (2 * share)
    rejects = binom.cdf(limit, counts, favoured) + binom.sf(counts - limit - 1, counts, favoured)
    return float(binom.pmf(counts, images, share) @ rejects)


def accuracy_ties(table: pd.DataFrame, *, alpha: float) -> list[str]:
    """Name per candidate those that the Holm-adjusted test over all pairs cannot tell from it."""
    pairs = list(combinations(table.columns, 2))
    if not pairs:
        return [""]
    p_values = [_exact_mcnemar(*_disagreements(table[a], table[b])) for a, b in pairs]
    different = _holm(p_values, alpha=alpha)[0]
    tied = [pair for pair, differs in zip(pairs, different, strict=True) if not differs]
    partners = {name: [] for name in table.columns}
    for first, second in tied:
        partners[first].append(second)
        partners[second].append(first)
    return [", ".join(names) for names in partners.values()]


def correctness_table(correct: Correct) -> pd.DataFrame:
    """Boolean table [images, candidates] of a mapping or table of correct answers, checked."""
    columns = {name: np.asarray(values) for name, values in correct.items()}
    lengths = {name: len(values) for name, values in columns.items()}
    if not lengths or 0 in lengths.values():
        raise ValueError("correct is empty; allowed: 1 candidate and 1 image or more")
    if len(set(lengths.values())) > 1:
        raise ValueError(f"correct has different numbers of images: {lengths}")
    for name, values in columns.items():
        if values.dtype != bool or values.ndim != 1:
            raise ValueError(
                f"correct[{name!r}] is {values.dtype} of shape {values.shape}; allowed: bool (N,)"
            )
    return pd.DataFrame(columns)


def check_share(**shares: float) -> None:
    """Raise ``ValueError`` naming the share that is not between 0 and 1."""
    for name, value in shares.items():
        if not 0 < value < 1:
            raise ValueError(f"{name} is {value}; allowed: above 0 and below 1")


def _pairs(table: pd.DataFrame, parent: str | Mapping[str, str]) -> list[tuple[str, str]]:
    if isinstance(parent, str):
        parent = {name: parent for name in table.columns if name != parent}
    unknown = sorted({*parent, *parent.values()} - set(table.columns))
    if unknown:
        names = ", ".join(table.columns)
        raise ValueError(f"correct has no candidate {', '.join(unknown)}; it has: {names}")
    return [(variant, base) for variant, base in parent.items() if variant != base]


def _paired_row(variant: pd.Series, base: pd.Series) -> dict[str, str | float]:
    lost, gained = _disagreements(base, variant)
    return {
        "candidate": variant.name,
        "parent": base.name,
        "images": len(variant),
        "accuracy": variant.mean(),
        "accuracy_difference": (gained - lost) / len(variant),
        "lost": lost,
        "gained": gained,
        "p_value": _exact_mcnemar(lost, gained),
    }


def _disagreements(first: pd.Series, second: pd.Series) -> tuple[int, int]:
    """How many images only the first, and only the second, gets right."""
    return int((first & ~second).sum()), int((second & ~first).sum())


def _exact_mcnemar(only_first: int, only_second: int) -> float:
    return float(mcnemar([[0, only_first], [only_second, 0]], exact=True).pvalue)


def _holm(p_values: ArrayLike, *, alpha: float) -> tuple[NDArray, NDArray]:
    significant, adjusted, *_ = multipletests(p_values, alpha=alpha, method="holm")
    return significant, adjusted
