"""Runs a plan to its end: workers that may die, memory in fresh processes, the machine's facts."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import platform
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from importlib import metadata
from pathlib import Path
from typing import Any

from edgeopt.agent.conditions import clock_mhz, temperature_c, throttling
from edgeopt.agent.journal import Journal, show_waiting
from edgeopt.agent.plan import PLAN, Job, Plan, PlanError, read_plan
from edgeopt.agent.worker import UNDERWAY
from edgeopt.system.host import host_facts, usable_cores

LOCK = "lock"
# Where all processes of a user meet, whatever their TMPDIR: two measurements slow each other.
SHARED = "/tmp" if os.access("/tmp", os.W_OK) else tempfile.gettempdir()
TURN = Path(SHARED, f"edgeopt-measuring-{os.getuid()}.lock")
MEMORY_SECONDS = 300
# Children wait for the end of their standard input, which this process holds open until it ends.
_LIFELINE, _HELD = os.pipe()
PIPES: dict[str, Any] = {"stdin": _LIFELINE, "stderr": subprocess.PIPE, "text": True}


class AgentError(RuntimeError):
    """The agent cannot measure here."""


def run(folder: Path, *, show: str) -> None:
    """Measure what a plan asks for, and go on where an earlier run of it was ended.

    While another process of this user measures on this device, this one waits, and says so. Raises
    ``PlanError`` when the plan or a file is not what was written, ``AgentError`` when a lock is not
    the user's, or the worker dies outside of any artifact.
    """
    plan = read_plan(folder)
    with _held(folder / LOCK, show=show):
        if not (folder / PLAN).exists():
            raise AgentError(f"{folder} was removed by the process that measured it before")
        journal = Journal(folder, show=show)
        if (known := journal.records.get(("begin", "", 0))) and known["plan"] != plan.digest:
            raise PlanError(f"{journal.path} belongs to another plan: {known['plan']}")
        journal.show_all()
        with _held(TURN, show=show):
            journal.add("begin", plan=plan.digest, facts=device_facts(plan), state=_state())
            _work(plan, journal, show=show)
            if plan.values["memory"]:
                _measure_memory(plan, journal)
            journal.add("done", state=_state())


def device_facts(plan: Plan) -> dict[str, Any]:
    """Describe the device, with the versions of the packages that the plan names."""
    versions = {}
    for name in plan.values["packages"]:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            versions[name] = "not installed"
    return {
        **host_facts(),
        "node": platform.node(),
        "python": platform.python_version(),
        "packages": versions,
    }


def _state() -> dict[str, Any]:
    """Clock, heat and throttling now; None for what the machine does not tell."""
    numbers = {"clock_mhz": clock_mhz(), "temperature_c": temperature_c()}
    told = {name: value if value == value else None for name, value in numbers.items()}
    return {**told, "throttling": throttling()}


@contextlib.contextmanager
def _held(path: Path, *, show: str) -> Iterator[None]:
    """Hold a file's lock; wait for the process that holds it, and say so."""
    flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW
    with os.fdopen(os.open(path, flags, 0o600), "r+", encoding="utf-8") as lock:
        found = os.fstat(lock.fileno())
        if (found.st_uid, found.st_nlink) != (os.getuid(), 1):
            raise AgentError(f"{path} is not a lock of this user's; remove it")
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            show_waiting(lock.read() or "another process", show=show)
            fcntl.flock(lock, fcntl.LOCK_EX)
        lock.seek(0)
        lock.truncate()
        lock.write(f"process {os.getpid()}")
        lock.flush()
        yield


def _work(plan: Plan, journal: Journal, *, show: str) -> None:
    """Start workers until one comes to its end; an artifact that ends two of them has failed."""
    before = None
    while reason := _worker_ending(plan.folder, show=show):
        journal.reload()
        name = _taken(plan.folder / UNDERWAY)
        if not name or journal.has("failed", name):
            raise AgentError(f"the agent's worker ended outside of any artifact: {reason}")
        if before == (before := (name, len(journal.records))):
            rounds = len(journal.of_kind("lap"))
            journal.add("failed", name, at=rounds, error=f"it ended its process: {reason}")
    journal.reload()


def _worker_ending(folder: Path, *, show: str) -> str:
    """Let a worker work; why it ended, empty when it had come to its end."""
    worker = subprocess.run(_command("work", folder, "--show", show), **PIPES)
    return _reason(worker.returncode, worker.stderr)


def _taken(file: Path) -> str:
    """Read a file and remove it; empty when there is none."""
    text = file.read_text(encoding="utf-8") if file.exists() else ""
    with contextlib.suppress(FileNotFoundError):
        file.unlink()
    return text


def _reason(code: int, said: str) -> str:
    """Why a process ended, from its exit code and the last line it wrote; empty for 0."""
    if code == 0:
        return ""
    if code < 0:
        return f"killed by {signal.Signals(-code).name}"
    return said.strip().rpartition("\n")[2] or f"exit code {code}"


def _measure_memory(plan: Plan, journal: Journal) -> None:
    """Read the memory of every job that has not failed, in a fresh process each."""
    failed = {record["name"] for record in journal.of_kind("failed")}
    jobs = [j for j in plan.jobs if not {j.name} & failed and not journal.has("memory", j.name)]
    with ThreadPoolExecutor(min(2, usable_cores())) as threads:
        for job, found in zip(jobs, threads.map(lambda job: _memory(plan.folder, job), jobs)):
            journal.add("memory", job.name, **found)


def _memory(folder: Path, job: Job) -> dict[str, Any]:
    command, limits = _command("memory", folder, job.name), {"timeout": MEMORY_SECONDS}
    try:
        child = subprocess.run(command, stdout=subprocess.PIPE, **PIPES, **limits)
    except subprocess.TimeoutExpired:
        return {"unavailable": f"unavailable: not done in {MEMORY_SECONDS} s"}
    if reason := _reason(child.returncode, child.stderr):
        return {"unavailable": f"unavailable: the process that runs it failed: {reason}"}
    return json.loads(child.stdout.splitlines()[-1])


def _command(*words: str | Path) -> list[str]:
    """Command line that starts this program again, from its archive or from the package."""
    archive = Path(sys.modules["__main__"].__file__ or "").parent
    program = [str(archive)] if archive.is_file() else ["-m", "edgeopt.agent"]
    return [sys.executable, *program, *map(str, words)]


def end_with_parent() -> None:
    """End this process as soon as its standard input is closed: whoever started it is gone."""

    def watch() -> None:
        while os.read(0, 4096):
            pass
        os._exit(3)

    threading.Thread(target=watch, daemon=True).start()
