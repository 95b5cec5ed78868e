"""Paired tests against hand-counted tables and brute-force enumeration."""

from math import comb

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import minimize_scalar
from scipy.stats import binom, binomtest, norm, t
from statsmodels.formula.api import ols
from statsmodels.stats.anova import anova_lm

from edgeopt.decision.paired import (
    SeedSpread,
    accuracy_ties,
    detectable_difference,
    mcnemar_power,
    paired_comparison,
    paired_difference,
    pooled_seed_spread,
    tango_interval,
    two_level_spread,
)

PARENT = np.array([True] * 8 + [False] * 2)


def flipped(base, *indices):
    result = base.copy()
    result[list(indices)] ^= True
    return result


def test_one_variant_by_hand():
    table = paired_comparison({"p": PARENT, "v": flipped(PARENT, 0, 1, 2, 3, 4, 9)}, parent="p")
    row = table.iloc[0]
    assert len(table) == 1
    assert row[["candidate", "parent", "images", "lost", "gained"]].tolist() == ["v", "p", 10, 5, 1]
    assert row["accuracy"] == 0.4
    assert row["accuracy_difference"] == pytest.approx(-0.4)
    assert row["p_value"] == pytest.approx(2 * (comb(6, 0) + comb(6, 1)) / 2**6)


def test_identical_answers_have_p_one():
    row = paired_comparison({"p": PARENT, "v": PARENT}, parent="p").iloc[0]
    assert (row["p_value"], row["accuracy_difference"]) == (1.0, 0.0)
    assert not row["significant"]


@settings(max_examples=8, deadline=None)
@given(st.integers(1, 60), st.floats(0, 1), st.integers(0, 2**32))
def test_p_value_is_the_sign_test_of_the_disagreements(images, accuracy, seed):
    right = np.random.default_rng(seed).random((12, images)) < accuracy
    names = [f"c{i}" for i in range(12)]
    table = paired_comparison(dict(zip(names, right, strict=True)), parent="c0")
    for row, variant in zip(table.itertuples(), right[1:], strict=True):
        disagreements = row.lost + row.gained
        expected = binomtest(row.lost, disagreements).pvalue if disagreements else 1.0
        assert row.p_value == pytest.approx(expected)
        assert row.accuracy_difference == pytest.approx(variant.mean() - right[0].mean())


def test_holm_multiplies_the_smallest_by_the_number_of_variants():
    base = np.ones(30, dtype=bool)
    variants = {f"lost {n}": flipped(base, *range(n)) for n in (7, 6, 0)}
    table = paired_comparison({"p": base, **variants}, parent="p")
    smallest, middle = 2 / 2**7, 2 / 2**6
    assert table["p_value"].tolist() == pytest.approx([smallest, middle, 1.0])
    assert table["p_holm"].tolist() == pytest.approx([3 * smallest, 2 * middle, 1.0])
    assert table["significant"].tolist() == [True, False, False]


def test_each_variant_can_have_its_own_parent():
    correct = {"p": PARENT, "q": ~PARENT, "vp": flipped(PARENT, 0), "vq": flipped(~PARENT, 0, 1)}
    table = paired_comparison(pd.DataFrame(correct), parent={"vp": "p", "vq": "q"})
    assert table["parent"].tolist() == ["p", "q"]
    assert (table["lost"] + table["gained"]).tolist() == [1, 2]


def test_one_candidate_has_nothing_to_compare():
    table = paired_comparison({"p": PARENT}, parent="p")
    assert table.empty
    assert "detectable_difference" in table.columns


@pytest.mark.parametrize(
    ("correct", "options", "message"),
    [
        ({}, {}, "correct is empty; allowed: 1 candidate and 1 image or more"),
        ({"p": np.array([], bool)}, {}, "correct is empty"),
        (
            {"p": PARENT, "v": PARENT[:3]},
            {},
            "different numbers of seeds or images: {'p': \\(1, 10\\), 'v': \\(1, 3\\)}",
        ),
        ({"p": PARENT, "v": PARENT * 1.0}, {}, r"correct\['v'\] is float64 of shape \(10,\)"),
        ({"q": PARENT}, {}, "correct has no candidate p; it has: q"),
        ({"p": PARENT}, {"alpha": 0.0}, "alpha is 0.0; allowed: above 0 and below 1"),
        ({"p": PARENT}, {"power": 1.0}, "power is 1.0; allowed: above 0 and below 1"),
    ],
)
def test_paired_comparison_refuses(correct, options, message):
    with pytest.raises(ValueError, match=message):
        paired_comparison(correct, parent="p", **options)


