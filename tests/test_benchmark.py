"""Latency harness: order, counting, failures, statistics. Never an assertion on seconds."""

import gc

import numpy as np
import pandas as pd
import pytest

from edgeopt.benchmark import (
    latency_statistics,
    measure_latency,
    median_interval,
    resampled_medians,
    round_weights,
)

BATCH = np.zeros((1, 1, 2, 2), np.float32)


class Recorder:
    """A session that writes its name into a shared log, and fails at a given call."""

    def __init__(self, name, log, *, fails_at=None):
        self.name, self.log, self.fails_at = name, log, fails_at

    def __call__(self, batch):
        assert batch is BATCH
        self.log.append((self.name, gc.isenabled()))
        if (
            self.fails_at is not None
            and sum(name == self.name for name, _ in self.log) > self.fails_at
        ):
            raise RuntimeError("operator Foo is not supported")


def samples_of(latencies, *, calls, candidate="a"):
    count = len(latencies)
    return pd.DataFrame(
        {"candidate": candidate, "round": np.arange(count) // calls, "latency_ms": latencies}
    )


def measured(names, *, log, rounds=4, calls=3, **options):
    sessions = {name: Recorder(name, log) for name in names}
    return measure_latency(sessions, BATCH, rounds=rounds, calls_per_round=calls, **options)


def test_every_candidate_is_timed_in_every_round():
    samples = measured("abc", log=[], warmup_calls=0)
    expected = ["candidate", "round", "position", "call", "latency_ms", "error"]
    assert samples.columns.tolist() == expected
    assert samples.groupby(["candidate", "round"])["call"].apply(list).tolist() == [[0, 1, 2]] * 12
    assert samples.groupby("round")["position"].unique().apply(sorted).tolist() == [[0, 1, 2]] * 4
    assert (samples["latency_ms"] > 0).all()
    assert (samples["error"] == "").all()


def test_the_table_tells_the_order_of_the_calls():
    log = []
    samples = measured("abc", log=log, warmup_calls=0, round_warmup_calls=0)
    assert [name for name, _ in log] == samples["candidate"].tolist()


def test_rounds_are_shuffled_by_the_seed():
    def order(seed):
        return measured("abcdef", log=[], rounds=6, warmup_calls=0, seed=seed)["candidate"].tolist()

    first = order(1)
    assert first == order(1)
    assert first != order(2)
    assert first[:18] != first[18:36]


def test_warm_up_calls_are_made_and_not_kept():
    log = []
    samples = measured("ab", log=log, rounds=3, calls=2, warmup_calls=7, round_warmup_calls=4)
    assert len(samples) == 2 * 3 * 2
    assert len(log) == 2 * ((7 + 2) + 2 * (4 + 2))


def test_the_garbage_collector_rests_while_timing_and_comes_back():
    log = []
    measured("a", log=log)
    assert not any(enabled for _, enabled in log)
    assert gc.isenabled()


def test_a_candidate_that_fails_does_not_stop_the_others():
    log = []
    sessions = {"good": Recorder("good", log), "bad": Recorder("bad", log, fails_at=4)}
    samples = measure_latency(
        sessions, BATCH, rounds=4, calls_per_round=3, warmup_calls=0, round_warmup_calls=0
    )
    bad = samples[samples["candidate"] == "bad"]
    assert bad["latency_ms"].isna().tolist() == [False] * 4 + [True]
    assert bad["error"].tolist() == [""] * 4 + ["RuntimeError: operator Foo is not supported"]
    assert sum(name == "bad" for name, _ in log) == 5  # not called again
    assert sum(samples["candidate"] == "good") == 12


def test_a_failure_in_the_warm_up_is_a_failed_row():
    sessions = {"bad": Recorder("bad", [], fails_at=0)}
    samples = measure_latency(sessions, BATCH, rounds=3, calls_per_round=2)
    row = latency_statistics(samples).iloc[0]
    assert len(samples) == 1
    assert row["error"] == "RuntimeError: operator Foo is not supported"
    assert row["samples"] == 0
    assert row.drop(["candidate", "samples", "error"]).isna().all()


def test_a_failure_survives_a_round_trip_through_csv(tmp_path):
    log = []
    sessions = {"good": Recorder("good", log), "bad": Recorder("bad", log, fails_at=1)}
    samples = measure_latency(sessions, BATCH, rounds=2, calls_per_round=1, warmup_calls=0)
    samples.to_csv(tmp_path / "samples.csv", index=False)
    errors = latency_statistics(pd.read_csv(tmp_path / "samples.csv")).set_index("candidate")[
        "error"
    ]
    assert errors.to_dict() == {"good": "", "bad": "RuntimeError: operator Foo is not supported"}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"names": ""}, "sessions are empty; allowed: 1 candidate or more"),
        ({"rounds": 0}, "rounds is 0; allowed: 1 or more"),
        ({"calls": 0}, "calls_per_round is 0; allowed: 1 or more"),
        ({"warmup_calls": -1}, "warmup_calls is -1; allowed: 0 or more"),
    ],
)
def test_measure_latency_refuses(options, message):
    with pytest.raises(ValueError, match=message):
        measured(**{"names": "a", "log": [], **options})


def test_statistics_by_hand():
    table = latency_statistics(samples_of([1.0, 2.0, 3.0, 6.0], calls=2), batch_size=4)
    row = table.iloc[0]
    assert (row["samples"], row["latency_ms"], row["latency_p50_ms"]) == (4, 3.0, 2.5)
    assert row["latency_std_ms"] == pytest.approx(np.sqrt((4 + 1 + 0 + 9) / 3))
    assert row["throughput_sps"] == pytest.approx(4 / 0.003)
    assert row["error"] == ""


@pytest.mark.parametrize(
    ("count", "p95", "p99"),
    [(129, False, False), (130, True, False), (661, True, False), (662, True, True)],
)
def test_percentiles_need_enough_samples(count, p95, p99):
    row = latency_statistics(samples_of(np.arange(count, dtype=float) + 1, calls=count)).iloc[0]
    assert np.isfinite([row["latency_p95_ms"], row["latency_p99_ms"]]).tolist() == [p95, p99]
    if p95:
        assert row["latency_p95_ms"] == pytest.approx(1 + 0.95 * (count - 1))


def test_candidates_keep_their_order():
    tables = [samples_of([1.0, 2.0], calls=1, candidate=name) for name in "zay"]
    assert latency_statistics(pd.concat(tables))["candidate"].tolist() == ["z", "a", "y"]


def test_resampled_medians_equal_the_median_of_the_drawn_rounds():
    rng = np.random.default_rng(0)
    latencies = rng.random((7, 3))
    weights = round_weights(7, replicates=50, seed=0)
    expected = [np.median(np.repeat(latencies, drawn, axis=0)) for drawn in weights]
    assert (weights.sum(axis=1) == 7).all()
    assert resampled_medians(samples_of(latencies.ravel(), calls=3), weights) == pytest.approx(
        expected
    )


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


def test_missing_samples_are_named():
    table = samples_of([1.0], calls=1)
    with pytest.raises(ValueError, match="latency samples are empty"):
        latency_statistics(table.iloc[:0])
    with pytest.raises(ValueError, match="latency samples have no column latency_ms"):
        latency_statistics(table.drop(columns="latency_ms"))
