"""Rounds in this process: order, counting, loading anew, failures; no assertion on seconds."""

from contextlib import contextmanager

import numpy as np
import pandas as pd
import pytest

from edgeopt.metrics.latency import latency_statistics
from edgeopt.metrics.rounds import measure_latency, visit_samples

BATCH = np.zeros((1, 1, 2, 2), np.float32)


class Recorder:
    """A loaded candidate that writes its name into a shared log, and fails at a given call."""

    def __init__(self, name, log, fails_at=None):
        self.name, self.log, self.fails_at = name, log, fails_at

    @contextmanager
    def bound(self, batch):
        assert batch is BATCH
        yield self.call

    def call(self):
        self.log.append(self.name)
        if self.fails_at is not None and self.log.count(self.name) > self.fails_at:
            raise RuntimeError("operator Foo is not supported")


def measured(names, *, log, rounds=4, calls=3, fails_at=None, **options):
    loaders = {name: lambda name=name: Recorder(name, log, fails_at) for name in names}
    return measure_latency(loaders, BATCH, rounds=rounds, calls_per_round=calls, **options)


def test_measure_latency_times_every_candidate_in_every_round():
    samples = measured("abc", log=[], warmup_calls=0).samples
    expected = ["candidate", "round", "position", "call", "latency_ms", "error"]
    assert samples.columns.tolist() == expected
    assert samples.groupby(["candidate", "round"])["call"].apply(list).tolist() == [[0, 1, 2]] * 12
    assert samples.groupby("round")["position"].unique().apply(sorted).tolist() == [[0, 1, 2]] * 4
    assert (samples["latency_ms"] > 0).all()
    assert (samples["error"] == "").all()


def test_visit_samples_are_milliseconds_and_the_error_is_the_last():
    samples = visit_samples([2_000_000, 500_000], "OSError: gone", candidate="a", position=3)
    assert samples["latency_ms"].tolist()[:2] == [2.0, 0.5]
    assert samples["latency_ms"].isna().tolist() == [False, False, True]
    assert samples["error"].tolist() == ["", "", "OSError: gone"]
    assert samples["call"].tolist() == [0, 1, 2]
    assert set(zip(samples["candidate"], samples["position"], strict=True)) == {("a", 3)}
    assert visit_samples([1], "", candidate="a")["error"].tolist() == [""]


def test_measure_latency_tells_the_order_of_the_calls():
    log = []
    samples = measured("abc", log=log, warmup_calls=0).samples
    assert log == samples["candidate"].tolist()


def test_measure_latency_shuffles_the_rounds_by_the_seed():
    def order(seed):
        samples = measured("abcdef", log=[], rounds=6, warmup_calls=0, seed=seed).samples
        return samples["candidate"].tolist()

    first = order(1)
    assert first == order(1)
    assert first != order(2)
    assert first[:18] != first[18:36]


def test_measure_latency_makes_warm_up_calls_at_every_visit_and_keeps_none():
    log = []
    samples = measured("ab", log=log, rounds=3, calls=2, warmup_calls=7).samples
    assert len(samples) == 2 * 3 * 2
    assert len(log) == 2 * 3 * (7 + 2)


def test_measure_latency_loads_anew_for_every_visit_and_holds_one_before():
    alive, most, loads = set(), [], []

    class Held(Recorder):
        def __init__(self, number):
            super().__init__("a", [])
            self.number = number
            alive.add(number)
            most.append(len(alive))

        def __del__(self):
            alive.discard(self.number)

    def load():
        loads.append(len(loads))
        return Held(loads[-1])

    measure_latency({"a": load}, BATCH, rounds=5, calls_per_round=1)
    assert len(loads) == 5
    # The session of the round before is there while the next is loaded, so that its memory differs.
    assert most == [1, 2, 2, 2, 2]


def test_measure_latency_goes_on_without_a_candidate_that_fails():
    log = []
    loaders = {"good": lambda: Recorder("good", log), "bad": lambda: Recorder("bad", log, 4)}
    samples = measure_latency(loaders, BATCH, rounds=4, calls_per_round=3, warmup_calls=0).samples
    bad = samples[samples["candidate"] == "bad"]
    assert bad["latency_ms"].isna().tolist() == [False] * 4 + [True]
    assert bad["error"].tolist() == [""] * 4 + ["RuntimeError: operator Foo is not supported"]
    assert log.count("bad") == 5  # not called again
    assert sum(samples["candidate"] == "good") == 12


def test_measure_latency_makes_a_failed_row_of_what_cannot_be_loaded():
    def unloadable():
        raise OSError("file is gone")

    loaders = {"gone": unloadable, "good": lambda: Recorder("good", [])}
    samples = measure_latency(loaders, BATCH, rounds=3, calls_per_round=2).samples
    table = latency_statistics(samples).set_index("candidate")
    assert table.loc["gone", "error"] == "OSError: file is gone"
    assert (samples["candidate"] == "gone").sum() == 1
    assert table.loc["good", "samples"] == 6


def test_measure_latency_describes_the_machine_once_a_round():
    conditions = measured("ab", log=[], rounds=5).conditions
    assert conditions["round"].tolist() == [0, 1, 2, 3, 4]
    assert (conditions["reference_ms"] > 0).all()
    assert {"other_cores", "steal_share", "load_1min", "seconds"} <= set(conditions)


def test_a_failure_survives_a_round_trip_through_csv(tmp_path):
    log = []
    loaders = {"good": lambda: Recorder("good", log), "bad": lambda: Recorder("bad", log, 1)}
    samples = measure_latency(loaders, BATCH, rounds=2, calls_per_round=1, warmup_calls=0).samples
    samples.to_csv(tmp_path / "samples.csv", index=False)
    table = latency_statistics(pd.read_csv(tmp_path / "samples.csv")).set_index("candidate")
    assert table["error"].to_dict() == {
        "good": "",
        "bad": "RuntimeError: operator Foo is not supported",
    }


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"names": ""}, "loaders are empty; allowed: 1 candidate or more"),
        ({"rounds": 0}, "rounds is 0; allowed: 1 or more"),
        ({"calls": 0}, "calls_per_round is 0; allowed: 1 or more"),
        ({"warmup_calls": -1}, "warmup_calls is -1; allowed: 0 or more"),
    ],
)
def test_measure_latency_refuses(options, message):
    with pytest.raises(ValueError, match=message):
        measured(**{"names": "a", "log": [], **options})
