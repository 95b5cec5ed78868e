"""Paired tests against hand-counted tables and brute-force enumeration."""

from math import comb

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binomtest

from edgeopt.paired import accuracy_ties, detectable_difference, mcnemar_power, paired_comparison

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
        ({"p": PARENT, "v": PARENT[:3]}, {}, "different numbers of images: {'p': 10, 'v': 3}"),
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
    assert accuracy_ties(table, alpha=0.05) == ["b", "a", ""]
