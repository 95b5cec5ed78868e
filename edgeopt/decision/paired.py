"""Paired comparison of candidates that answered the same images."""

from collections.abc import Mapping, Sequence
from itertools import combinations, compress
from typing import NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray
from scipy.optimize import brentq
from scipy.stats import binom, norm, t
from statsmodels.stats.contingency_tables import mcnemar
from statsmodels.stats.multitest import multipletests

from edgeopt.schema import require_at_least

Correct = pd.DataFrame | Mapping[str, ArrayLike]

MCNEMAR = "exact McNemar test, Tango interval"
TWO_LEVEL = "paired over images and seeds (two-level)"


class PairedDifference(NamedTuple):
    """Accuracy of a variant minus its parent's, with interval, p value and how they were found."""

    difference: float
    low: float
    high: float
    p_value: float
    method: str


class SeedSpread(NamedTuple):
    """Variance of one seed's mean around that of all seeds, and the degrees of freedom of it."""

    variance: float
    freedom: float


def paired_comparison(
    correct: Correct,
    *,
    parent: str | Mapping[str, str],
    alpha: float = 0.05,
    power: float = 0.8,
) -> pd.DataFrame:
    """Test every variant against its parent on the same images, with all seeds there are.

    ``correct`` says per candidate which images it gets right, [images] or [seeds, images], in one
    order for all. ``parent`` is one candidate's name, or a mapping from each variant to its parent.

    One row per variant, by :func:`paired_difference` at ``1 - alpha``. ``lost`` counts the images
    that only the parent gets right, ``gained`` those that only the variant does, over all seeds.
    ``p_holm`` is adjusted over all rows (Holm) and ``significant`` when at most ``alpha``.
    ``detectable_difference``, of one seed only, is the accuracy difference that this test set would
    find with probability ``power`` at the pair's observed disagreement and at ``alpha / rows``,
    Holm's first and strictest step. No variant in, no row out.
    """
    check_share(alpha=alpha, power=power)
    table = correctness(correct)
    parents = _parents(table, parent)
    pairs = [(table[variant], table[base]) for variant, base in parents.items()]
    seeds, images = next(iter(table.values())).shape
    found = [paired_difference(*pair, confidence=1 - alpha) for pair in pairs]
    lost = np.array([(base & ~variant).sum() for variant, base in pairs], dtype=int)
    gained = np.array([(variant & ~base).sum() for variant, base in pairs], dtype=int)
    significant, adjusted = _holm([pair.p_value for pair in found], alpha=alpha)
    detectable = [
        detectable_difference(images, disagreement=share, alpha=alpha / len(pairs), power=power)
        if seeds == 1
        else np.nan
        for share in (lost + gained) / images
    ]
    return pd.DataFrame(
        {
            "candidate": list(parents),
            "parent": list(parents.values()),
            "seeds": seeds,
            "images": images,
            "accuracy": [variant.mean() for variant, _ in pairs],
            "accuracy_difference": [pair.difference for pair in found],
            "difference_low": [pair.low for pair in found],
            "difference_high": [pair.high for pair in found],
            "lost": lost,
            "gained": gained,
            "p_value": [pair.p_value for pair in found],
            "p_holm": adjusted,
            "significant": significant,
            "detectable_difference": detectable,
            "method": [pair.method for pair in found],
        }
    )


def paired_difference(
    variant: ArrayLike,
    parent: ArrayLike,
    *,
    confidence: float = 0.95,
    at_least: SeedSpread | None = None,
) -> PairedDifference:
    """Accuracy of ``variant`` minus ``parent``'s on the same images and seeds.

    Both say which images they get right, [images] or [seeds, images]. One seed, or differences that
    do not vary: the exact McNemar test (1947, doi:10.1007/BF02295996) on the first seed and Tango's
    score interval. Several seeds: the mean over seeds, with images and seeds as crossed random
    effects as in :func:`two_level_spread`, and the t test that belongs to it.
    """
    first, second = (np.atleast_2d(np.asarray(rows, dtype=bool)) for rows in (variant, parent))
    if first.shape != second.shape:
        raise ValueError(
            f"variant is {first.shape} and parent {second.shape}; allowed: the same seeds, images"
        )
    gaps = first.astype(float) - second
    spread = two_level_spread(gaps, at_least=at_least)
    if spread is None:
        lost, gained = int((gaps[0] < 0).sum()), int((gaps[0] > 0).sum())
        low, high = tango_interval(lost, gained, gaps.shape[1], confidence=confidence)
        p_value = float(mcnemar([[0, lost], [gained, 0]], exact=True).pvalue)
        return PairedDifference(float(gaps[0].mean()), low, high, p_value, MCNEMAR)
    mean, (error, freedom) = float(gaps.mean()), spread
    half = float(t.ppf((1 + confidence) / 2, freedom)) * error
    p_value = float(2 * t.sf(abs(mean) / error, freedom))
    return PairedDifference(mean, max(-1.0, mean - half), min(1.0, mean + half), p_value, TWO_LEVEL)


def two_level_spread(
    table: NDArray[np.float64], *, at_least: SeedSpread | None = None
) -> tuple[float, float] | None:
    """Return standard error and degrees of freedom of the mean of values [seeds, images].

    Seeds and images are two crossed random effects: the variance of the mean is the sum of a seed
    component, ``MS_seed - MS_rest`` or 0 where that is negative, and ``MS_image``, at least
    ``MS_rest``, over ``seeds * images``, from the mean squares of the two-way layout; the degrees
    of freedom are Satterthwaite's over ``MS_image`` and, where the seed component is not 0,
    ``MS_seed`` (doi:10.2307/3002019). ``at_least`` takes the place of a smaller seed component.
    None with one seed or one image, and where nothing varies.
    """
    if min(table.shape) == 1 or np.ptp(table) == 0:
        return None
    (seeds, images), (of_seeds, of_images, rest) = table.shape, _mean_squares(table)
    seed, image = max(0.0, of_seeds - rest), max(rest, of_images)
    doubt = of_seeds**2 / (seeds - 1) if seed else 0.0
    if at_least and images * at_least.variance > seed:
        seed = images * at_least.variance
        doubt = (seed + rest) ** 2 / at_least.freedom
    freedom = (seed + image) ** 2 / (doubt + image**2 / (images - 1))
    return float(np.sqrt((seed + image) / (seeds * images))), float(freedom)


