"""Resident memory of a process that loads and runs one artifact, and nothing else."""

import dataclasses
import json
import pickle
import re
import subprocess
import sys
from pathlib import Path

import numpy as np

from edgeopt.runtimes import Artifact, load_session

CALLS = 3
TIMEOUT_SECONDS = 300


@dataclasses.dataclass(frozen=True)
class ResidentMemory:
    """Resident bytes of a process: before an artifact is loaded, and at the peak of using it.

    ``added_bytes`` is what one more copy of the artifact, loaded and run beside the first, adds:
    the artifact's own share, without the library that its runtime brings.
    """

    baseline_bytes: int
    peak_bytes: int
    added_bytes: int


def resident_memory(artifact: Artifact) -> ResidentMemory:
    """Load and run the artifact in a fresh Python process, on one thread, and read its memory.

    The baseline is taken after importing Python, NumPy and ``edgeopt.runtimes.registry``, so the
    difference is the runtime's library, the weights and its buffers. Read from
    ``/proc/self/status`` (Linux only), because ``ru_maxrss`` of a child starts at the memory of
    the process that spawned it. Raises ``RuntimeError`` with the child's last line when it fails,
    ``TimeoutExpired`` when it takes more than five minutes.
    """
    child = subprocess.run(
        [sys.executable, "-m", "edgeopt.metrics.resident"],
        input=pickle.dumps(artifact),
        capture_output=True,
        timeout=TIMEOUT_SECONDS,
    )
    if child.returncode != 0:
        last = child.stderr.decode().strip().rpartition("\n")[2]
        reason = last or f"exit code {child.returncode}"
        raise RuntimeError(f"the process that runs {artifact.path} failed: {reason}")
    return ResidentMemory(**json.loads(child.stdout.splitlines()[-1]))


def _status_bytes(field: str) -> int:
    kibibytes = re.search(rf"^{field}:\s+(\d+) kB$", Path("/proc/self/status").read_text(), re.M)
    return int(kibibytes[1]) * 1024


def _report_memory(artifact: Artifact) -> None:
    baseline = _status_bytes("VmRSS")
    sessions, resident = [], []
    for _ in range(2):
        sessions.append(load_session(artifact, threads=1))
        for _ in range(CALLS):
            sessions[-1](np.zeros(artifact.input_shape, dtype=np.float32))
        resident.append((_status_bytes("VmRSS"), _status_bytes("VmHWM")))
    (one, peak), (two, _) = resident
    memory = ResidentMemory(baseline, peak, max(two - one, 0))
    sys.stdout.write(f"\n{json.dumps(dataclasses.asdict(memory))}\n")


if __name__ == "__main__":
    _report_memory(pickle.load(sys.stdin.buffer))
