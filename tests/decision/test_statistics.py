"""Intervals and frontier odds: by hand, by brute force, and their coverage by simulation."""

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgeopt.decision.answers import share_interval
from edgeopt.decision.statistics import frontier_probability, hypervolume
from edgeopt.metrics.latency import median_interval
from edgeopt.metrics.quality import wilson_interval


def latency_samples(medians, *, rounds=10, calls=5, spread=0.0):
    rng = np.random.default_rng(0)
    tables = [
        pd.DataFrame(
            {
                "candidate": name,
                "round": np.repeat(np.arange(rounds), calls),
                "latency_ms": median + spread * rng.normal(size=rounds * calls),
            }
        )
        for name, median in medians.items()
    ]
    return pd.concat(tables, ignore_index=True)


def answers(accuracy, *, images=200):
    return np.arange(images) < round(accuracy * images)


def test_clear_winners_and_losers_have_probability_one_and_zero():
    correct = {"fast": answers(0.5), "good": answers(0.9), "beaten": answers(0.3)}
    samples = latency_samples({"fast": 1.0, "good": 2.0, "beaten": 3.0}, spread=0.01)
    table = frontier_probability(correct, samples)
    assert table["candidate"].tolist() == ["fast", "good", "beaten"]
    assert table["frontier_probability"].tolist() == [1.0, 1.0, 0.0]
    assert table["accuracy"].tolist() == [0.5, 0.9, 0.3]
    assert table["latency_p50_ms"].tolist() == pytest.approx([1, 2, 3], abs=0.02)
    assert table["tied_with"].tolist() == ["", "", ""]


def test_a_coin_toss_is_shared():
    # equally fast; each is right where the other is wrong, so the draw of images decides
    correct = {"a": np.arange(200) % 2 == 0, "b": np.arange(200) % 2 == 1}
    samples = latency_samples({"a": 1.0, "b": 1.0})
    table = frontier_probability(correct, samples, replicates=4000)
    assert table["frontier_probability"].tolist() == pytest.approx([0.5, 0.5], abs=0.05)
    assert table["tied_with"].tolist() == ["b", "a"]


def test_the_frontier_of_several_seeds_is_that_of_their_mean():
    # the slower one is worse on the first seed, and better on the mean of both
    correct = {
        "fast": np.stack([answers(0.6), answers(0.6)]),
        "slow": np.stack([answers(0.5), answers(0.9)]),
    }
    table = frontier_probability(correct, latency_samples({"fast": 1.0, "slow": 2.0}))
    assert table["accuracy"].tolist() == pytest.approx([0.6, 0.7])
    assert table["frontier_probability"].tolist() == [1.0, 1.0]


def test_images_are_drawn_together():
    # the slow one is right wherever the fast one is, and once more: never worse in any draw,
    # better in those that hold the extra image, 1 - (1 - 1/N)^N of them
    base = answers(0.5, images=100)
    correct = {"fast": base, "slow": base | (np.arange(100) == 99)}
    table = frontier_probability(
        correct, latency_samples({"fast": 1.0, "slow": 2.0}), replicates=4000
    )
    assert table["frontier_probability"][0] == 1.0
    assert table["frontier_probability"][1] == pytest.approx(1 - 0.99**100, abs=0.03)


def test_rounds_are_drawn_together():
    # both slow down in the same rounds; the worse candidate is always 1 % behind
    drift = np.repeat(np.linspace(1, 5, 10), 5)
    samples = latency_samples({"a": 1.0, "b": 1.01})
    samples["latency_ms"] *= np.tile(drift, 2)
    table = frontier_probability({"a": answers(0.8), "b": answers(0.8)}, samples)
    assert table["frontier_probability"].tolist() == [1.0, 0.0]


@settings(max_examples=8, deadline=None)  # statsmodels collects garbage in every Holm adjustment
@given(st.lists(st.tuples(st.integers(1, 4), st.integers(1, 9)), min_size=1, max_size=6))
def test_each_draw_has_a_frontier(points):
    correct = {f"c{i}": answers(accuracy / 10, images=20) for i, (_, accuracy) in enumerate(points)}
    samples = latency_samples({f"c{i}": float(x) for i, (x, _) in enumerate(points)}, calls=1)
    table = frontier_probability(correct, samples, replicates=20)
    fastest = table["latency_p50_ms"] == table["latency_p50_ms"].min()
    assert table["frontier_probability"][fastest].sum() == pytest.approx(1.0)
    assert table["frontier_probability"].between(0, 1).all()


def test_the_seed_decides():
    correct = {"a": answers(0.5), "b": ~answers(0.5)}
    samples = latency_samples({"a": 1.0, "b": 1.0}, spread=0.1)
    first = frontier_probability(correct, samples, seed=3)
    pd.testing.assert_frame_equal(first, frontier_probability(correct, samples, seed=3))


@pytest.mark.parametrize("latency", [1.0, 2.0])
def test_frontier_probability_draws_other_images_with_another_seed(latency):
    correct = {"a": answers(0.5), "b": ~answers(0.5)}
    samples = latency_samples({"a": 1.0, "b": latency})  # without spread only images are drawn
    found = [frontier_probability(correct, samples, seed=seed) for seed in (3, 4)]
    assert not found[0].equals(found[1])


def test_frontier_probability_knows_ties_of_thirds():
    # of three seeds the fast one has one right everywhere; the slow one has two, one and none
    fast = np.zeros((3, 30), dtype=bool)
    fast[0] = True
    slow = np.stack([np.arange(30) < 20, np.arange(30) < 10, np.zeros(30, dtype=bool)])
    samples = latency_samples({"fast": 1.0, "slow": 2.0})
    table = frontier_probability({"fast": fast, "slow": slow}, samples, replicates=20_000)
    # it is better where the first ten images are drawn more often than the last ten
    counts = np.random.default_rng(9).multinomial(30, [1 / 3] * 3, size=200_000)
    better = np.mean(counts[:, 0] > counts[:, 2])
    assert table["frontier_probability"][1] == pytest.approx(better, abs=0.015)


