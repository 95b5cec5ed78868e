"""Budgets on weights: sweep table in, table out."""

from collections.abc import Sequence

import pandas as pd

from edgeopt.schema import require_columns


def accepted_mask(df: pd.DataFrame) -> pd.Series:
    """Rows whose ``accepted`` is true; a missing value counts as not accepted."""
    return df["accepted"].eq(True).fillna(False).astype(bool)


def apply_budgets(
    df: pd.DataFrame, *, memory_budgets_mb: Sequence[float], active_memory_budget_mb: float
) -> pd.DataFrame:
    """Add ``accepted``, ``active_budget_mb`` and one ``violates_{budget}mb`` per budget.

    A row is accepted when its ``memory_mb`` is at most the active budget. A failed row, or one
    whose memory is unknown, is never accepted, and violates no budget as far as is known.

    Raises
    ------
    ValueError
        When ``memory_mb`` is missing, or a budget is not a positive number of MiB.
    """
    require_columns(df, ["memory_mb"], what="apply_budgets")
    for budget in (*memory_budgets_mb, active_memory_budget_mb):
        if not 0 < budget < float("inf"):
            raise ValueError(f"memory budget is {budget} MiB; allowed: above 0 and finite")
    memory = pd.to_numeric(df["memory_mb"])
    succeeded = df["status"].ne("failed") if "status" in df else True
    return df.assign(
        accepted=(memory <= active_memory_budget_mb) & succeeded,
        active_budget_mb=float(active_memory_budget_mb),
        **{f"violates_{budget}mb": memory > budget for budget in memory_budgets_mb},
    )
