"""What else the machine did while it was timed: reference kernel, other processes, clock, heat."""

from __future__ import annotations

import os
import time
from collections.abc import Iterable
from pathlib import Path

import numpy as np

PROC_STAT = Path("/proc/stat")
CPUS = Path("/sys/devices/system/cpu")
THERMAL = Path("/sys/class/thermal")
# The firmware of a Raspberry Pi tells of undervoltage and of clocks that it lowered.
RASPBERRY_THROTTLED = Path("/sys/devices/platform/soc/soc:firmware/get_throttled")
REFERENCE_SIDE = 96
REFERENCE_CALLS = 30


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
        machines; ``load_1min``; ``clock_mhz`` and ``temperature_c`` at its end. NaN where the
        system does not tell.
        """
        reference, before = reference_kernel_ms(), self._before
        self._before = _read()
        seconds, own, busy, steal, total = np.subtract(self._before, before)
        return {
            "seconds": seconds,
            "reference_ms": reference,
            "other_cores": float(np.maximum(0.0, (busy - own) / seconds)),
            "steal_share": steal / total if total else 0.0,
            "load_1min": _load(),
            "clock_mhz": clock_mhz(),
            "temperature_c": temperature_c(),
        }


def _read() -> tuple[float, ...]:
    """Clock, own CPU time, and the machine's busy, stolen and total time, in seconds."""
    clock, own = time.perf_counter(), time.process_time()
    try:
        words = PROC_STAT.read_text()
    except OSError:  # not there, or hidden, as on Android
        return clock, own, np.nan, np.nan, np.nan
    words = words.split("\n", 1)[0].split()[1:9]
    ticks = np.array(words, dtype=float) / os.sysconf("SC_CLK_TCK")
    user, nice, system, idle, waiting, irq, softirq, steal = ticks
    busy = user + nice + system + irq + softirq
    return clock, own, busy, steal, busy + steal + idle + waiting


def _load() -> float:
    try:
        return os.getloadavg()[0]
    except OSError:
        return np.nan


def clock_mhz() -> float:
    """Frequency of the fastest core in MHz: idle ones slow down; NaN where it is not told."""
    files = CPUS.glob("cpu[0-9]*/cpufreq/scaling_cur_freq")
    return max(_numbers(files), default=np.nan) / 1e3


def temperature_c() -> float:
    """Hottest of the machine's own sensors in degrees Celsius; NaN where there is none."""
    return max(_numbers(THERMAL.glob("thermal_zone*/temp")), default=np.nan) / 1e3


def throttling() -> str:
    """Repeat what the system says of clocks that heat or the supply held down."""
    if RASPBERRY_THROTTLED.exists():
        return f"get_throttled={RASPBERRY_THROTTLED.read_text().strip()}"
    counts = _numbers(CPUS.glob("cpu[0-9]*/thermal_throttle/core_throttle_count"))
    return f"core_throttle_count={sum(counts):.0f}" if counts else "unavailable: not told"


def _numbers(files: Iterable[Path]) -> list[float]:
    found = []
    for file in files:
        try:
            found.append(float(file.read_text()))
        except (OSError, ValueError):  # a sensor that is switched off
            continue
    return found