def pooled_seed_spread(tables: Sequence[NDArray[np.float64]]) -> SeedSpread | None:
    """Mean seed variance of groups of images [seeds, images], taken for independent of each other.

    A few seeds tell little of how much seeds vary in one group; all groups together tell more
    (Smyth 2004, doi:10.2202/1544-6115.1027, pools in the same spirit). None with one seed.
    """
    varying = [table for table in tables if min(table.shape) > 1]
    if not varying:
        return None
    components = []
    for table in varying:
        of_seeds, _, rest = _mean_squares(table)
        components.append((of_seeds - rest) / table.shape[1])
    freedom = (len(varying[0]) - 1) * len(varying)
    return SeedSpread(max(0.0, float(np.mean(components))), freedom)


def _mean_squares(table: NDArray[np.float64]) -> tuple[float, float, float]:
    """Mean squares of a two-way layout [seeds, images]: of seeds, of images, of the rest."""
    (seeds, images), mean = table.shape, table.mean()
    by_seed, by_image = table.mean(axis=1), table.mean(axis=0)
    rest = np.sum((table - by_seed[:, None] - by_image + mean) ** 2) / (seeds - 1) / (images - 1)
    return images * by_seed.var(ddof=1), seeds * by_image.var(ddof=1), rest


def tango_interval(
    lost: int, gained: int, images: int, *, confidence: float = 0.95
) -> tuple[float, float]:
    """Score interval of the difference of two paired proportions, ``(gained - lost) / images``.

    Source: Tango 1998, doi:10.1002/(SICI)1097-0258(19980430)17:8<891::AID-SIM780>3.0.CO;2-B.
    """
    check_share(confidence=confidence)
    limit = norm.ppf((1 + confidence) / 2)
    difference = (gained - lost) / images

    def score(value: float) -> float:
        """Standardised distance of the observed difference from ``value``."""
        linear = -gained - lost + (2 * images - gained + lost) * value
        constant = -lost * value * (1 - value)
        only_lost = (np.sqrt(linear**2 - 8 * images * constant) - linear) / (4 * images)
        variance = images * (2 * only_lost + value * (1 - value))
        return float((gained - lost - images * value) / np.sqrt(max(variance, 1e-300)))

    edge = 1 - 1e-9
    low = brentq(lambda v: score(v) - limit, -edge, difference) if difference > -1 else -1.0
    high = brentq(lambda v: score(v) + limit, difference, edge) if difference < 1 else 1.0
    return float(low), float(high)


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
    require_at_least(1, images=images)
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


def accuracy_ties(table: Mapping[str, NDArray[np.bool_]], *, alpha: float) -> list[list[str]]:
    """Name per candidate those that the Holm-adjusted test over all pairs cannot tell from it."""
    pairs = list(combinations(table, 2))
    p_values = [paired_difference(table[a], table[b]).p_value for a, b in pairs]
    different, _ = _holm(p_values, alpha=alpha)
    partners = {name: [] for name in table}
    for first, second in compress(pairs, ~different):
        partners[first].append(second)
        partners[second].append(first)
    return list(partners.values())


def correctness(correct: Correct) -> dict[str, NDArray[np.bool_]]:
    """Right answers [seeds, images] of every candidate, checked: the same shape for all."""
    arrays = {name: np.asarray(values) for name, values in correct.items()}
    for name, values in arrays.items():
        if values.dtype != bool or values.ndim not in (1, 2):
            raise ValueError(
                f"correct[{name!r}] is {values.dtype} of shape {values.shape}; allowed: bool "
                "(images,) or (seeds, images)"
            )
    arrays = {name: np.atleast_2d(values) for name, values in arrays.items()}
    if not arrays or not all(values.size for values in arrays.values()):
        raise ValueError("correct is empty; allowed: 1 candidate and 1 image or more")
    shapes = {name: values.shape for name, values in arrays.items()}
    if len(set(shapes.values())) > 1:
        raise ValueError(f"correct has different numbers of seeds or images: {shapes}")
    return arrays


def check_share(**shares: float) -> None:
    """Raise ``ValueError`` naming the share that is not between 0 and 1."""
    for name, value in shares.items():
        if not 0 < value < 1:
            raise ValueError(f"{name} is {value}; allowed: above 0 and below 1")


def _parents(table: Mapping[str, NDArray], parent: str | Mapping[str, str]) -> dict[str, str]:
    """Parent of every variant; a candidate that is its own has nothing to be compared with."""
    if isinstance(parent, str):
        parent = dict.fromkeys(table, parent)
    unknown = sorted({*parent, *parent.values()} - set(table))
    if unknown:
        names = ", ".join(table)
        raise ValueError(f"correct has no candidate {', '.join(unknown)}; it has: {names}")
    return {variant: base for variant, base in parent.items() if variant != base}


def _holm(p_values: ArrayLike, *, alpha: float) -> tuple[NDArray[np.bool_], NDArray[np.float64]]:
    """Which differ, and the adjusted p values."""
    return multipletests(p_values, alpha=alpha, method="holm")[:2]