def enumerated_power(difference, *, images, disagreement, alpha):
    """Sum over every table (better, worse, equal) with its trinomial probability."""
    share = max(disagreement, difference)
    better, worse = (share + difference) / 2, (share - difference) / 2
    total = 0.0
    for a in range(images + 1):
        for b in range(images - a + 1):
            if a + b and binomtest(a, a + b).pvalue <= alpha:
                ways = comb(images, a) * comb(images - a, b)
                total += ways * better**a * worse**b * (1 - share) ** (images - a - b)
    return total


@pytest.mark.parametrize(("difference", "disagreement"), [(0.2, 0.5), (0.5, 0.5), (0.6, 0.3)])
def test_power_equals_the_enumeration_of_all_tables(difference, disagreement):
    options = {"images": 14, "disagreement": disagreement, "alpha": 0.05}
    expected = enumerated_power(difference, **options)
    assert mcnemar_power(difference, **options) == pytest.approx(expected, abs=1e-7)


def test_detectable_difference_has_the_asked_power():
    options = {"images": 500, "disagreement": 0.1, "alpha": 0.05}
    smallest = detectable_difference(500, disagreement=0.1)
    assert mcnemar_power(smallest, **options) == pytest.approx(0.8, abs=1e-3)
    assert mcnemar_power(0.9 * smallest, **options) < 0.8


def test_paired_comparison_detects_at_the_strictest_step_of_holm():
    base = np.ones(500, dtype=bool)
    variants = {f"v{n}": flipped(base, *range(n)) for n in (50, 40)}
    table = paired_comparison({"p": base, **variants}, parent="p", alpha=0.1)
    expected = detectable_difference(500, disagreement=0.1, alpha=0.05)
    assert table["detectable_difference"][0] == expected


def test_detectable_difference_without_disagreement_brings_its_own():
    # all disagreements favour one side, and alpha = 0.05 needs 6 of them: P(Bin(N, D) >= 6) = 0.8
    smallest = detectable_difference(1000, disagreement=0.0)
    ways = [comb(1000, k) * smallest**k * (1 - smallest) ** (1000 - k) for k in range(6)]
    assert sum(ways) == pytest.approx(0.2, abs=1e-3)


@settings(max_examples=15, deadline=None)
@given(images=st.integers(20, 2000), disagreement=st.floats(0, 0.5))
def test_more_images_detect_less(images, disagreement):
    few = detectable_difference(images, disagreement=disagreement)
    many = detectable_difference(4 * images, disagreement=disagreement)
    assert 0 < many < few <= 1


def test_five_images_detect_nothing():
    assert np.isnan(detectable_difference(5, disagreement=0.2))


@pytest.mark.parametrize(
    ("images", "options", "message"),
    [
        (0, {}, "images is 0; allowed: 1 or more"),
        (10, {"disagreement": 1.5}, "disagreement is 1.5; allowed: 0 to 1"),
        (10, {"power": 0.05}, r"power is 0.05; allowed: above alpha \(0.05\)"),
    ],
)
def test_detectable_difference_refuses(images, options, message):
    with pytest.raises(ValueError, match=message):
        detectable_difference(images, **{"disagreement": 0.1, **options})


def test_ties_name_whom_the_test_cannot_tell_apart():
    base = np.ones(40, dtype=bool)
    table = pd.DataFrame({"a": base, "b": flipped(base, 0), "c": flipped(base, *range(20))})
    assert accuracy_ties(table, alpha=0.05) == [["b"], ["a"], []]


@pytest.mark.parametrize(
    ("lost", "gained", "images", "published"),
    [
        # airway reactivity, Fagerland, Lydersen and Laake 2014, doi:10.1002/sim.6148
        (7, 1, 21, (-0.517, -0.026)),
        # Agresti and Min 2005, doi:10.1002/sim.1781
        (8, 16, 86, (-0.020, 0.207)),
    ],
)
def test_tango_interval_is_the_published_one(lost, gained, images, published):
    assert tango_interval(lost, gained, images) == pytest.approx(published, abs=5e-4)
    mirrored = tango_interval(gained, lost, images)
    assert mirrored == pytest.approx((-published[1], -published[0]), abs=5e-4)


def score_of(value, *, lost, gained, images):
    """Standardised distance of the observed difference from ``value``, by maximum likelihood."""

    def loss(share):  # minus the log likelihood with P(lost) = share, P(gained) = share + value
        rest = max(1 - 2 * share - value, 1e-300)
        parts = ((lost, share), (gained, share + value), (images - lost - gained, rest))
        return -sum(count * np.log(max(p, 1e-300)) for count, p in parts if count)

    bounds = (max(0.0, -value), (1 - value) / 2)
    share = minimize_scalar(loss, bounds=bounds, method="bounded", options={"xatol": 1e-12}).x
    variance = (2 * share + value - value**2) / images
    return ((gained - lost) / images - value) / np.sqrt(variance)


