"""Resident memory of a process that loads and runs one artifact, and nothing else."""

import dataclasses
import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np

from edgeopt.runtimes import Artifact, load_session


@dataclasses.dataclass(frozen=True)
class ResidentMemory:
    """Resident bytes of a process: before an artifact is loaded, and at the peak of using it.

    ``added_bytes`` is what one more copy of the artifact, loaded and run beside the first, adds:
    the artifact's own share, without the library that its runtime brings.
    """

    baseline_bytes: int
    peak_bytes: int
    added_bytes: int

    def __post_init__(self) -> None:
        if not 0 < self.baseline_bytes <= self.peak_bytes:
            raise ValueError(
                f"baseline_bytes is {self.baseline_bytes} and peak_bytes {self.peak_bytes}; "
                "allowed: 0 < baseline_bytes <= peak_bytes"
            )


def resident_memory(
    artifact: Artifact, *, threads: int = 1, calls: int = 3, timeout_seconds: float = 300
) -> ResidentMemory:
    """Load and run the artifact in a fresh Python process and read that process's memory.

    The baseline is taken after importing Python, NumPy and ``edgeopt.runtimes.registry``, so the
    difference is the runtime's library, the weights and its buffers. Read from
    ``/proc/self/status`` (Linux only), because ``ru_maxrss`` of a child starts at the memory of
    the process that spawned it. Raises ``RuntimeError`` with the child's last line when it fails.
    """
    spec = {**dataclasses.asdict(artifact), "path": str(Path(artifact.path).resolve())}
    request = json.dumps({"artifact": spec, "threads": threads, "calls": calls})
    child = subprocess.run(
        [sys.executable, "-m", "edgeopt.metrics.resident", request],
        capture_output=True,
        text=True,
        timeout=timeout_seconds,
    )
    if child.returncode != 0:
        reason = child.stderr.strip().rpartition("\n")[2] or f"exit code {child.returncode}"
        raise RuntimeError(f"the process that runs {artifact.path} failed: {reason}")
    return ResidentMemory(**json.loads(child.stdout.splitlines()[-1]))


def _status_bytes(field: str) -> int:
    kibibytes = re.search(rf"^{field}:\s+(\d+) kB$", Path("/proc/self/status").read_text(), re.M)
    return int(kibibytes[1]) * 1024


def _report_memory(request: str) -> None:
    asked = json.loads(request)
    fields = asked["artifact"]
    shape = tuple(fields["input_shape"])
    artifact = Artifact(**{**fields, "path": Path(fields["path"]), "input_shape": shape})
    baseline = _status_bytes("VmRSS")
    sessions, resident = [], []
    for _ in range(2):
        sessions.append(load_session(artifact, threads=asked["threads"]))
        for _ in range(asked["calls"]):
            sessions[-1](np.zeros(shape, dtype=np.float32))
        resident.append((_status_bytes("VmRSS"), _status_bytes("VmHWM")))
    (one, peak), (two, _) = resident
    memory = {"baseline_bytes": baseline, "peak_bytes": peak, "added_bytes": max(two - one, 0)}
    sys.stdout.write(f"\n{json.dumps(memory)}\n")


if __name__ == "__main__":
    _report_memory(sys.argv[1])
