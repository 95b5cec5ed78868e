"""What each precision costs and gains, over the candidates that ran."""

from collections.abc import Sequence

import pandas as pd

from edgeopt.decision import accepted_mask
from edgeopt.schema import require_columns

TRADEOFF_COLUMNS = ("accuracy", "latency_ms", "memory_mb", "energy_proxy_j")


def precision_tradeoff_table(
    sweep_df: pd.DataFrame, *, by: Sequence[str] = ("precision",)
) -> pd.DataFrame:
    """Average the sweep per precision, fastest first.

    Columns: ``by``, then ``accuracy_mean, latency_ms_mean, memory_mb_mean, energy_proxy_j_mean``
    over the rows that were measured, and ``accepted_ratio`` over all rows. Groups that were never
    measured come last.

    Raises
    ------
    ValueError
        When one of the columns is missing.
    """
    keys = list(by)
    require_columns(
        sweep_df, [*keys, *TRADEOFF_COLUMNS, "accepted"], what="precision_tradeoff_table"
    )
    rows = sweep_df.assign(accepted_ratio=accepted_mask(sweep_df).astype(float))
    means = rows.groupby(keys)[[*TRADEOFF_COLUMNS, "accepted_ratio"]].mean()
    means = means.rename(columns={column: f"{column}_mean" for column in TRADEOFF_COLUMNS})
    return means.sort_values("latency_ms_mean", kind="stable").reset_index()
