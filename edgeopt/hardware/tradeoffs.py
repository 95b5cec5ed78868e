"""What each precision costs and gains, over the candidates that ran."""

import numpy as np
import pandas as pd

from edgeopt.decision import accepted_mask
from edgeopt.schema import require_columns

TRADEOFF_COLUMNS = ("accuracy", "latency_ms", "memory_mb", "energy_proxy_j")
RATIO_COLUMNS = {"latency_p50_ms": "latency_ratio", "memory_mb": "weights_ratio"}


def precision_tradeoff_table(sweep_df: pd.DataFrame) -> pd.DataFrame:
    """Average the sweep per precision, fastest first.

    Columns: ``precision``, then ``accuracy_mean, latency_ms_mean, memory_mb_mean,
    energy_proxy_j_mean`` over the rows that were measured, and ``accepted_ratio`` over all rows.
    Precisions that were never measured come last.

    Raises
    ------
    ValueError
        When one of the columns is missing.
    """
    needed = ["precision", *TRADEOFF_COLUMNS, "accepted"]
    require_columns(sweep_df, needed, what="precision_tradeoff_table")
    rows = sweep_df.assign(accepted_ratio=accepted_mask(sweep_df).astype(float))
    means = rows.groupby("precision")[[*TRADEOFF_COLUMNS, "accepted_ratio"]].mean()
    means = means.rename(columns={column: f"{column}_mean" for column in TRADEOFF_COLUMNS})
    return means.sort_values("latency_ms_mean", kind="stable").reset_index()


def precision_ratios(sweep_df: pd.DataFrame) -> pd.DataFrame:
    """Set each precision against fp32 of the same network, pruning level and runtime.

    Columns: ``runtime, precision``; ``candidates`` that were measured and whose fp32 was; and
    ``latency_ratio, weights_ratio``, the geometric means of theirs. Without fp32 there is no ratio:
    against another network's or runtime's it would mix two changes. Raises ``ValueError`` when a
    column is missing, or nothing was measured in fp32.

    Source: Fleming and Wallace, doi:10.1145/5666.5673
    """
    keys, costs = ["model", "pruning_level", "runtime"], list(RATIO_COLUMNS)
    require_columns(sweep_df, [*keys, "precision", *costs], what="precision_ratios")
    measured = sweep_df.dropna(subset=costs)[[*keys, "precision", *costs]]
    fp32 = measured[measured["precision"] == "fp32"].drop(columns="precision")
    if fp32.empty:
        found = ", ".join(measured["precision"].unique()) or "nothing"
        raise ValueError(f"no fp32 row to compare with; there are: {found}")
    others = measured[measured["precision"] != "fp32"]
    pairs = others.merge(fp32, on=keys, suffixes=("", "_fp32"))
    logs = {r: np.log(pairs[cost] / pairs[f"{cost}_fp32"]) for cost, r in RATIO_COLUMNS.items()}
    groups = pairs.assign(**logs).groupby(["runtime", "precision"], sort=False)
    ratios = np.exp(groups[[*logs]].mean())
    return ratios.assign(candidates=groups.size()).reset_index()
