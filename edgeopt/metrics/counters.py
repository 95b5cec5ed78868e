"""Hardware counters through Linux perf, or the reason why there are none."""

import os
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pandas as pd

EVENTS = (
    "cycles",
    "instructions",
    "cache-references",
    "cache-misses",
    "branch-misses",
    "task-clock",
)
COLUMNS = ("event", "value", "unit", "running_share", "status")
MEASURED = "measured"


class CountersUnavailableError(RuntimeError):
    """Perf is missing or not allowed to count here."""


def read_counters(
    work: Sequence[str] | Callable[[], object], *, events: Sequence[str] = EVENTS
) -> pd.DataFrame:
    """Count ``events`` while a command runs, or while ``work()`` runs in this process.

    Columns: event, value, unit, running_share (below 1 where perf took turns between events and
    scaled the value up), status. A counter that the host does not give has value NaN and a status
    that starts with ``unavailable:``; so have all of them where perf itself is not to be had.

    Source: https://man7.org/linux/man-pages/man1/perf-stat.1.html (CSV format)
    """
    if not events:
        raise ValueError("events is empty; name at least one, e.g. 'cycles'")
    try:
        text = _count_calls(work, events) if callable(work) else _count_command(work, events)
    except CountersUnavailableError as reason:
        return _all_unavailable(events, str(reason))
    return parse_perf_stat(text)


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
    return event, float(value), unit, float(percent) / 100, MEASURED


def _all_unavailable(events: Sequence[str], reason: str) -> pd.DataFrame:
    rows = [(event, float("nan"), "", 0.0, f"unavailable: {reason}") for event in events]
    return pd.DataFrame(rows, columns=COLUMNS)


def _perf(events: Sequence[str], output: Path, *options: str) -> list[str]:
    program = shutil.which("perf")
    if program is None:
        raise CountersUnavailableError("perf is not installed (Debian: linux-perf)")
    return [program, "stat", "-x,", "-o", str(output), "-e", ",".join(events), *options]


def _count_command(command: Sequence[str], events: Sequence[str]) -> str:
    with tempfile.TemporaryDirectory() as folder:
        output = Path(folder, "perf.csv")
        line = [*_perf(events, output, "--"), *command]
        done = subprocess.run(line, capture_output=True, text=True, env=_plain_locale())
        text = _read_counts(output, error=done.stderr)
    if done.returncode:
        raise RuntimeError(f"{list(command)} failed under perf ({done.returncode}): {done.stderr}")
    return text


def _count_calls(work: Callable[[], object], events: Sequence[str]) -> str:
    """Attach perf to this process with counting off, switch it on around the work only."""
    with tempfile.TemporaryDirectory() as folder, _pipe() as control, _pipe() as acknowledge:
        output = Path(folder, "perf.csv")
        descriptors = f"fd:{control.reader},{acknowledge.writer}"
        options = ("-D", "-1", "--control", descriptors, "-p", str(os.getpid()))
        perf = subprocess.Popen(
            _perf(events, output, *options),
            pass_fds=(control.reader, acknowledge.writer),
            stderr=subprocess.PIPE,
            text=True,
            env=_plain_locale(),
        )
        acknowledge.close_writer()
        try:
            if _order(control, acknowledge, "enable"):
                work()
                _order(control, acknowledge, "disable")
        finally:
            perf.send_signal(signal.SIGINT)
            _, error = perf.communicate()
        return _read_counts(output, error=error)


def _read_counts(output: Path, *, error: str) -> str:
    text = output.read_text() if output.exists() else ""
    if all(line.startswith("#") for line in text.split("\n") if line.strip()):
        raise CountersUnavailableError(" ".join(error.split()) or "perf wrote no counts")
    return text


def _plain_locale() -> dict[str, str]:
    """Environment in which perf writes a decimal point, whatever the user's language."""
    return {**os.environ, "LC_ALL": "C"}


class _Pipe:
    """Two ends of a pipe, each closed once."""

    def __init__(self) -> None:
        self.reader, self.writer = os.pipe()
        self._open = {self.reader, self.writer}

    def close_writer(self) -> None:
        os.close(self.writer)
        self._open.discard(self.writer)

    def close(self) -> None:
        for descriptor in self._open:
            os.close(descriptor)


@contextmanager
def _pipe() -> Iterator[_Pipe]:
    pipe = _Pipe()
    try:
        yield pipe
    finally:
        pipe.close()


def _order(control: _Pipe, acknowledge: _Pipe, command: str) -> bool:
    """Send perf a command and wait until it has obeyed; False when perf has gone."""
    os.write(control.writer, f"{command}\n".encode())
    return os.read(acknowledge.reader, 16) != b""