@pytest.mark.parametrize("confidence", [0.95, 0.9975])
@pytest.mark.parametrize(
    ("lost", "gained", "images"), [(9, 2, 40), (1, 0, 12), (0, 0, 50), (91, 73, 5000), (30, 5, 50)]
)
def test_tango_interval_ends_where_the_score_test_does(lost, gained, images, confidence):
    low, high = tango_interval(lost, gained, images, confidence=confidence)
    limit = norm.ppf((1 + confidence) / 2)
    counts = {"lost": lost, "gained": gained, "images": images}
    assert score_of(low, **counts) == pytest.approx(limit, abs=1e-3)
    assert score_of(high, **counts) == pytest.approx(-limit, abs=1e-3)


@pytest.mark.parametrize(("lost", "gained", "end"), [(12, 0, 0), (0, 12, 1)])
def test_tango_interval_of_all_images_ends_at_one(lost, gained, end):
    interval = tango_interval(lost, gained, 12)
    assert interval[end] == (-1.0, 1.0)[end]
    assert abs(interval[1 - end]) < 1


def test_tango_interval_refuses():
    with pytest.raises(ValueError, match=r"confidence is 1.0; allowed: above 0 and below 1"):
        tango_interval(1, 2, 10, confidence=1.0)


def mean_squares(table):
    """Mean squares of seeds, images and what is left, by least squares on dummy variables."""
    seeds, images = table.shape
    rows = pd.DataFrame(
        {
            "value": table.ravel(),
            "seed": np.repeat(np.arange(seeds), images),
            "image": np.tile(np.arange(images), seeds),
        }
    )
    found = anova_lm(ols("value ~ C(seed) + C(image)", rows).fit())
    return (found["sum_sq"] / found["df"]).tolist()


@pytest.mark.parametrize("seed_effect", [0.0, 2.0])
@pytest.mark.parametrize("image_effect", [0.0, 1.0])
def test_two_level_spread_is_that_of_the_analysis_of_variance(seed_effect, image_effect):
    rng = np.random.default_rng(3)
    table = rng.normal(size=(4, 7))
    table += seed_effect * rng.normal(size=(4, 1)) + image_effect * rng.normal(size=(1, 7))
    of_seeds, of_images, rest = mean_squares(table)
    image = max(of_images, rest)
    total = max(0.0, of_seeds - rest) + image
    squares = (of_seeds**2 / 3 if of_seeds > rest else 0) + image**2 / 6
    error, freedom = two_level_spread(table)
    assert error == pytest.approx(np.sqrt(total / 28))
    assert freedom == pytest.approx(total**2 / squares)


@pytest.mark.parametrize("table", [np.ones((3, 5)), np.eye(4)[:1], np.eye(4)[:, :1]])
def test_two_level_spread_is_none_where_nothing_can_be_estimated(table):
    assert two_level_spread(table) is None


def test_two_level_spread_of_a_latin_square_is_that_of_the_rest():
    # seeds and images all have the mean 1/3: what is left is all, on (3 - 1) (3 - 1) degrees
    error, freedom = two_level_spread(np.eye(3))
    rest = 9 * (1 / 3) * (2 / 3) / 4
    assert (error, freedom) == pytest.approx((np.sqrt(rest / 9), 2))


def test_pooled_seed_spread_is_the_mean_of_the_groups():
    rng = np.random.default_rng(4)
    groups = [rng.normal(size=(3, images)) + rng.normal(size=(3, 1)) for images in (20, 50)]
    components = []
    for group in groups:
        of_seeds, _, rest = mean_squares(group)
        components.append((of_seeds - rest) / group.shape[1])
    found = pooled_seed_spread(groups)
    assert found.variance == pytest.approx(np.mean(components))
    assert found.freedom == (3 - 1) * 2
    assert pooled_seed_spread([np.eye(4)[:1]]) is None
    assert pooled_seed_spread([np.eye(3)]).variance == 0
    # two seeds that differ by 1 on each of two images: variance of (0, 1), one degree of freedom
    assert pooled_seed_spread([np.array([[1.0, 1.0], [0.0, 0.0]])]) == SeedSpread(0.5, 1)


def test_two_level_spread_is_at_least_as_wide_as_it_is_told():
    rng = np.random.default_rng(5)
    table = rng.normal(size=(3, 40))
    _, of_images, rest = mean_squares(table)
    image = max(of_images, rest)
    error, freedom = two_level_spread(table, at_least=SeedSpread(0.5, 8))
    assert error == pytest.approx(np.sqrt((40 * 0.5 + image) / 120))
    squares = (40 * 0.5 + rest) ** 2 / 8 + image**2 / 39
    assert freedom == pytest.approx((40 * 0.5 + image) ** 2 / squares)
    assert two_level_spread(table, at_least=SeedSpread(0.0, 8)) == two_level_spread(table)


