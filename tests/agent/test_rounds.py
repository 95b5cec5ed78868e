"""Order and visits of interleaved rounds. Never an assertion on seconds."""

import gc
from contextlib import contextmanager
from types import SimpleNamespace

import numpy as np
import pytest

from edgeopt.agent.rounds import round_order, visit

BATCH = np.zeros((1, 1, 2, 2), np.float32)


class Recorder:
    """A session that notes whether the garbage collector is on, and fails at a given call."""

    def __init__(self, fails_at=None):
        self.calls, self.fails_at = [], fails_at

    @contextmanager
    def bound(self, batch):
        assert batch is BATCH
        yield self.call

    def call(self):
        if len(self.calls) == self.fails_at:
            raise RuntimeError("operator Foo is not supported")
        self.calls.append(gc.isenabled())


def visited(session, *, calls=3, **options):
    return visit(lambda: session, BATCH, keep=[].append, calls=calls, **options)


def test_a_round_has_every_name_once_in_an_order_of_its_own():
    rounds = [round_order("abcdef", number=number, seed=1) for number in range(6)]
    assert all(sorted(order) == [*"abcdef"] for order in rounds)
    assert len({*map(tuple, rounds)}) == 6


def test_the_order_of_a_round_is_that_of_its_seed_and_number():
    first = round_order("abcdef", number=4, seed=1)
    assert first == round_order("abcdef", number=4, seed=1)
    assert first != round_order("abcdef", number=4, seed=2)
    assert first != round_order("abcdef", number=1, seed=4)


def test_times_are_what_the_clock_gained_in_nanoseconds(monkeypatch):
    ticks = iter([5_000, 7_000, 9_000, 9_500])  # two calls, of 2000 and 500 ns
    clock = SimpleNamespace(perf_counter_ns=lambda: next(ticks))
    monkeypatch.setattr("edgeopt.agent.rounds.time", clock)
    assert visited(Recorder(), calls=2, warmup=0) == ([2_000, 500], "")


@pytest.mark.parametrize(("options", "warmup"), [({}, 10), ({"warmup": 7}, 7), ({"warmup": 0}, 0)])
def test_calls_before_the_timed_ones_are_not_kept(options, warmup):
    session = Recorder()
    times, error = visited(session, **options)
    assert (len(times), error) == (3, "")
    assert len(session.calls) == warmup + 3


def test_a_session_is_handed_over_before_it_is_called():
    session, kept = Recorder(), []
    visit(lambda: session, BATCH, keep=lambda s: kept.append((s, len(s.calls))), calls=1)
    assert kept == [(session, 0)]


def test_the_garbage_collector_rests_and_wakes():
    session = Recorder()
    visited(session)
    assert not any(session.calls)
    assert gc.isenabled()
    visited(Recorder(fails_at=1))
    assert gc.isenabled()


def test_a_garbage_collector_that_was_off_stays_off():
    gc.disable()
    try:
        visited(Recorder())
        assert not gc.isenabled()
    finally:
        gc.enable()


def test_times_before_a_failure_are_kept_with_its_text():
    times, error = visited(Recorder(fails_at=4), calls=5, warmup=2)
    assert len(times) == 2
    assert error == "RuntimeError: operator Foo is not supported"


def test_what_cannot_be_loaded_has_no_times():
    def unloadable():
        raise OSError("file is gone")

    kept = []
    assert visit(unloadable, BATCH, keep=kept.append, calls=3) == ([], "OSError: file is gone")
    assert kept == []
