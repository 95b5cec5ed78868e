"""What else the machine did while it was timed: reference kernel, other processes, stolen time."""

import os
import time
from pathlib import Path

import numpy as np
import pandas as pd

PROC_STAT = Path("/proc/stat")
REFERENCE_SIDE = 96
REFERENCE_CALLS = 30
# A round counts as slowed when its reference kernel took this much longer than in a quiet round,
# which the fastest quarter of the rounds stands for.
SLOWED = 1.10
BUSY_ROUNDS = 0.1  # share of the rounds
BUSY_CORES = 0.25  # cores that other processes used, on average
BUSY_STEAL = 0.02  # share of the machine's time that the hypervisor gave to others


def reference_kernel_ms() -> float:
    """Median time of a fixed amount of single-threaded arithmetic, to compare machines by.

    One call multiplies two float32 matrices of 96x96 by NumPy's own loops, which no BLAS library
    and no thread count changes.
    """
    shape = (2, REFERENCE_SIDE, REFERENCE_SIDE)
    left, right = np.random.default_rng(0).random(shape, dtype=np.float32)
    times = []
    for _ in range(REFERENCE_CALLS):
        start = time.perf_counter_ns()
        np.einsum("ij,kj->ik", left, right)
        times.append(time.perf_counter_ns() - start)
    return float(np.median(times)) / 1e6


class Watch:
    """Reads, round by round, how fast the machine was and how much of it went to others."""

    def __init__(self) -> None:
        self._before = _read()

    def lap(self) -> dict[str, float]:
        """Describe the time since the last lap.

        ``seconds``; ``reference_ms``, the reference kernel's time at its end; ``other_cores``,
        used by other processes; ``steal_share``, of the time that a hypervisor gave to other
        machines; ``load_1min``. NaN where the system does not tell.
        """
        reference, before = reference_kernel_ms(), self._before
        self._before = _read()
        seconds, own, busy, steal, total = np.subtract(self._before, before)
        return {
            "seconds": seconds,
            "reference_ms": reference,
            "other_cores": float(np.maximum(0.0, (busy - own) / seconds)),
            "steal_share": steal / total if total else 0.0,
            "load_1min": os.getloadavg()[0],
        }


def _read() -> tuple[float, ...]:
    """Clock, own CPU time, and the machine's busy, stolen and total time, in seconds."""
    clock, own = time.perf_counter(), time.process_time()
    if not PROC_STAT.exists():
        return clock, own, np.nan, np.nan, np.nan
    words = PROC_STAT.read_text().split("\n", 1)[0].split()[1:9]
    ticks = np.array(words, dtype=float) / os.sysconf("SC_CLK_TCK")
    user, nice, system, idle, waiting, irq, softirq, steal = ticks
    busy = user + nice + system + irq + softirq
    return clock, own, busy, steal, busy + steal + idle + waiting


def disturbance(conditions: pd.DataFrame) -> str:
    """Say in one sentence that the machine was busy and by how much; empty when it was quiet."""
    slowdown = conditions["reference_ms"] / conditions["reference_ms"].quantile(0.25)
    slow = slowdown[slowdown > SLOWED]
    other, steal = conditions["other_cores"].mean(), conditions["steal_share"].mean()
    said = []
    if len(slow) > BUSY_ROUNDS * len(conditions):
        said.append(
            f"in {len(slow)} of {len(conditions)} rounds the reference kernel took "
            f"{slow.min() - 1:.0%} to {slow.max() - 1:.0%} longer than in a quiet one"
        )
    if other > BUSY_CORES:
        said.append(f"other processes used {other:.1f} cores")
    if steal > BUSY_STEAL:
        said.append(f"the hypervisor took {steal:.0%} of the time")
    return f"The machine was busy while latency was measured: {'; '.join(said)}." if said else ""