def three_seeds():
    """Parent and variant on 5,000 images that differ by -0.36, -0.58 and -0.28 points."""
    parent, variant = np.ones((2, 3, 5000), dtype=bool)
    for seed, (lost, gained) in enumerate([(92, 74), (96, 67), (86, 72)]):
        # some of the images are lost, or gained, with two seeds
        variant[seed, 80 * seed : 80 * seed + lost] = False
        parent[seed, 1000 + 65 * seed : 1000 + 65 * seed + gained] = False
    return variant, parent


def test_paired_difference_tests_the_mean_of_the_seeds_that_it_shows():
    variant, parent = three_seeds()
    found = paired_difference(variant, parent)
    assert found.difference == pytest.approx(-(0.0036 + 0.0058 + 0.0028) / 3)
    first = paired_difference(variant[0], parent[0])
    assert first.p_value == pytest.approx(binomtest(74, 92 + 74).pvalue)
    assert first.p_value > 0.15
    assert found.p_value < first.p_value / 10
    assert found.method == "paired over images and seeds (two-level)"
    # the seed-mean difference of every image, paired: t test by hand
    gaps = variant.mean(axis=0) - parent.mean(axis=0)
    error = gaps.std(ddof=1) / np.sqrt(5000)
    assert found.p_value == pytest.approx(2 * t.sf(-gaps.mean() / error, 4999), rel=0.05)
    half = t.ppf(0.975, 4999) * error
    expected = (gaps.mean() - half, gaps.mean() + half)
    assert (found.low, found.high) == pytest.approx(expected, rel=0.02)


def test_paired_difference_of_one_seed_is_mcnemars_with_tangos_interval():
    variant, parent = flipped(PARENT, 0, 1, 2, 9), PARENT
    found = paired_difference(variant, parent, confidence=0.9)
    assert found == (
        -0.2,
        *tango_interval(3, 1, 10, confidence=0.9),
        binomtest(1, 4).pvalue,
        "exact McNemar test, Tango interval",
    )


def test_paired_difference_refuses_other_shapes():
    message = r"variant is \(1, 10\) and parent \(1, 9\); allowed: the same seeds, images"
    with pytest.raises(ValueError, match=message):
        paired_difference(PARENT, PARENT[:9])


def test_paired_comparison_of_seeds_is_over_all_of_them():
    variant, parent = three_seeds()
    row = paired_comparison({"p": parent, "v": variant}, parent="p").iloc[0]
    assert row[["seeds", "images", "lost", "gained"]].tolist() == [3, 5000, 274, 213]
    assert row["accuracy"] == pytest.approx(variant.mean())
    expected = paired_difference(variant, parent)
    columns = ["accuracy_difference", "difference_low", "difference_high", "p_value", "method"]
    assert tuple(row[columns]) == expected
    assert row["significant"]
    assert np.isnan(row["detectable_difference"])


def test_paired_comparison_has_the_interval_of_its_alpha():
    correct = {"p": PARENT, "v": flipped(PARENT, 0, 1)}
    row = paired_comparison(correct, parent="p", alpha=0.2).iloc[0]
    expected = tango_interval(2, 0, 10, confidence=0.8)
    assert (row["difference_low"], row["difference_high"]) == expected


def coverage_of_paired_difference(*, seed_effect, repeats):
    """How often the interval holds the true difference, and the sizes of the p values."""
    rng, inside, small = np.random.default_rng(4), 0, 0
    for _ in range(repeats):
        image, shared = rng.normal(size=(1, 400)), rng.normal(size=(5, 400))
        scores = [
            1.5 * image + shared + 0.7 * rng.normal(size=(5, 400)) + seed_effect * effect
            for effect in rng.normal(size=(2, 5, 1))
        ]
        found = paired_difference(*(score < 1.5 for score in scores))  # the truth is 0
        inside += found.low <= 0 <= found.high
        small += found.p_value < 0.05
    assert inside + small == repeats
    return inside / repeats


def test_paired_difference_covers_95_percent():
    found = coverage_of_paired_difference(seed_effect=0.1, repeats=400)
    assert binom.ppf(0.001, 400, 0.94) / 400 <= found <= binom.ppf(0.999, 400, 0.96) / 400


@pytest.mark.slow
@pytest.mark.parametrize("seed_effect", [0.0, 0.05, 0.1, 0.3])
def test_paired_difference_covers_95_percent_in_long(seed_effect):
    found = coverage_of_paired_difference(seed_effect=seed_effect, repeats=4000)
    assert 0.93 <= found <= 0.97


def test_accuracy_ties_are_over_all_seeds():
    # the first seeds differ in nothing, the others in all
    first = np.ones((3, 40), dtype=bool)
    second = first.copy()
    second[1:] = False
    second[1:, :2] = True
    assert accuracy_ties({"a": first, "b": second}, alpha=0.5) == [[], []]
