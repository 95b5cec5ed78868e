"""Statistics of latency samples: by hand, and by simulation where intervals claim a coverage."""

import numpy as np
import pandas as pd
import pytest
from scipy.linalg import cholesky, solve_triangular
from scipy.stats import norm, t

from edgeopt.metrics.latency import (
    autocorrelation_stretch,
    latency_ratios,
    latency_statistics,
    median_interval,
    resampled_quantiles,
)

RATIO = ["latency_ratio", "latency_ratio_low", "latency_ratio_high"]


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
    samples = samples_of([1.0, 2.0, 3.0, 6.0], calls=2)
    row = latency_statistics(samples, batch_size=4).iloc[0]
    assert (row["samples"], row["latency_ms"], row["latency_p50_ms"]) == (4, 3.0, 2.5)
    assert row["latency_std_ms"] == pytest.approx(np.sqrt((4 + 1 + 0 + 9) / 3))
    assert row["throughput_sps"] == pytest.approx(4 / 0.003)
    assert latency_statistics(samples)["throughput_sps"].iloc[0] == pytest.approx(1 / 0.003)
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
    with pytest.raises(ValueError, match=r"latency_statistics needs the column\(s\) latency_ms"):
        latency_statistics(table.drop(columns="latency_ms"))


@pytest.mark.parametrize("quantile", [0.5, 0.1])
def test_resampled_quantiles_are_those_of_the_drawn_rounds(quantile):
    rng = np.random.default_rng(0)
    latencies = rng.random((7, 3))
    draws = np.random.default_rng(4).multinomial(7, np.full(7, 1 / 7), size=50)
    drawn = [np.repeat(latencies, own, axis=0) for own in draws]
    expected = [np.quantile(own, quantile, method="averaged_inverted_cdf") for own in drawn]
    samples = samples_of(latencies.ravel(), calls=3)
    found = resampled_quantiles(samples, quantile=quantile, replicates=50, seed=4)
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
        for drawn in np.random.default_rng(0).multinomial(12, np.full(12, 1 / 12), size=1000)
    ]
    # Hesterberg 2015, section 3.4.2: percentiles at the normal's place of t, inflated by n/(n-1).
    tail = norm.cdf(t.ppf(0.025, 11) * np.sqrt(12 / 11))
    narrow, ends = (np.quantile(medians, [p, 1 - p]) for p in (0.025, tail))
    centre = np.median(latencies)
    stretch = autocorrelation_stretch(np.log(np.median(latencies, axis=1)))
    expected = centre * (ends / centre) ** stretch
    found = median_interval(samples_of(latencies.ravel(), calls=5))
    assert found == pytest.approx(tuple(expected), rel=1e-4)
    assert (np.abs(narrow / ends - 1) > 5e-4).all()  # what leaving out the widening would change


def test_median_interval_is_never_negative():
    rng = np.random.default_rng(0)
    for seed in range(20):
        wild = np.repeat(np.exp(2 * rng.normal(size=10)), 2)
        low, high = median_interval(samples_of(wild, calls=2), seed=seed)
        assert 0 < low < np.median(wild) < high


def test_autocorrelation_stretch_grows_with_the_correlation_of_the_rounds():
    rng = np.random.default_rng(0)
    means = []
    for rho in (0.0, 0.3, 0.6):
        series = [
            rounds_around_1(rng, rounds=20, autocorrelation=rho, call=0.0, calls=1).ravel()
            for _ in range(100)
        ]
        means.append(np.mean([autocorrelation_stretch(each) for each in series]))
    assert 1 <= means[0] < 1.3
    assert means[2] > 1.6
    assert means[0] < means[1] < means[2]
    assert autocorrelation_stretch(np.ones(20)) == 1.0


def integrated_stretch(series):
    """By brute force: sum over a grid of mean, log standard deviation and autocorrelation."""
    count = len(series)
    scaled = (series - series.mean()) / series.std(ddof=1)
    means, logs = np.linspace(-8, 8, 4001), np.linspace(-1.5, 2.5, 161)
    correlations = np.linspace(0, 0.8, 9)
    prior = 0.2 * correlations**4 / (correlations**4).sum()
    prior[0] = 0.8
    density = np.zeros_like(means)
    for rho, before in zip(correlations, prior, strict=True):
        matrix = rho ** np.abs(np.subtract.outer(np.arange(count), np.arange(count)))
        root = cholesky(matrix, lower=True)
        white, ones = (solve_triangular(root, v, lower=True) for v in (scaled, np.ones(count)))
        squares = ((white[:, None] - ones[:, None] * means) ** 2).sum(axis=0)
        scale = np.exp(logs)[:, None]
        likelihood = np.exp(-squares / scale**2 / 2) / scale**count
        density += before * likelihood.sum(axis=0) / np.prod(np.diag(root))
    shares = density.cumsum() / density.sum()
    low, high = np.interp([0.025, 0.975], shares, means)
    return (high - low) / (2 * t.ppf(0.975, count - 1) / np.sqrt(count))


