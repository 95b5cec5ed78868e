"""What prepared candidates cost on this machine: latency side by side, memory, energy."""

import math
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd

from edgeopt.agent.rounds import WARMUP_CALLS
from edgeopt.data import Split
from edgeopt.devices import (
    HOST,
    Device,
    DeviceResults,
    Task,
    device_named,
    measure_on,
    write_bundle,
)
from edgeopt.experiments.candidates.candidate import Candidate
from edgeopt.metrics import measured_energy_j, measured_energy_unavailable
from edgeopt.runtimes import Artifact, load_session

PACE_CALLS = 20


def measure_candidates(
    candidates: Sequence[Candidate],
    images: Mapping[str, Split],
    *,
    rounds: int,
    calls_per_round: int,
    device: Device | None = None,
    threads: int = 1,
    kept: Path | None = None,
) -> DeviceResults:
    """Time all candidates that were prepared in interleaved rounds, alone on a device.

    Parameters
    ----------
    images : mapping
        By model, what its candidates were scored on. A session that is timed has to give the logits
        that were scored, with as many threads as were asked for, else the candidate fails.
    device : Device, optional
        This machine when omitted. On any other each candidate is scored on all images first.
    kept : Path, optional
        File with what was measured, as :func:`edgeopt.devices.measure_on` takes it.

    Raises ``ValueError`` with every candidate's error when none could be prepared.
    """
    prepared = [candidate for candidate in candidates if candidate.artifact]
    if not prepared:
        errors = "; ".join(f"{candidate.name}: {candidate.error}" for candidate in candidates)
        raise ValueError(f"no candidate could be prepared: {errors or 'there is none'}")
    device = device or device_named(HOST)
    here = device.name == HOST
    tasks = [
        Task(c.name, c.artifact, c.spec.model, threads, not here, c.logits[: _batch(c)])
        for c in prepared
    ]
    counts = {"rounds": rounds, "calls_per_round": calls_per_round}
    batch = max(map(_batch, prepared))
    shown = {model: split.first(batch) if here else split for model, split in images.items()}
    with tempfile.TemporaryDirectory(prefix="edgeopt-") as scratch:
        plan = write_bundle(Path(scratch), tasks, images=shown, **counts)
        return measure_on(device, plan, kept=kept)


def _batch(candidate: Candidate) -> int:
    return candidate.artifact.input_shape[0]


def measured_energy_table(
    candidates: Sequence[Candidate],
    batches: Mapping[str, np.ndarray],
    *,
    device: str = HOST,
    threads: int = 1,
    seconds: float = 0.5,
) -> pd.DataFrame:
    """Joules per call of every prepared candidate, by RAPL: candidate, energy_measured_j.

    Each is called for about ``seconds``, alone on the machine, whose idle power is in the number.
    NaN for all where RAPL cannot be read, and for a ``device`` that is not this machine.
    """
    prepared = [candidate for candidate in candidates if candidate.artifact]
    measure = partial(_joules_per_call, threads=threads, seconds=seconds)
    here = device == HOST
    joules = [measure(c.artifact, batches[c.spec.model]) if here else math.nan for c in prepared]
    names = [candidate.name for candidate in prepared]
    return pd.DataFrame({"candidate": names, "energy_measured_j": joules})


def _joules_per_call(
    artifact: Artifact, batch: np.ndarray, *, threads: int, seconds: float
) -> float:
    if measured_energy_unavailable():
        return math.nan
    try:
        with load_session(artifact, threads=threads).bound(batch) as call:
            for _ in range(WARMUP_CALLS):  # the first ones compile
                call()
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
