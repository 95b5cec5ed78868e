"""Raw latency samples -> percentiles, intervals and ratios."""

from functools import lru_cache

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.optimize import brentq
from scipy.stats import norm, t

from edgeopt.schema import MIN_SAMPLES_P95, MIN_SAMPLES_P99, require_columns

TAIL = 0.025  # on each side of every interval: 95%
REPLICATES = 1000  # of a bootstrap
MIN_ROUNDS_INTERVAL = 10
# Of consecutive rounds, that an interval reckons with, and how likely each is beforehand.
AUTOCORRELATIONS = np.linspace(0, 0.8, 9)
NO_AUTOCORRELATION = 0.8


def latency_statistics(
    samples: pd.DataFrame, *, conditions: pd.DataFrame | None = None, batch_size: int = 1
) -> pd.DataFrame:
    """One row per candidate: sample count, mean, spread, percentiles, throughput, error.

    ``latency_p95_ms`` needs 130 samples and ``latency_p99_ms`` 662, else they are NaN. The
    interval of the median comes from ``median_interval``. ``throughput_sps`` is images per second
    of calls made one after the other: ``batch_size`` over the mean. ``latency_relative``, NaN
    without ``conditions``, is the median over the rounds of the round's median over its
    ``reference_ms`` there: a machine that changes its speed between rounds changes both. A
    candidate with a NaN sample has failed: all its numbers are NaN and ``error`` says why.
    """
    require_columns(samples, ["candidate", "round", "latency_ms"], what="latency_statistics")
    if samples.empty:
        raise ValueError("latency samples are empty; allowed: 1 sample or more")
    reference = np.nan if conditions is None else conditions.set_index("round")["reference_ms"]
    whole = samples.assign(latency_ms=samples["latency_ms"].mask(_of_failed(samples)))
    rows = [
        {"candidate": candidate, **_statistics_row(own, reference, batch_size=batch_size)}
        for candidate, own in whole.groupby("candidate", sort=False)
    ]
    return pd.DataFrame(rows)


def median_interval(
    samples: pd.DataFrame, *, replicates: int = REPLICATES, seed: int = 0
) -> tuple[float, float]:
    """Bootstrap 95% interval (low, high) in ms of one candidate's median latency.

    Calls of one round share the machine's state and one loading of the candidate, so whole rounds
    are resampled, not calls (cluster bootstrap). The percentiles are widened for few rounds as
    Hesterberg 2015 (doi:10.1080/00031305.2015.1089789) does, and the interval by
    :func:`autocorrelation_stretch`, because a slow round tends to be followed by another; on a log
    scale, so that no end is negative and a ratio is treated as its inverse is. With 20 rounds the
    simulated coverage is 93 to 97% for autocorrelations from 0 to 0.5; with 10 it is 91 to 98%.
    NaN with fewer than 10 rounds.
    """
    rounds = samples.groupby("round")["latency_ms"].median().to_numpy()
    count, centre = len(rounds), samples["latency_ms"].median()
    if count < MIN_ROUNDS_INTERVAL or np.isnan(rounds).any():
        return np.nan, np.nan
    medians = resampled_quantiles(samples, replicates=replicates, seed=seed)
    widened = norm.cdf(np.sqrt(count / (count - 1)) * t.ppf(TAIL, count - 1))
    ends = np.quantile(np.log(medians / centre), [widened, 1 - widened])
    low, high = centre * np.exp(autocorrelation_stretch(np.log(rounds)) * ends)
    return float(low), float(high)


def latency_ratios(samples: pd.DataFrame, *, to: str) -> pd.DataFrame:
    """Latency of every candidate over that of ``to``, compared in the same rounds.

    The ratio is the median over the rounds of one median over the other: what slows a round slows
    both alike, and cancels. Its interval is that of :func:`median_interval` over these ratios, with
    a simulated coverage of 93 to 97% in 20 rounds, however much the two share. Columns:
    ``candidate, latency_ratio, latency_ratio_low, latency_ratio_high``, the last two NaN below 10
    rounds. Candidates that failed are left out.
    """
    medians = {
        name: own.groupby("round")["latency_ms"].median()
        for name, own in samples[~_of_failed(samples)].groupby("candidate", sort=False)
    }
    if to not in medians:
        raise ValueError(f"no latency samples of {to!r}; there are: {', '.join(medians)}")
    rows = []
    for name, own in medians.items():
        ratios = (own / medians[to]).reset_index()
        rows.append((name, ratios["latency_ms"].median(), *median_interval(ratios)))
    columns = ["candidate", "latency_ratio", "latency_ratio_low", "latency_ratio_high"]
    return pd.DataFrame(rows, columns=columns)


