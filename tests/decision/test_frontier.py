"""The frontier by hand and by brute force, and its probabilities."""

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgeopt.decision.frontier import (
    frontier_probability,
    frontier_twins,
    hypervolume,
    hypervolume_gain,
    pareto_frontier,
)
from tests.decision.test_budgets import NAN, points, sweep


class TestParetoFrontier:
    def test_by_hand(self):
        frame = sweep(
            latency_ms=[3.0, 1.0, 2.0, 2.0, 4.0, 0.5],
            accuracy=[0.9, 0.7, 0.8, 0.85, 0.9, 0.99],
        ).assign(accepted=[True] * 5 + [False], note=list("abcdef"))
        frontier = pareto_frontier(frame, "latency_ms")
        assert points(frontier) == [(1.0, 0.7), (2.0, 0.85), (3.0, 0.9)]
        assert frontier["note"].tolist() == ["b", "d", "a"]
        assert frontier.index.tolist() == [1, 3, 0]

    def test_any_column_serves_as_x(self):
        frame = sweep(energy_proxy_j=[2.0, 1.0], accuracy=[0.9, 0.95])
        assert pareto_frontier(frame, "energy_proxy_j")["accuracy"].tolist() == [0.95]

    def test_rows_without_a_number_are_left_out(self):
        frame = sweep(latency_ms=[1.0, NAN, 0.5], accuracy=[0.9, 0.99, NAN])
        assert points(pareto_frontier(frame, "latency_ms")) == [(1.0, 0.9)]

    def test_a_missing_acceptance_is_not_accepted(self):
        frame = sweep(latency_ms=[1.0, 2.0], accuracy=[0.8, 0.9]).assign(accepted=[True, None])
        assert points(pareto_frontier(frame, "latency_ms")) == [(1.0, 0.8)]

    @pytest.mark.parametrize("rejected", [False, True])
    def test_empty_in_empty_out_with_the_columns(self, rejected):
        frame = sweep(latency_ms=[1.0], accuracy=[0.9], candidate=["a"])
        frame = frame.assign(accepted=False) if rejected else frame.iloc[:0]
        frontier = pareto_frontier(frame, "latency_ms")
        assert frontier.empty
        assert list(frontier.columns) == list(frame.columns)

    def test_a_frame_that_never_had_rows(self):
        frame = pd.DataFrame(columns=["accepted", "accuracy", "latency_ms"])
        assert pareto_frontier(frame, "latency_ms").empty

    def test_an_unknown_column_is_named_with_those_there_are(self):
        frame = sweep(latency_ms=[1.0], accuracy=[0.9])
        with pytest.raises(ValueError, match=r"column\(s\) speed; the table has: accepted, lat"):
            pareto_frontier(frame, "speed")

    frames = st.lists(
        st.tuples(
            st.booleans(),
            st.integers(0, 6).map(float) | st.just(NAN),
            st.integers(0, 6).map(float) | st.just(NAN),
        ),
        max_size=25,
    ).map(
        lambda rows: pd.DataFrame(rows, columns=["accepted", "latency_ms", "accuracy"]).astype(
            {"accepted": bool}
        )
    )

    @given(frames)
    def test_frontier_rows_are_accepted_and_strictly_better_one_after_the_other(self, frame):
        frontier = pareto_frontier(frame, "latency_ms")
        assert frontier["accepted"].all()
        assert (np.diff(frontier["latency_ms"]) > 0).all()
        assert (np.diff(frontier["accuracy"]) > 0).all()

    @given(frames)
    def test_every_accepted_row_is_matched_or_beaten_by_a_frontier_row(self, frame):
        frontier = points(pareto_frontier(frame, "latency_ms"))
        for x, accuracy in points(frame[frame["accepted"]].dropna()):
            assert any(fx <= x and fa >= accuracy for fx, fa in frontier)

    @given(frames)
    def test_no_accepted_row_beats_a_frontier_row(self, frame):
        frontier = points(pareto_frontier(frame, "latency_ms"))
        for x, accuracy in points(frame[frame["accepted"]].dropna()):
            assert not any(
                x <= fx and accuracy >= fa and (x, accuracy) != (fx, fa) for fx, fa in frontier
            )

    @given(frames)
    def test_idempotent(self, frame):
        once = pareto_frontier(frame, "latency_ms")
        pd.testing.assert_frame_equal(pareto_frontier(once, "latency_ms"), once)

    @given(frames, st.randoms())
    def test_the_order_of_the_rows_does_not_matter(self, frame, random):
        order = list(range(len(frame)))
        random.shuffle(order)
        shuffled = pareto_frontier(frame.iloc[order], "latency_ms")
        assert points(shuffled) == points(pareto_frontier(frame, "latency_ms"))


