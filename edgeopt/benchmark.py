"""Sessions -> raw latency samples in interleaved rounds -> statistics."""

import gc
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.stats import norm, t
from tqdm import tqdm

from edgeopt.schema import MIN_SAMPLES_P95, MIN_SAMPLES_P99

Session = Callable[[NDArray], Any]
MIN_ROUNDS_INTERVAL = 10


def measure_latency(
    sessions: Mapping[str, Session],
    batch: NDArray,
    *,
    rounds: int,
    calls_per_round: int,
    warmup_calls: int = 50,
    round_warmup_calls: int = 3,
    seed: int = 0,
) -> pd.DataFrame:
    """Time every session on ``batch`` in interleaved rounds and keep each raw sample.

    Every round visits all candidates in a new random order, so that a machine that slows down
    slows all of them alike. Untimed calls go before the timed ones: ``warmup_calls`` in a
    candidate's first round, ``round_warmup_calls`` in the later ones. The garbage collector
    rests while the clock runs.

    Returns one row per timed call: ``candidate, round, position, call, latency_ms, error``. A
    candidate that raises is not called again; its last row has a NaN latency and the text of
    the error, where every other row has an empty ``error``.
    """
    if not sessions:
        raise ValueError("sessions are empty; allowed: 1 candidate or more")
    _require_at_least(1, rounds=rounds, calls_per_round=calls_per_round)
    _require_at_least(0, warmup_calls=warmup_calls, round_warmup_calls=round_warmup_calls)
    rng = np.random.default_rng(seed)
    waiting, visits = list(sessions), []
    for number in tqdm(range(rounds), desc="latency rounds", disable=None):
        warmup = round_warmup_calls if number else warmup_calls
        for position, index in enumerate(rng.permutation(len(waiting))):
            name = waiting[index]
            with _garbage_collector_off():
                times, error = _timed_calls(
                    sessions[name], batch, calls=calls_per_round, warmup=warmup
                )
            visits.append(_visit(times, error, candidate=name, round=number, position=position))
        failed = {visit["candidate"].iloc[0] for visit in visits if visit["error"].iloc[-1]}
        waiting = [name for name in waiting if name not in failed]
    return pd.concat(visits, ignore_index=True)


def latency_statistics(
    samples: pd.DataFrame,
    *,
    batch_size: int = 1,
    confidence: float = 0.95,
    replicates: int = 1000,
    seed: int = 0,
) -> pd.DataFrame:
    """One row per candidate: sample count, mean, spread, percentiles, throughput, error.

    ``latency_p95_ms`` needs 130 samples and ``latency_p99_ms`` 662, else they are NaN. The
    interval of the median comes from ``median_interval``. Throughput is images per second,
    ``batch_size`` over the mean. A candidate with a NaN sample has failed: all its numbers are
    NaN and ``error`` says why.
    """
    check_samples(samples)
    _require_at_least(1, batch_size=batch_size)
    rows = []
    for candidate, own in samples.groupby("candidate", sort=False):
        if own["latency_ms"].isna().any():
            row = {"samples": 0, "error": _error_text(own)}
        else:
            row = _statistics_row(own["latency_ms"].to_numpy(), batch_size=batch_size)
            row["latency_p50_low_ms"], row["latency_p50_high_ms"] = median_interval(
                own, confidence=confidence, replicates=replicates, seed=seed
            )
        rows.append({"candidate": candidate, "error": "", **row})
    return pd.DataFrame(rows).reindex(columns=_STATISTICS_COLUMNS)


def median_interval(
    samples: pd.DataFrame, *, confidence: float = 0.95, replicates: int = 1000, seed: int = 0
) -> tuple[float, float]:
    """Bootstrap interval (low, high) in ms of one candidate's median latency.

    Calls of one round share the machine's state, so whole rounds are resampled, not calls
    (cluster bootstrap); the percentiles are widened for few rounds as Hesterberg 2015
    (doi:10.1080/00031305.2015.1089789) does. NaN with fewer than 10 rounds, where simulated
    coverage falls below 93 %.
    """
    rounds = samples["round"].nunique()
    if rounds < MIN_ROUNDS_INTERVAL:
        return np.nan, np.nan
    medians = resampled_medians(samples, round_weights(rounds, replicates=replicates, seed=seed))
    widened = norm.cdf(np.sqrt(rounds / (rounds - 1)) * t.ppf((1 - confidence) / 2, rounds - 1))
    low, high = np.quantile(medians, [widened, 1 - widened])
    return float(low), float(high)