@pytest.mark.parametrize("autocorrelation", [0.0, 0.5, 0.8])
def test_autocorrelation_stretch_is_the_integral_over_what_is_unknown(autocorrelation):
    rng = np.random.default_rng(3)
    series = rounds_around_1(rng, rounds=12, autocorrelation=autocorrelation, call=0.0, calls=1)
    expected = max(1.0, integrated_stretch(series.ravel()))
    assert autocorrelation_stretch(series.ravel()) == pytest.approx(expected, rel=2e-3)


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
    # Standard error of 4000 tries: 0.3 to 0.4 points.
    found = coverage(rounds=20, autocorrelation=autocorrelation, tries=4000)
    assert 0.93 <= found <= 0.97


def two_candidates(rng, *, ratio, shared, own, load=0.0, rounds=20):
    """Two candidates whose rounds share an effect; the second one's median is ``ratio`` times."""
    effect = rng.normal(0, shared, (rounds, 1))
    noise = [rng.normal(0, load, (rounds, 1)) + rng.normal(0, own, (rounds, 10)) for _ in range(2)]
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


def test_latency_ratios_do_not_depend_on_what_the_rounds_share():
    tables = [
        latency_ratios(
            two_candidates(
                np.random.default_rng(4), ratio=1.1, shared=shared, load=0.01, own=0.003
            ),
            to="first",
        )
        for shared in (0.0, 0.3)
    ]
    quiet, shaken = (table[RATIO].to_numpy() for table in tables)
    assert shaken == pytest.approx(quiet, rel=1e-9)


def test_latency_ratios_the_other_way_round_are_the_inverse():
    rng = np.random.default_rng(2)
    samples = two_candidates(rng, ratio=1.3, shared=0.1, own=0.05, rounds=21)
    there, back = (
        latency_ratios(samples, to=to).set_index("candidate").loc[other, RATIO].to_numpy()
        for to, other in (("first", "second"), ("second", "first"))
    )
    assert there == pytest.approx(1 / back[[0, 2, 1]], rel=1e-9)


def test_latency_ratios_of_a_noisy_fastest_one_tell_the_distance_and_the_doubt():
    fast = np.where(np.arange(20) % 2 * (np.arange(20) < 18), 3.0, 1.0)  # slow in 9 of 20 rounds
    rival = np.full(20, 2.9)
    samples = pd.concat(
        [
            samples_of(fast, calls=1, candidate="fast"),
            samples_of(rival, calls=1, candidate="rival"),
        ]
    )
    intervals = latency_statistics(samples).set_index("candidate")
    row = latency_ratios(samples, to="fast").set_index("candidate").loc["rival"]
    # The fastest one's own interval reaches past its rival, and so does that of the ratio.
    assert intervals.loc["fast", "latency_p50_high_ms"] >= 3.0
    assert row["latency_ratio"] == pytest.approx(2.9)
    assert row["latency_ratio_low"] < 1 < row["latency_ratio_high"]


def ratio_coverage(*, tries):
    rng, hits = np.random.default_rng(1), 0
    for _ in range(tries):
        samples = two_candidates(rng, ratio=1.1, shared=0.05, load=0.01, own=0.003)
        row = latency_ratios(samples, to="first").iloc[1]
        hits += row["latency_ratio_low"] <= 1.1 <= row["latency_ratio_high"]
    return hits / tries


def test_latency_ratios_cover_the_truth():
    # Standard error of 200 tries 1.5 points; 0.885 is below 0.93 by three of them.
    assert ratio_coverage(tries=200) > 0.885


@pytest.mark.slow
def test_latency_ratios_cover_93_to_97_percent():
    # Standard error of 4000 tries: 0.3 to 0.4 points.
    assert 0.93 <= ratio_coverage(tries=4000) <= 0.97


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


def test_latency_statistics_relate_latency_to_the_reference_kernel_round_by_round():
    # the machine is twice as slow in the later rounds, and so is the reference kernel
    slow = [1, 1, 2, 2, 2]
    rows = [(name, n, ms * s) for n, s in enumerate(slow) for name, ms in (("a", 3.0), ("b", 5.0))]
    samples = pd.DataFrame(rows, columns=["candidate", "round", "latency_ms"])
    conditions = pd.DataFrame({"round": range(5), "reference_ms": [0.25 * s for s in slow]})
    assert latency_statistics(samples)["latency_relative"].isna().all()
    assert latency_statistics(samples, conditions=conditions)["latency_relative"].tolist() == [
        12,
        20,
    ]
    samples.loc[9, "latency_ms"] = np.nan
    failed = latency_statistics(samples, conditions=conditions)["latency_relative"].isna()
    assert failed.tolist() == [False, True]
