"""Interleaved rounds: every candidate in every round, in a new order, loaded anew."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import numpy as np

from edgeopt.agent.session import Session

WARMUP_CALLS = 10


def round_order(names: Sequence[str], *, number: int, seed: int) -> list[str]:
    """Order of a round's visits: the same for the same names, round and seed."""
    return [names[i] for i in np.random.default_rng((seed, number)).permutation(len(names))]


def visit(
    load: Callable[[], Session],
    batch: np.ndarray,
    *,
    keep: Callable[[Session], None],
    calls: int,
    warmup: int = WARMUP_CALLS,
) -> tuple[list[int], str]:
    """Nanoseconds of each timed call, and the text of the error that ended them, if any.

    The session is loaded anew, because where its memory falls moves its latency by a per cent or
    two for as long as it stays loaded, and handed to ``keep``: what is kept until the next loading
    makes that one fall elsewhere. The garbage collector rests while the clock runs.
    """
    clock, times = time.perf_counter_ns, []
    try:
        session = load()
        keep(session)
        with session.bound(batch) as call, _garbage_collector_off():
            for _ in range(warmup):
                call()
            for _ in range(calls):
                start = clock()
                call()
                times.append(clock() - start)
    except Exception as error:  # whatever a runtime raises becomes this candidate's error
        return times, f"{type(error).__name__}: {error}"
    return times, ""


@contextmanager
def _garbage_collector_off() -> Iterator[None]:
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()
