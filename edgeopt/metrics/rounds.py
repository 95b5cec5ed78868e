"""Loaders -> raw latency samples in interleaved rounds, and what the machine did meanwhile."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from tqdm import tqdm

from edgeopt.agent.conditions import Watch
from edgeopt.agent.rounds import WARMUP_CALLS, round_order, visit
from edgeopt.runtimes import Session
from edgeopt.schema import require_at_least


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
    """Time every candidate on its batch in interleaved rounds, in this process.

    ``loaders`` give the sessions by the candidates' names; ``batch`` is one for all, or one a
    candidate, by its name. Every raw sample is kept.

    Every round visits all candidates in a new random order, so that a machine that slows down
    slows all of them alike; what a visit is, :func:`edgeopt.agent.rounds.visit` tells. A candidate
    that raises, while it is loaded or called, is not visited again; its last sample has a NaN
    latency and the text of the error, where every other one has an empty ``error``.
    """
    if not loaders:
        raise ValueError("loaders are empty; allowed: 1 candidate or more")
    require_at_least(1, rounds=rounds, calls_per_round=calls_per_round)
    require_at_least(0, warmup_calls=warmup_calls)
    counts = {"calls": calls_per_round, "warmup": warmup_calls}
    batches = batch if isinstance(batch, Mapping) else dict.fromkeys(loaders, batch)
    waiting, visits, laps, watch = dict(loaders), [], [], Watch()
    loaded: dict[str, Session] = {}
    for number in tqdm(range(rounds), desc="latency rounds", disable=None):
        for position, name in enumerate(round_order([*waiting], number=number, seed=seed)):
            keep = partial(loaded.__setitem__, name)
            times, error = visit(waiting[name], batches[name], keep=keep, **counts)
            visits.append(
                visit_samples(times, error, candidate=name, round=number, position=position)
            )
            if error:
                del waiting[name]
        laps.append({"round": number, **watch.lap()})
    return Measurement(pd.concat(visits, ignore_index=True), pd.DataFrame(laps))


def visit_samples(times: Iterable[int], error: str, **labels: Any) -> pd.DataFrame:
    """One row per timed call of a visit, in ms; one more, NaN, for the ``error`` that ended it."""
    latencies = [nanoseconds / 1e6 for nanoseconds in times]
    errors = [""] * len(latencies) + [error] * bool(error)
    latencies += [np.nan] * bool(error)
    columns = {**labels, "call": range(len(latencies)), "latency_ms": latencies, "error": errors}
    return pd.DataFrame(columns)
