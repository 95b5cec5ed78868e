import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgeopt.decision.selection import apply_budgets, budget_column, frontier_twins, pareto_frontier
from edgeopt.hardware.tradeoffs import precision_tradeoff_table

NAN = float("nan")


def sweep(**columns):
    return pd.DataFrame({"accepted": True, **columns})


def points(frame):
    return list(zip(frame["latency_ms"], frame["accuracy"], strict=True))


class TestApplyBudgets:
    def test_a_row_at_the_active_budget_is_accepted(self):
        table = apply_budgets(
            pd.DataFrame({"memory_mb": [0.03, 0.05, 0.0500001]}),
            memory_budgets_mb=[0.04],
            active_memory_budget_mb=0.05,
        )
        assert table["accepted"].tolist() == [True, True, False]
        assert table["violates_0.04mb"].tolist() == [False, True, True]
        assert table["active_budget_mb"].tolist() == [0.05] * 3

    def test_failed_and_unmeasured_rows_are_never_accepted(self):
        frame = pd.DataFrame(
            {"memory_mb": [0.01, 0.01, NAN], "status": ["ok", "failed", "ok"], "error": ""}
        )
        table = apply_budgets(frame, memory_budgets_mb=[1], active_memory_budget_mb=1)
        assert table["accepted"].tolist() == [True, False, False]
        assert not table["violates_1mb"].any()

    def test_the_input_is_left_as_it_was(self):
        frame = pd.DataFrame({"memory_mb": [0.1]})
        apply_budgets(frame, memory_budgets_mb=[1], active_memory_budget_mb=1)
        assert list(frame.columns) == ["memory_mb"]

    @pytest.mark.parametrize(
        ("budget", "name"),
        [
            (0.05, "violates_0.05mb"),
            (1, "violates_1mb"),
            (1.0, "violates_1.0mb"),
            (1.5, "violates_1.5mb"),
        ],
    )
    def test_budget_columns_are_named_as_python_writes_the_number(self, budget, name):
        assert budget_column(budget) == name

    @pytest.mark.parametrize("bad", [0, -1.0, float("inf"), NAN])
    def test_a_budget_must_be_positive_and_finite(self, bad):
        frame = pd.DataFrame({"memory_mb": [0.1]})
        with pytest.raises(ValueError, match=r"memory budget is .* allowed: above 0 and finite"):
            apply_budgets(frame, memory_budgets_mb=[bad], active_memory_budget_mb=1)
        with pytest.raises(ValueError, match="memory budget"):
            apply_budgets(frame, memory_budgets_mb=[1], active_memory_budget_mb=bad)

    def test_a_table_without_memory_is_refused(self):
        with pytest.raises(ValueError, match=r"apply_budgets needs the column\(s\) memory_mb"):
            apply_budgets(
                pd.DataFrame({"accuracy": [1]}), memory_budgets_mb=[], active_memory_budget_mb=1
            )

    @given(
        memory=st.lists(st.floats(0.001, 10), min_size=1),
        small=st.floats(0.01, 5),
        extra=st.floats(0, 5),
    )
    def test_a_larger_budget_accepts_at_least_as_much(self, memory, small, extra):
        frame = pd.DataFrame({"memory_mb": memory})
        tight = apply_budgets(frame, memory_budgets_mb=[small], active_memory_budget_mb=small)
        loose = apply_budgets(frame, memory_budgets_mb=[], active_memory_budget_mb=small + extra)
        assert (loose["accepted"] | ~tight["accepted"]).all()
        assert (tight["accepted"] == ~tight[budget_column(small)]).all()


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


class TestPrecisionTradeoffs:
    frame = pd.DataFrame(
        {
            "precision": ["fp32", "int8", "fp32", "int8", "fp16"],
            "runtime": ["torch", "torch", "openvino", "openvino", "torch"],
            "accuracy": [0.9, 0.8, 0.7, 0.6, NAN],
            "latency_ms": [4.0, 1.0, 6.0, 2.0, NAN],
            "memory_mb": [0.4, 0.1, 0.2, 0.1, NAN],
            "energy_proxy_j": [0.04, 0.01, 0.06, 0.02, NAN],
            "accepted": [False, True, True, True, False],
        }
    )

    def test_means_by_hand_fastest_first(self):
        table = precision_tradeoff_table(self.frame)
        assert list(table.columns) == [
            "precision",
            "accuracy_mean",
            "latency_ms_mean",
            "memory_mb_mean",
            "energy_proxy_j_mean",
            "accepted_ratio",
        ]
        assert table["precision"].tolist() == ["int8", "fp32", "fp16"]
        assert table.index.tolist() == [0, 1, 2]
        assert table["latency_ms_mean"].tolist()[:2] == [1.5, 5.0]
        assert table["accuracy_mean"].tolist()[:2] == pytest.approx([0.7, 0.8])
        assert table["memory_mb_mean"].tolist()[:2] == pytest.approx([0.1, 0.3])
        assert table["energy_proxy_j_mean"].tolist()[:2] == pytest.approx([0.015, 0.05])
        assert table["accepted_ratio"].tolist() == [1.0, 0.5, 0.0]

    def test_grouped_by_runtime_as_well(self):
        table = precision_tradeoff_table(self.frame, by=("runtime", "precision"))
        first = table.iloc[0]
        assert (first["runtime"], first["precision"]) == ("torch", "int8")
        assert len(table) == 5

    def test_an_empty_sweep_gives_an_empty_table(self):
        table = precision_tradeoff_table(self.frame.iloc[:0])
        assert table.empty
        assert "accepted_ratio" in table

    def test_a_missing_column_is_named(self):
        with pytest.raises(ValueError, match=r"needs the column.s. energy_proxy_j, accepted;"):
            precision_tradeoff_table(self.frame.drop(columns=["energy_proxy_j", "accepted"]))
