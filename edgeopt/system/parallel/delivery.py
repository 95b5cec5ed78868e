"""Calls on their way to workers that share no disk with this machine."""

import hashlib
import io
import os
import pickle
import shutil
import sys
import tempfile
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from distributed import Client, Worker, WorkerPlugin, get_worker

from edgeopt.system.files import package_sha256
from edgeopt.system.host import environment_facts
from edgeopt.system.parallel.scheduler import SchedulerError
from edgeopt.system.parallel.workers import ByValue, keep_freed_memory

LARGE = 2**20  # bytes; what is larger goes to each worker once, and not with every call
PIECE = 2**26  # bytes of a file that travel at a time

Held = Path | np.ndarray


class Piece(WorkerPlugin):
    """A part of a file that every worker gets, those too that come later."""

    def __init__(self, name: str, *, path: str, start: int, content: bytes) -> None:
        self.name, self.path, self.start, self.content = name, path, start, content

    def setup(self, worker: Worker) -> None:
        """Write the part at its place."""
        file = Path(worker.local_directory, self.path)
        file.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(file, os.O_WRONLY | os.O_CREAT)
        try:
            written = 0
            while written < len(self.content):
                written += os.pwrite(descriptor, self.content[written:], self.start + written)
        finally:
            os.close(descriptor)
        self.content = b""  # the worker needs it no more

    def teardown(self, worker: Worker) -> None:
        """Remove the file."""
        Path(worker.local_directory, self.path).unlink(missing_ok=True)


class OnPath(WorkerPlugin):
    """Lets every worker import from an archive that was delivered."""

    def __init__(self, path: str) -> None:
        self.name, self.path = f"import-{path}", path

    def setup(self, worker: Worker) -> None:
        """Put the archive on the path of imports."""
        sys.path.insert(0, str(Path(worker.local_directory, self.path)))


class Delivery:
    """Packs calls; files and large arrays among their arguments go to each worker once."""

    def __init__(self, client: Client) -> None:
        self._client = client
        self._known: dict[tuple, tuple[str, Held]] = {}
        self._plugins: list[str] = []

    def packed(self, call: tuple[Any, ...]) -> bytes:
        """Return a call (task, arguments, options) in the form that :func:`run_packed` takes."""
        buffer = io.BytesIO()
        _Packer(buffer, self._delivered).dump(call)
        return buffer.getvalue()

    def bring(self, source: Path) -> None:
        """Let workers import a module's file or a package's folder."""
        with tempfile.TemporaryDirectory(prefix="edgeopt-") as scratch:
            base = str(Path(scratch, source.stem))
            archive = shutil.make_archive(base, "zip", source.parent, source.name)
            plugin = OnPath(self._delivered(Path(archive)))
        self._client.register_plugin(plugin)
        self._plugins.append(plugin.name)

    def take_back(self) -> None:
        """Remove from the workers what was delivered."""
        for name in self._plugins:
            self._client.unregister_worker_plugin(name)
        self._known, self._plugins = {}, []

    def _delivered(self, subject: Held) -> str:
        """Send a file or array to every worker unless it is there; its path on a worker."""
        key = _identity(subject)
        if key not in self._known:
            name, content = _content(subject)
            digest = hashlib.sha256(content).hexdigest()[:16]
            path = f"{self._client.id}/{digest}/{name}"
            for start in range(0, len(content), PIECE):
                part = {"start": start, "content": bytes(content[start : start + PIECE])}
                piece = Piece(f"{self._client.id}-{digest}-{start}", path=path, **part)
                self._client.register_plugin(piece)
                self._plugins.append(piece.name)
            self._known[key] = path, subject  # held, so that nothing else comes to lie there
        return self._known[key][0]


def _identity(subject: Held) -> tuple:
    if isinstance(subject, Path):
        status = subject.stat()
        return str(subject.resolve()), status.st_size, status.st_mtime_ns
    where = subject.__array_interface__
    return where["data"][0], where["shape"], where["strides"], where["typestr"]


def _content(subject: Held) -> tuple[str, Any]:
    if isinstance(subject, Path):
        return subject.name, np.memmap(subject, np.uint8, mode="r").data
    buffer = io.BytesIO()
    np.save(buffer, subject)
    return "array.npy", buffer.getbuffer()


class _Packer(pickle.Pickler):
    def __init__(self, buffer: io.BytesIO, delivered: Callable[[Held], str]) -> None:
        super().__init__(buffer, protocol=pickle.HIGHEST_PROTOCOL)
        self.delivered = delivered

    def persistent_id(self, subject: Any) -> tuple[Any, ...] | None:
        """Take files and large arrays out of the call."""
        if isinstance(subject, np.ndarray):
            large = subject.nbytes > LARGE and not subject.dtype.hasobject
            return ("array", self.delivered(subject)) if large else None
        if not isinstance(subject, Path) or not subject.is_file():
            return None
        if subject.stat().st_size > LARGE:
            return "path", self.delivered(subject)
        return "file", subject.name, subject.read_bytes()

    def reducer_override(self, subject: Any) -> Any:
        """Look into what goes to processes of this machine as bytes."""
        return (ByValue, (dict(subject),)) if type(subject) is ByValue else NotImplemented


class _Unpacker(pickle.Unpickler):
    def persistent_load(self, held: tuple[Any, ...]) -> Held:
        """Find what was delivered, or write what came with the call."""
        kind, name, *content = held
        home = Path(get_worker().local_directory)
        if content:
            path = home / hashlib.sha256(content[0]).hexdigest()[:16] / name
            path.parent.mkdir(exist_ok=True)
            path.write_bytes(content[0])
            return path
        return np.load(home / name, mmap_mode="c") if kind == "array" else home / name


@cache
def own_facts() -> dict[str, str]:
    """Versions that decide what a task gives: of the packages, and of edgeopt's code."""
    return {**environment_facts()["packages"], "edgeopt's code": package_sha256()[:16]}


def require_alike(found: dict[str, str], wanted: dict[str, str], *, worker: str) -> None:
    """Raise ``SchedulerError`` for a worker with other packages."""
    if unlike := [name for name in wanted if found.get(name) != wanted[name]]:
        said = ", ".join(f"{n} {found.get(n, 'missing')} (here {wanted[n]})" for n in unlike)
        raise SchedulerError(f"worker {worker} is unlike this machine: {said}")


@cache
def _compute_as_other_processes_do() -> None:
    """Turn off, once in a worker, two habits of Dask that long computations pay for.

    It gives every freed block back to the kernel at once, and looks at the stack a hundred times a
    second, which takes an eighth of an export.
    Source: https://distributed.dask.org/en/stable/worker-memory.html
    """
    keep_freed_memory()
    worker = get_worker()
    for name in ("profile", "profile-cycle"):
        if callback := worker.periodic_callbacks.get(name):
            worker.loop.add_callback(callback.stop)


def run_packed(packed: bytes, facts: dict[str, str]) -> Any:
    """Run a packed call on a worker that has these packages, with one torch thread."""
    import edgeopt.system.torchvision  # noqa: F401 - it may not load by itself

    require_alike(own_facts(), facts, worker=get_worker().address)
    torch.set_num_threads(1)
    _compute_as_other_processes_do()
    task, arguments, options = _Unpacker(io.BytesIO(packed)).load()
    return task(*arguments, **options)
