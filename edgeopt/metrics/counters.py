"""Hardware counters through Linux perf, or the reason why there are none."""

import os
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from io import FileIO
from pathlib import Path

import pandas as pd

from edgeopt.system import RuntimeUnavailable

EVENTS = (
    "cycles",
    "instructions",
    "cache-references",
    "cache-misses",
    "branch-misses",
    "task-clock",
)
COLUMNS = ("event", "value", "unit", "running_share", "status")


def read_counters(work: Callable[[], object]) -> pd.DataFrame:
    """Count the events of the CPU while ``work()`` runs in this process.

    Columns: event, value, unit, running_share (below 1 where perf took turns between events and
    scaled the value up), status. A counter that the host does not give has value NaN and a status
    that starts with ``unavailable:``; so have all of them where perf itself is not to be had.

    Source: https://man7.org/linux/man-pages/man1/perf-stat.1.html (CSV format)
    """
    try:
        return parse_perf_stat(_count(work))
    except RuntimeUnavailable as reason:
        rows = [(event, float("nan"), "", 0.0, f"unavailable: {reason}") for event in EVENTS]
        return pd.DataFrame(rows, columns=COLUMNS)


def parse_perf_stat(text: str) -> pd.DataFrame:
    """Parse the output of ``perf stat -x,``; see `read_counters` for the columns."""
    lines = [line for line in text.splitlines() if line.strip() and not line.startswith("#")]
    return pd.DataFrame([_parse_line(line) for line in lines], columns=COLUMNS)


def _parse_line(line: str) -> tuple[str, float, str, float, str]:
    fields = line.split(",")
    if len(fields) < 5:
        raise ValueError(f"not a line of 'perf stat -x,': {line!r}")
    value, unit, event, _, percent = fields[:5]
    if value.startswith("<"):
        reason = f"unavailable: perf says {value} for {event} on this host"
        return event, float("nan"), unit, 0.0, reason
    return event, float(value), unit, float(percent) / 100, "measured"


def _count(work: Callable[[], object]) -> str:
    """Attach perf to this process with counting off, switch it on around the work only."""
    with tempfile.TemporaryDirectory() as folder, _pipe() as control, _pipe() as acknowledge:
        output = Path(folder, "perf.csv")
        perf = _attach_perf(output, ends=(control[0].fileno(), acknowledge[1].fileno()))
        acknowledge[1].close()  # so that reading ends when perf does
        try:
            if _order(control[1], acknowledge[0], b"enable\n"):
                work()
                _order(control[1], acknowledge[0], b"disable\n")
        finally:
            perf.send_signal(signal.SIGINT)
            _, error = perf.communicate()
        text = output.read_text() if output.exists() else ""
    if all(line.startswith("#") for line in text.split("\n") if line.strip()):
        raise RuntimeUnavailable(" ".join(error.split()) or "perf wrote no counts")
    return text


def _attach_perf(output: Path, *, ends: tuple[int, int]) -> subprocess.Popen[str]:
    program = shutil.which("perf")
    if program is None:
        raise RuntimeUnavailable("perf is not installed (Debian: linux-perf)")
    counted = ["-x,", "-o", str(output), "-e", ",".join(EVENTS), "-p", str(os.getpid())]
    return subprocess.Popen(
        [program, "stat", *counted, "-D", "-1", "--control", "fd:{},{}".format(*ends)],
        pass_fds=ends,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "LC_ALL": "C"},  # a decimal point, whatever the user's language
    )


@contextmanager
def _pipe() -> Iterator[tuple[FileIO, FileIO]]:
    """Open a pipe for the block: its reading and its writing end."""
    reader, writer = os.pipe()
    with open(reader, "rb", buffering=0) as reading, open(writer, "wb", buffering=0) as writing:
        yield reading, writing


def _order(control: FileIO, acknowledge: FileIO, command: bytes) -> bool:
    """Send perf a command and wait until it has obeyed; False when perf has gone."""
    control.write(command)
    return acknowledge.read(16) != b""