def test_one_candidate_is_the_frontier():
    table = frontier_probability({"a": answers(0.5)}, latency_samples({"a": 1.0}))
    assert table["frontier_probability"].tolist() == [1.0]
    assert table["tied_with"].tolist() == [""]


def test_frontier_probability_names_missing_samples():
    correct = {"a": answers(0.5), "b": answers(0.6), "c": answers(0.7)}
    samples = latency_samples({"a": 1.0, "b": 2.0})
    samples.loc[samples["candidate"].eq("b") & samples["round"].eq(4), "latency_ms"] = np.nan
    with pytest.raises(ValueError, match="no latency samples of b, c: not measured, or failed"):
        frontier_probability(correct, samples)


def test_frontier_probability_refuses_uneven_rounds_and_no_replicates():
    correct = {"a": answers(0.5), "b": answers(0.6)}
    samples = latency_samples({"a": 1.0, "b": 2.0})
    uneven = samples[(samples["candidate"] == "a") | (samples["round"] < 3)]
    with pytest.raises(ValueError, match=r"different numbers of rounds: \{'a': 10, 'b': 3\}"):
        frontier_probability(correct, uneven)
    with pytest.raises(ValueError, match="replicates is 0; allowed: 1 or more"):
        frontier_probability(correct, samples, replicates=0)


def points_table(points):
    return pd.DataFrame(points, columns=["latency_ms", "accuracy"], dtype=float)


def test_no_candidate_has_no_frontier():
    empty = frontier_probability({}, latency_samples({"a": 1.0}))
    assert list(empty) == list(
        frontier_probability({"a": answers(0.5)}, latency_samples({"a": 1.0}))
    )
    assert empty.empty


def test_hypervolume_of_two_steps_by_hand():
    table = points_table([(3, 0.9), (1, 0.5), (2, 0.4), (9, 0.99), (0.5, 0.05)])
    # (1, 0.5) up to x = 3, (3, 0.9) up to the reference; the others are beaten or outside
    area = (3 - 1) * (0.5 - 0.1) + (5 - 3) * (0.9 - 0.1)
    assert hypervolume(table, x_col="latency_ms", reference=(5, 0.1)) == pytest.approx(area)


@given(st.lists(st.tuples(st.integers(0, 12), st.integers(0, 12)), max_size=8))
def test_hypervolume_counts_the_dominated_cells(points):
    cells = {(i, j) for x, y in points for i in range(x, 10) for j in range(2, y)}
    area = hypervolume(points_table(points), x_col="latency_ms", reference=(10, 2))
    assert area == pytest.approx(len(cells))


def test_hypervolume_refuses():
    table = points_table([(1, 0.5)])
    with pytest.raises(ValueError, match=r"reference is .*; allowed: two finite numbers"):
        hypervolume(table, x_col="latency_ms", reference=(np.inf, 0))
    with pytest.raises(ValueError, match=r"hypervolume needs the column.* energy_j"):
        hypervolume(table, x_col="energy_j", reference=(1, 0))


def coverage(intervals, truth):
    return np.mean([low <= truth <= high for low, high in intervals])


def logistic_accuracy(rng, *, spread, count=2_000_000):
    return np.mean(1 / (1 + np.exp(-3.5 - spread * rng.normal(size=count))))


@pytest.mark.slow
def test_wilson_interval_covers_95_percent():
    right = np.random.default_rng(0).binomial(3000, 0.88, size=4000)
    intervals = [wilson_interval(correct, 3000) for correct in right]
    assert 0.93 <= coverage(intervals, 0.88) <= 0.97


@pytest.mark.slow
@pytest.mark.parametrize(("seeds", "seed_effect"), [(3, 0.2), (5, 0.0), (5, 0.2), (10, 0.2)])
def test_share_interval_over_seeds_and_images_covers_95_percent(seeds, seed_effect):
    rng = np.random.default_rng(1)
    image_effect, noise = 3.0, 1.0
    truth = logistic_accuracy(rng, spread=np.hypot(np.hypot(seed_effect, image_effect), noise))

    def interval():
        score = 3.5 + seed_effect * rng.normal(size=(seeds, 1))
        score = score + image_effect * rng.normal(size=(1, 1000))
        score = score + noise * rng.normal(size=(seeds, 1000)) + rng.logistic(size=(seeds, 1000))
        return share_interval(score > 0)

    assert 0.93 <= coverage([interval() for _ in range(2000)], truth) <= 0.97


@pytest.mark.slow
@pytest.mark.parametrize(("rounds", "round_effect"), [(10, 0.05), (20, 0.0), (20, 0.2)])
def test_median_interval_covers_95_percent(rounds, round_effect):
    rng = np.random.default_rng(2)

    def latencies(rounds, calls):
        noise = np.exp(0.2 * rng.normal(size=(rounds, calls)))
        return noise + round_effect * rng.normal(size=(rounds, 1))

    truth = np.median(latencies(2_000_000, 1))

    def interval(seed):
        table = pd.DataFrame(
            {"round": np.repeat(np.arange(rounds), 20), "latency_ms": latencies(rounds, 20).ravel()}
        )
        return median_interval(table, replicates=500, seed=seed)

    assert 0.93 <= coverage([interval(seed) for seed in range(1000)], truth) <= 0.97
