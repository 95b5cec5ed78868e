"""What prepared candidates cost on this machine: latency side by side, memory, energy."""

import math
import subprocess
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import Executor
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import pandas as pd

from edgeopt.experiments.candidates import Candidate
from edgeopt.metrics import (
    Measurement,
    measure_latency,
    measured_energy_j,
    measured_energy_unavailable,
    resident_memory,
)
from edgeopt.runtimes import Artifact, Session, load_session
from edgeopt.system import run_in_order

PACE_CALLS = 20
RSS_COLUMNS = ["peak_rss_bytes", "idle_rss_bytes", "added_rss_bytes", "rss_unavailable"]
TIMED_TOLERANCE = 0.02  # of the largest logit: with other threads a rounding of int8 may flip


def measure_candidates(
    candidates: Sequence[Candidate],
    batches: Mapping[str, np.ndarray],
    *,
    threads: int = 1,
    **options: Any,
) -> Measurement:
    """Time all candidates that were prepared in interleaved rounds, alone on the machine.

    ``batches`` holds, by model, the first of the images that it was scored on: a session that is
    timed has to give the logits that were scored, with as many threads as were asked for, else the
    candidate fails. ``options`` are those of :func:`edgeopt.metrics.measure_latency`. Raises
    ``ValueError`` with every candidate's error when none could be prepared.
    """
    prepared = [candidate for candidate in candidates if candidate.artifact]
    if not prepared:
        errors = "; ".join(f"{candidate.name}: {candidate.error}" for candidate in candidates)
        raise ValueError(f"no candidate could be prepared: {errors or 'there is none'}")
    own = {c.name: batches[c.spec.model] for c in prepared}
    loaders = {c.name: partial(_load_checked, c, own[c.name], threads) for c in prepared}
    return measure_latency(loaders, own, **options)


def _load_checked(candidate: Candidate, batch: np.ndarray, threads: int) -> Session:
    """Load a candidate; raise ``RuntimeError`` unless it is the one that was scored."""
    session = load_session(candidate.artifact, threads=threads)
    if session.threads != threads:
        raise RuntimeError(f"it computes with {session.threads} threads; {threads} were asked for")
    if batch.shape == session.input_shape:
        gap = np.abs(session(batch) - candidate.logits[: len(batch)])
        if not (gap <= TIMED_TOLERANCE * (1 + np.abs(candidate.logits).max())).all():
            raise RuntimeError(
                f"timed, its logits are up to {gap.max():.2g} from those that were scored"
            )
    return session


def peak_rss_table(
    candidates: Sequence[Candidate], *, executor: Executor | None = None
) -> pd.DataFrame:
    """Peak resident bytes of loading and running each artifact in a process of its own.

    Columns: candidate, peak_rss_bytes, idle_rss_bytes (before loading), added_rss_bytes (what one
    more copy adds) and, where these are NaN because the process failed, ``rss_unavailable`` with
    the reason.
    """
    prepared = [candidate for candidate in candidates if candidate.artifact]
    rows = run_in_order(_rss_row, [c.artifact for c in prepared], executor=executor)
    table = pd.DataFrame(rows, columns=RSS_COLUMNS)
    table.insert(0, "candidate", [candidate.name for candidate in prepared])
    return table


def _rss_row(artifact: Artifact) -> tuple[float, float, float, str]:
    try:
        memory = resident_memory(artifact)
    except (RuntimeError, subprocess.TimeoutExpired) as error:
        return math.nan, math.nan, math.nan, f"unavailable: {error}"
    return memory.peak_bytes, memory.baseline_bytes, memory.added_bytes, ""


def measured_energy_table(
    candidates: Sequence[Candidate],
    batches: Mapping[str, np.ndarray],
    *,
    threads: int = 1,
    seconds: float = 0.5,
) -> pd.DataFrame:
    """Joules per call of every prepared candidate, by RAPL: candidate, energy_measured_j.

    Each is called for about ``seconds``, alone on the machine, whose idle power is in the number.
    NaN for all where RAPL cannot be read.
    """
    prepared = [candidate for candidate in candidates if candidate.artifact]
    measure = partial(_joules_per_call, threads=threads, seconds=seconds)
    joules = [measure(c.artifact, batches[c.spec.model]) for c in prepared]
    names = [candidate.name for candidate in prepared]
    return pd.DataFrame({"candidate": names, "energy_measured_j": joules})


def _joules_per_call(
    artifact: Artifact, batch: np.ndarray, *, threads: int, seconds: float
) -> float:
    if measured_energy_unavailable():
        return math.nan
    try:
        with load_session(artifact, threads=threads).bound(batch) as call:
            start = time.perf_counter()
            for _ in range(PACE_CALLS):
                call()
            calls = math.ceil(seconds * PACE_CALLS / (time.perf_counter() - start))
            return measured_energy_j(call, calls=calls)
    except Exception:  # it cannot be run, which its latency says as well
        return math.nan


def with_failures(candidates: Sequence[Candidate], latency: pd.DataFrame) -> list[Candidate]:
    """Give the candidates that failed while they were timed their error."""
    errors = latency.set_index("candidate")["error"]
    return [replace(c, error=c.error or errors.get(c.name, "")) for c in candidates]
