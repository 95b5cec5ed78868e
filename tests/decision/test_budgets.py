import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgeopt.decision.budgets import accepted_mask, apply_budgets

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
        frame = pd.DataFrame({"memory_mb": [0.1]})
        table = apply_budgets(frame, memory_budgets_mb=[budget], active_memory_budget_mb=1)
        assert name in table

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
        assert (tight["accepted"] == ~tight[f"violates_{small}mb"]).all()


def test_accepted_mask_takes_only_what_is_known_to_be_accepted():
    frame = pd.DataFrame({"accepted": [True, False, None]})
    assert accepted_mask(frame).tolist() == [True, False, False]
    nullable = pd.DataFrame({"accepted": pd.array([True, None], dtype="boolean")})
    assert accepted_mask(nullable).tolist() == [True, False]
