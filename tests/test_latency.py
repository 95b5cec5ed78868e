"""Statistics of latency samples: by hand, and by simulation where intervals claim a coverage."""

import numpy as np
import pandas as pd
import pytest
from scipy.stats import norm, t

from edgeopt.latency import (
    autocorrelation_stretch,
    latency_ratios,
    latency_statistics,
    median_interval,
    resampled_medians,
    round_weights,
)


def samples_of(latencies, *, calls, candidate="a"):
    count = len(latencies)
    return pd.DataFrame(
        {"candidate": candidate, "round": np.arange(count) // calls, "latency_ms": latencies}
    )


def rounds_around_1(rng, *, rounds, autocorrelation, load=0.01, call=0.003, calls=30):
    """Latencies [rounds, calls] with a true median of 1: an AR(1) effect per round, and noise."""
    effects = [rng.normal()]
    for _ in range(rounds - 1):
        fresh = np.sqrt(1 - autocorrelation**2) * rng.normal()
        effects.append(autocorrelation * effects[-1] + fresh)
    return 1 + load * np.array(effects)[:, None] + rng.normal(0, call, (rounds, calls))


def test_latency_statistics_by_hand():
    row = latency_statistics(samples_of([1.0, 2.0, 3.0, 6.0], calls=2), batch_size=4).iloc[0]
    assert (row["samples"], row["latency_ms"], row["latency_p50_ms"]) == (4, 3.0, 2.5)
    assert row["latency_std_ms"] == pytest.approx(np.sqrt((4 + 1 + 0 + 9) / 3))
    assert row["throughput_sps"] == pytest.approx(4 / 0.003)
    assert row["error"] == ""


@pytest.mark.parametrize(
    ("count", "p95", "p99"),
    [(129, False, False), (130, True, False), (661, True, False), (662, True, True)],
)
def test_latency_statistics_gives_percentiles_from_enough_samples(count, p95, p99):
    row = latency_statistics(samples_of(np.arange(count, dtype=float) + 1, calls=count)).iloc[0]
    assert np.isfinite([row["latency_p95_ms"], row["latency_p99_ms"]]).tolist() == [p95, p99]
    if p95:
        assert row["latency_p95_ms"] == pytest.approx(1 + 0.95 * (count - 1))


def test_latency_statistics_keeps_the_order_of_the_candidates():
    tables = [samples_of([1.0, 2.0], calls=1, candidate=name) for name in "zay"]
    assert latency_statistics(pd.concat(tables))["candidate"].tolist() == ["z", "a", "y"]


def test_latency_statistics_names_missing_samples():
    table = samples_of([1.0], calls=1)
    with pytest.raises(ValueError, match="latency samples are empty"):
        latency_statistics(table.iloc[:0])
    with pytest.raises(ValueError, match="latency samples have no column latency_ms"):
        latency_statistics(table.drop(columns="latency_ms"))


def test_resampled_medians_equal_the_median_of_the_drawn_rounds():
    rng = np.random.default_rng(0)
    latencies = rng.random((7, 3))
    weights = round_weights(7, replicates=50, seed=0)
    expected = [np.median(np.repeat(latencies, drawn, axis=0)) for drawn in weights]
    assert (weights.sum(axis=1) == 7).all()
    found = resampled_medians(samples_of(latencies.ravel(), calls=3), weights)
    assert found == pytest.approx(expected)


def test_median_interval_sees_that_rounds_drift_together():
    rng = np.random.default_rng(0)
    independent = rng.normal(10, 1, (20, 30))
    drifting = independent + rng.normal(0, 3, (20, 1))
    low, high = median_interval(samples_of(independent.ravel(), calls=30))
    drift_low, drift_high = median_interval(samples_of(drifting.ravel(), calls=30))
    assert low < np.median(independent) < high
    assert drift_high - drift_low > 5 * (high - low)


def test_median_interval_of_constant_latency_is_that_latency():
    assert median_interval(samples_of([2.0] * 20, calls=2)) == (2.0, 2.0)


def test_median_interval_needs_ten_rounds():
    assert np.isnan(median_interval(samples_of([1.0] * 9, calls=1))).all()
    assert np.isfinite(median_interval(samples_of([1.0] * 10, calls=1))).all()


def test_median_interval_is_the_bootstrap_widened_for_few_and_correlated_rounds():
    rng = np.random.default_rng(5)
    latencies = rounds_around_1(rng, rounds=12, autocorrelation=0.0, calls=5)
    medians = [
        np.median(np.repeat(latencies, drawn, axis=0))
        for drawn in round_weights(12, replicates=1000, seed=0)
    ]
    # Hesterberg 2015, section 3.4.2: percentiles at the normal's place of t, inflated by n/(n-1).
    tail = norm.cdf(t.ppf(0.025, 11) * np.sqrt(12 / 11))
    ends = np.quantile(medians, [tail, 1 - tail])
    centre = np.median(latencies)
    stretch = autocorrelation_stretch(np.median(latencies, axis=1))
    expected = centre + stretch * (ends - centre)
    found = median_interval(samples_of(latencies.ravel(), calls=5))
    assert found == pytest.approx(tuple(expected), rel=1e-3)
    assert tail < 0.02  # the widening that few rounds need


def test_autocorrelation_stretch_grows_with_the_correlation_of_the_rounds():
    rng = np.random.default_rng(0)
    means = []
    for rho in (0.0, 0.3, 0.6):
        series = [
            rounds_around_1(rng, rounds=20, autocorrelation=rho, call=0.0, calls=1).ravel()
            for _ in range(100)
        ]
        means.append(np.mean([autocorrelation_stretch(each) for each in series]))
    assert 1 <= means[0] < 1.4 < means[2]
    assert means[0] < means[1] < means[2]
    assert autocorrelation_stretch(np.ones(20)) == 1.0


def coverage(*, rounds, autocorrelation, tries, calls=30):
    rng, hits = np.random.default_rng(0), 0
    options = {"rounds": rounds, "autocorrelation": autocorrelation, "calls": calls}
    for seed in range(tries):
        samples = samples_of(rounds_around_1(rng, **options).ravel(), calls=calls)
        low, high = median_interval(samples, replicates=400, seed=seed)
        hits += low <= 1 <= high
    return hits / tries


def test_median_interval_covers_the_truth_under_load_effects_and_correlation():
    # Standard error of 300 tries 1.3 points: below 0.895 is a coverage under 0.93 by 2.7 of them.
    assert coverage(rounds=20, autocorrelation=0.5, tries=300, calls=5) > 0.895


@pytest.mark.slow
@pytest.mark.parametrize("autocorrelation", [0.0, 0.3, 0.5])
def test_median_interval_covers_93_to_97_percent(autocorrelation):
    tries = 3000
    error = 3 * np.sqrt(0.05 * 0.95 / tries)
    found = coverage(rounds=20, autocorrelation=autocorrelation, tries=tries)
    assert 0.93 - error < found < 0.97 + error


def two_candidates(rng, *, ratio, shared, own):
    """Two candidates whose rounds share an effect; the second one's median is ``ratio`` times."""
    effect = rng.normal(0, shared, (20, 1))
    noise = [rng.normal(0, own, (20, 10)) for _ in range(2)]
    first, second = (
        scale * np.exp(effect + each) for scale, each in zip((1, ratio), noise, strict=True)
    )
    return pd.concat(
        [
            samples_of(first.ravel(), calls=10, candidate="first"),
            samples_of(second.ravel(), calls=10, candidate="second"),
        ]
    )


def test_latency_ratios_by_hand_and_against_itself():
    samples = pd.concat(
        [
            samples_of([1.0] * 20, calls=2, candidate="a"),
            samples_of([1.5] * 20, calls=2, candidate="b"),
        ]
    )
    table = latency_ratios(samples, to="a").set_index("candidate")
    assert table.loc["a"].tolist() == [1.0, 1.0, 1.0]
    assert table.loc["b"].tolist() == [1.5, 1.5, 1.5]


def test_latency_ratios_cancel_what_slows_a_round_for_both():
    samples = two_candidates(np.random.default_rng(0), ratio=1.02, shared=0.2, own=0.005)
    row = latency_ratios(samples, to="first").set_index("candidate").loc["second"]
    assert 1 < row["latency_ratio_low"] < 1.02 < row["latency_ratio_high"] < 1.04
    intervals = latency_statistics(samples).set_index("candidate")
    alone = intervals["latency_p50_high_ms"] / intervals["latency_p50_low_ms"]
    assert (alone > 1.1).all()


def test_latency_ratios_cover_the_truth():
    rng, hits, tries = np.random.default_rng(1), 0, 300
    for seed in range(tries):
        samples = two_candidates(rng, ratio=1.1, shared=0.05, own=0.01)
        row = latency_ratios(samples, to="first", replicates=300, seed=seed).iloc[1]
        hits += row["latency_ratio_low"] <= 1.1 <= row["latency_ratio_high"]
    assert 0.93 - 0.04 < hits / tries <= 1  # three standard errors of 1.3 points


def test_latency_ratios_leave_out_what_failed_and_name_what_is_not_there():
    failed = samples_of([1.0, np.nan], calls=1, candidate="bad").assign(error=["", "broken"])
    samples = pd.concat([samples_of([1.0] * 20, calls=2), failed])
    assert latency_ratios(samples, to="a")["candidate"].tolist() == ["a"]
    with pytest.raises(ValueError, match="no latency samples of 'bad'; there are: a"):
        latency_ratios(samples, to="bad")


def test_latency_ratios_of_few_rounds_have_no_interval():
    samples = two_candidates(np.random.default_rng(0), ratio=1.1, shared=0.0, own=0.01)
    few = samples[samples["round"] < 9]
    row = latency_ratios(few, to="first").set_index("candidate").loc["second"]
    assert row["latency_ratio"] == pytest.approx(1.1, rel=0.02)
    assert row[["latency_ratio_low", "latency_ratio_high"]].isna().all()