def round_weights(rounds: int, *, replicates: int, seed: int) -> NDArray[np.int64]:
    """How often each bootstrap replicate draws each round: counts [replicates, rounds]."""
    rng = np.random.default_rng(seed)
    return rng.multinomial(rounds, np.full(rounds, 1 / rounds), size=replicates)


def resampled_medians(samples: pd.DataFrame, weights: NDArray[np.int64]) -> NDArray[np.float64]:
    """Median latency [replicates] of one candidate when its rounds weigh ``weights``."""
    in_order = samples.sort_values("latency_ms", kind="stable")
    latencies = in_order["latency_ms"].to_numpy()
    round_index = np.unique(in_order["round"], return_inverse=True)[1]
    below = weights[:, round_index].cumsum(axis=1)  # [replicates, samples]
    return latencies[(2 * below >= below[:, -1:]).argmax(axis=1)]


def check_samples(samples: pd.DataFrame) -> None:
    """Raise ``ValueError`` unless the table has latency samples of named rounds."""
    missing = sorted({"candidate", "round", "latency_ms"} - set(samples.columns))
    if missing:
        raise ValueError(f"latency samples have no column {', '.join(missing)}")
    if samples.empty:
        raise ValueError("latency samples are empty; allowed: 1 sample or more")


_STATISTICS_COLUMNS = (
    "candidate",
    "samples",
    "latency_ms",
    "latency_std_ms",
    "latency_p50_ms",
    "latency_p50_low_ms",
    "latency_p50_high_ms",
    "latency_p95_ms",
    "latency_p99_ms",
    "throughput_sps",
    "error",
)


def _timed_calls(
    session: Session, batch: NDArray, *, calls: int, warmup: int
) -> tuple[list[int], str]:
    """Nanoseconds of each timed call, and the text of the error that ended them, if any."""
    clock, times = time.perf_counter_ns, []
    try:
        for _ in range(warmup):
            session(batch)
        for _ in range(calls):
            start = clock()
            session(batch)
            times.append(clock() - start)
    except Exception as error:  # whatever a runtime raises becomes this candidate's error
        return times, f"{type(error).__name__}: {error}"
    return times, ""


def _visit(times: list[int], error: str, **labels: Any) -> pd.DataFrame:
    latencies = [nanoseconds / 1e6 for nanoseconds in times] + [np.nan] * bool(error)
    errors = [""] * len(times) + [error] * bool(error)
    columns = {**labels, "call": range(len(latencies)), "latency_ms": latencies, "error": errors}
    return pd.DataFrame(columns)


def _statistics_row(latencies: NDArray[np.float64], *, batch_size: int) -> dict[str, float]:
    count, mean = len(latencies), latencies.mean()
    p50, p95, p99 = np.percentile(latencies, [50, 95, 99])
    return {
        "samples": count,
        "latency_ms": mean,
        "latency_std_ms": latencies.std(ddof=1) if count > 1 else np.nan,
        "latency_p50_ms": p50,
        "latency_p95_ms": p95 if count >= MIN_SAMPLES_P95 else np.nan,
        "latency_p99_ms": p99 if count >= MIN_SAMPLES_P99 else np.nan,
        "throughput_sps": batch_size / (mean / 1e3),
    }


def _error_text(samples: pd.DataFrame) -> str:
    texts = samples.loc[samples["latency_ms"].isna()].get("error", pd.Series(dtype=str)).dropna()
    return "; ".join(text for text in texts.unique() if text) or "a latency sample is missing"


@contextmanager
def _garbage_collector_off() -> Iterator[None]:
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()


def _require_at_least(smallest: int, **counts: int) -> None:
    for name, value in counts.items():
        if value < smallest:
            raise ValueError(f"{name} is {value}; allowed: {smallest} or more")