class TestFrontierTwins:
    def test_frontier_twins_are_equal_in_both_numbers(self):
        frame = sweep(
            candidate=["a", "b", "slow", "worse", "c", "d", "refused"],
            latency_ms=[1.0, 1.0, 1.1, 1.0, 2.0, 2.0, 1.0],
            accuracy=[0.8, 0.8, 0.8, 0.79, 0.9, 0.9, 0.8],
        ).assign(accepted=[True] * 6 + [False])
        twins = frontier_twins(frame, "latency_ms")
        assert twins.to_numpy().tolist() == [["b", "a"], ["d", "c"]]
        assert list(twins) == ["candidate", "equals"]
        on_it = pareto_frontier(frame, "latency_ms")["candidate"].tolist()
        assert on_it == twins["equals"].tolist()

    def test_frontier_twins_of_a_frontier_of_all_are_none(self):
        frame = sweep(candidate=["a", "b"], latency_ms=[1.0, 2.0], accuracy=[0.8, 0.9])
        assert frontier_twins(frame, "latency_ms").empty
        assert frontier_twins(frame.iloc[:0], "latency_ms").empty


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
    # both slow down in the same rounds; the worse candidate is always 1% behind
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


def test_the_gain_of_what_was_added_by_hand():
    correct = {"slow": answers(0.9), "mid": answers(0.5), "new": answers(0.8)}
    samples = latency_samples({"slow": 4.0, "mid": 2.0, "new": 1.0})
    gain, low, high = hypervolume_gain(correct, samples, added=["new"], chance=0.1)
    before = (4 - 2) * (0.5 - 0.1) + (4.4 - 4) * (0.9 - 0.1)
    after = (4 - 1) * (0.8 - 0.1) + (4.4 - 4) * (0.9 - 0.1)
    assert gain == pytest.approx(after / before - 1)
    assert low < gain < high


def test_a_draw_in_which_all_are_slower_than_the_slowest_median_has_a_gain():
    # The others take 10 ms in one round of two: their median can be drawn as 1 or 10 ms, and 10 is
    # beyond 1.1 times the 5.5 ms that were observed.
    correct = {"old": answers(0.5), "new": answers(0.5)}
    samples = latency_samples({"old": 10.0, "new": 1.0}, rounds=2)
    samples.loc[samples["candidate"].eq("old") & samples["round"].eq(0), "latency_ms"] = 1.0
    _, low, high = hypervolume_gain(correct, samples, added=["new"], chance=0.1)
    assert low == 0  # both take 1 ms
    assert high == pytest.approx((11 - 1) / (11 - 10) - 1)


def test_what_is_added_to_guesses_is_infinitely_more():
    correct = {"guess": answers(0.1), "new": answers(0.5)}
    samples = latency_samples({"guess": 1.0, "new": 2.0})
    gain, _, high = hypervolume_gain(correct, samples, added=["new"], chance=0.1)
    assert gain == high == np.inf
    assert hypervolume_gain(correct, samples, added=["new"], chance=0.9) == (0, 0, 0)


def test_what_is_beaten_adds_nothing_and_all_added_is_refused():
    correct = {"good": answers(0.9), "beaten": answers(0.5)}
    samples = latency_samples({"good": 1.0, "beaten": 2.0})
    assert hypervolume_gain(correct, samples, added=["beaten"], chance=0.1) == (0, 0, 0)
    with pytest.raises(ValueError, match="all candidates are added"):
        hypervolume_gain(correct, samples, added=[*correct], chance=0.1)