def autocorrelation_stretch(series: NDArray[np.float64]) -> float:
    """Width of the interval of a series' mean, relative to that of independent values; 1 or more.

    The series is taken for a first-order autoregression whose autocorrelation is unknown; mean and
    variance are integrated out (Zellner and Tiao 1964, doi:10.2307/2283097), which leaves a mixture
    of Student distributions. Twenty values tell too little to plug in an estimate. The prior says
    by 0.8 that there is no autocorrelation, and rises with the fourth power of it up to 0.8, since
    a strong one that goes unnoticed does the harm; both are set by simulated coverage.
    """
    count = len(series)
    if np.ptp(series) == 0:
        return 1.0
    scaled = (series - series.mean()) / series.std(ddof=1)
    weights, means, errors = _posterior(scaled)

    def share_below(value: float) -> float:
        return float(weights @ t.cdf((value - means) / errors, count - 1))

    reach = float(np.abs(means).max() + 50 * errors.max())
    low, high = (brentq(lambda v, p=p: share_below(v) - p, -reach, reach) for p in (TAIL, 1 - TAIL))
    independent = 2 * t.ppf(1 - TAIL, count - 1) / np.sqrt(count)
    return max(1.0, (high - low) / independent)


# Quantile of the calls that nothing else on the machine made longer.
UNDISTURBED = 0.1


def resampled_quantiles(
    samples: pd.DataFrame, *, quantile: float = 0.5, replicates: int = REPLICATES, seed: int = 0
) -> NDArray[np.float64]:
    """Median latency, or another quantile, [replicates] of one candidate over rounds drawn anew.

    ``quantile`` is above 0 and below 1; between two calls it is their middle, as of a median of an
    even count, so that the interval of a ratio is that of its inverse, turned over. Candidates with
    as many rounds get the same draws from the same ``seed``.
    """
    in_order = samples.sort_values("latency_ms", kind="stable")
    rounds, round_index = np.unique(in_order["round"], return_inverse=True)
    share, rng = np.full(len(rounds), 1 / len(rounds)), np.random.default_rng(seed)
    drawn = rng.multinomial(len(rounds), share, size=replicates)
    below = drawn[:, round_index].cumsum(axis=1)  # [replicates, samples]
    wanted, values = quantile * below[:, -1:], in_order["latency_ms"].to_numpy()
    middle = [values[reached.argmax(axis=1)] for reached in (below >= wanted, below > wanted)]
    return np.mean(middle, axis=0)


def _of_failed(samples: pd.DataFrame) -> pd.Series:
    """Which samples are of a candidate that failed: one of its latencies is NaN."""
    return samples["latency_ms"].isna().groupby(samples["candidate"]).transform("any")


def _posterior(series: NDArray[np.float64]) -> tuple[NDArray, NDArray, NDArray]:
    """Weight of each autocorrelation, with the mean and its standard error under it."""
    count, rows = len(series), []
    for inverse, log_determinant, information in _autoregressions(count):
        mean = inverse.sum(axis=0) @ series / information
        rest = series - mean
        squares = rest @ inverse @ rest
        evidence = log_determinant + np.log(information) + (count - 1) * np.log(squares)
        rows.append((-evidence / 2, mean, np.sqrt(squares / (count - 1) / information)))
    log_weights, means, errors = np.array(rows).T
    rising = AUTOCORRELATIONS**4 / (AUTOCORRELATIONS**4).sum()
    prior = np.where(AUTOCORRELATIONS == 0, NO_AUTOCORRELATION, (1 - NO_AUTOCORRELATION) * rising)
    weights = prior * np.exp(log_weights - log_weights.max())
    return weights / weights.sum(), means, errors


@lru_cache
def _autoregressions(count: int) -> tuple[tuple[NDArray, float, float], ...]:
    """Inverse correlation matrix of ``count`` rounds, log determinant and the inverse's sum."""
    lags = np.abs(np.subtract.outer(np.arange(count), np.arange(count)))
    matrices = [np.linalg.inv(rho**lags) for rho in AUTOCORRELATIONS]
    return tuple((m, -np.linalg.slogdet(m)[1], m.sum()) for m in matrices)


def _statistics_row(
    own: pd.DataFrame, reference: pd.Series | float, *, batch_size: int
) -> dict[str, float | str]:
    latencies = own["latency_ms"]
    count, mean = latencies.count(), latencies.mean()
    p50, p95, p99 = latencies.quantile([0.5, 0.95, 0.99])
    low, high = median_interval(own)
    return {
        "samples": count,
        "latency_ms": mean,
        "latency_std_ms": latencies.std(),
        "latency_p50_ms": p50,
        "latency_p50_low_ms": low,
        "latency_p50_high_ms": high,
        "latency_p95_ms": p95 if count >= MIN_SAMPLES_P95 else np.nan,
        "latency_p99_ms": p99 if count >= MIN_SAMPLES_P99 else np.nan,
        "throughput_sps": batch_size / (mean / 1e3),
        "latency_relative": (own.groupby("round")["latency_ms"].median() / reference).median(),
        "error": "" if count else _error_text(own),
    }


def _error_text(own: pd.DataFrame) -> str:
    texts = own.get("error", pd.Series(dtype=str)).dropna()
    return "; ".join(text for text in texts.unique() if text) or "a latency sample is missing"
