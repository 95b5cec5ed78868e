"""Loaders -> raw latency samples in interleaved rounds, and what the machine did meanwhile."""

import gc
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from tqdm import tqdm

from edgeopt.metrics.conditions import Watch
from edgeopt.runtimes import Session
from edgeopt.schema import require_at_least

WARMUP_CALLS = 10


@dataclass(frozen=True, eq=False)
class Measurement:
    """What a latency measurement gave.

    ``samples`` has one row per timed call: ``candidate, round, position, call, latency_ms,
    error``. ``conditions`` has one row per round: ``round`` and what
    ``Watch.lap`` tells of it.
    """

    samples: pd.DataFrame
    conditions: pd.DataFrame


def measure_latency(
    loaders: Mapping[str, Callable[[], Session]],
    batch: NDArray | Mapping[str, NDArray],
    *,
    rounds: int,
    calls_per_round: int,
    warmup_calls: int = WARMUP_CALLS,
    seed: int = 0,
) -> Measurement:
    """Time every candidate on its batch in interleaved rounds and keep each raw sample.

    ``loaders`` give the sessions by the candidates' names; ``batch`` is one for all, or one a
    candidate, by its name.

    Every round visits all candidates in a new random order, so that a machine that slows down
    slows all of them alike. A visit loads the candidate anew, because where its memory falls moves
    its latency by a per cent or two for as long as it stays loaded, and makes ``warmup_calls``
    untimed calls before the timed ones. What is loaded is kept until the next round has loaded its
    own, so that it falls elsewhere. The garbage collector rests while the clock runs.

    A candidate that raises, while it is loaded or called, is not visited again; its last sample has
    a NaN latency and the text of the error, where every other one has an empty ``error``.
    """
    if not loaders:
        raise ValueError("loaders are empty; allowed: 1 candidate or more")
    require_at_least(1, rounds=rounds, calls_per_round=calls_per_round)
    require_at_least(0, warmup_calls=warmup_calls)
    calls = {"calls": calls_per_round, "warmup": warmup_calls}
    rng, watch = np.random.default_rng(seed), Watch()
    batches = batch if isinstance(batch, Mapping) else dict.fromkeys(loaders, batch)
    waiting, visits, laps = dict(loaders), [], []
    loaded: dict[str, Session] = {}
    for number in tqdm(range(rounds), desc="latency rounds", disable=None):
        names = list(waiting)
        for position, index in enumerate(rng.permutation(len(names))):
            name = names[index]
            times, error = _visit(name, waiting[name], loaded, batches[name], **calls)
            visits.append(_rows(times, error, candidate=name, round=number, position=position))
            if error:
                del waiting[name]
        laps.append({"round": number, **watch.lap()})
    return Measurement(pd.concat(visits, ignore_index=True), pd.DataFrame(laps))


def _visit(
    name: str,
    load: Callable[[], Session],
    loaded: dict[str, Session],
    batch: NDArray,
    *,
    calls: int,
    warmup: int,
) -> tuple[list[int], str]:
    """Nanoseconds of each timed call, and the text of the error that ended them, if any."""
    clock, times = time.perf_counter_ns, []
    try:
        loaded[name] = load()
        with loaded[name].bound(batch) as call, _garbage_collector_off():
            for _ in range(warmup):
                call()
            for _ in range(calls):
                start = clock()
                call()
                times.append(clock() - start)
    except Exception as error:  # whatever a runtime raises becomes this candidate's error
        return times, f"{type(error).__name__}: {error}"
    return times, ""


def _rows(times: list[int], error: str, **labels: Any) -> pd.DataFrame:
    latencies = [nanoseconds / 1e6 for nanoseconds in times] + [np.nan] * bool(error)
    errors = [""] * len(times) + [error] * bool(error)
    columns = {**labels, "call": range(len(latencies)), "latency_ms": latencies, "error": errors}
    return pd.DataFrame(columns)


@contextmanager
def _garbage_collector_off() -> Iterator[None]:
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()
