"""Resident memory of a process that loads and runs one artifact, and nothing else."""

from __future__ import annotations

import numpy as np

from edgeopt.agent.session import Artifact, open_session
from edgeopt.system.host import status_bytes

CALLS = 3


def memory_of(artifact: Artifact, *, place: str, threads: int = 1) -> dict[str, int]:
    """Load and run an artifact twice in this process, which has done nothing else yet.

    ``idle_rss_bytes`` is resident before the first loading, with Python and NumPy;
    ``peak_rss_bytes`` the highest of using the first copy, its runtime's library included;
    ``added_rss_bytes`` what the second copy adds: the artifact's own share, without the library.
    Read from ``/proc/self/status`` (Linux only), because ``ru_maxrss`` of a child starts at the
    memory of the process that spawned it.
    """
    idle = status_bytes("VmRSS")
    sessions, resident = [], []
    for _ in range(2):
        sessions.append(open_session(artifact, place=place, threads=threads))
        for _ in range(CALLS):
            sessions[-1](np.zeros(artifact.input_shape, dtype=np.float32))
        resident.append((status_bytes("VmRSS"), status_bytes("VmHWM")))
    (one, peak), (two, _) = resident
    return {
        "idle_rss_bytes": idle,
        "peak_rss_bytes": peak,
        "added_rss_bytes": max(two - one, 0),
    }
