"""From a runtime's own profile, call by call, to one row per executed operator."""

import numpy as np
import pandas as pd
from scipy.stats import trim_mean

COLUMNS = ("layer", "op", "measured_ms", "share")
RUNS, WARMUP = 100, 10
TRIMMED = 0.1


def profiled_batch(input_shape: tuple[int, ...]) -> np.ndarray:
    """Return the random images [B, C, H, W] that are profiled, the same on every call."""
    return np.random.default_rng(0).random(input_shape, dtype=np.float32)


def operator_times(calls: pd.DataFrame, *, warmup: int) -> pd.DataFrame:
    """Reduce calls ``[key, layer, op, ms]``, in order of time, to a row per operator.

    The time is a mean without the lowest and highest tenth: about as robust as a median, but finer
    than the whole microseconds in which profilers count.
    """
    warm = calls[calls.groupby("key").cumcount() >= warmup]
    grouped = warm.groupby(["key", "layer", "op"], sort=False)["ms"]
    return with_shares(grouped.agg(trim_mean, TRIMMED).rename("measured_ms").reset_index())


def with_shares(table: pd.DataFrame) -> pd.DataFrame:
    """Add each operator's share of the measured time, unknown where the clock was too coarse."""
    share = table["measured_ms"] / (table["measured_ms"].sum() or np.nan)
    return table.assign(share=share)[list(COLUMNS)]
