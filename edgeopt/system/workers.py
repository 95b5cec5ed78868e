"""Worker processes for what is prepared and trained, many at once."""

import ctypes
import io
import pickle
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import BrokenExecutor, Executor, Future, ProcessPoolExecutor, as_completed
from functools import partial
from typing import Any

import torch
from tqdm import tqdm

from edgeopt.system.fork_server import end_with_parent, fork_server
from edgeopt.system.host import usable_cores

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # of malloc.h


class ByValue(dict):
    """Networks or trainings that go to another process as bytes.

    Shared memory would take a file descriptor for each of a network's hundreds of tensors.
    """

    def __reduce__(self) -> tuple[Any, ...]:
        return _from_bytes, (pickle.dumps(dict(self)),)


def _from_bytes(content: bytes) -> dict[Any, Any]:
    return _Unpickler(io.BytesIO(content)).load()


class _Unpickler(pickle.Unpickler):
    """Loads torchvision before a module that may import it, because it may not load by itself."""

    def find_class(self, module: str, name: str) -> Any:
        if module not in sys.modules:
            import edgeopt.system.torchvision  # noqa: F401
        return super().find_class(module, name)


class Workers(Executor):
    """Processes that are made anew after one of them has died.

    The jobs that were under way then end in ``BrokenExecutor``.
    """

    def __init__(self, count: int) -> None:
        self._count = count
        self._pool = _started(count)

    def submit(self, task: Callable[..., Any], /, *args: Any, **options: Any) -> Future:
        """Hand over a call, as the standard library's executors do."""
        try:
            return self._pool.submit(task, *args, **options)
        except BrokenExecutor:
            self._pool = _started(self._count)
            return self._pool.submit(task, *args, **options)

    def alone(self, task: Callable[..., Any], /, *args: Any) -> Future:
        """Run a call in a process of its own, to its end."""
        with process_pool(1) as own:
            return own.submit(task, *args)

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """End the processes."""
        self._pool.shutdown(wait, cancel_futures=cancel_futures)


def process_pool(workers: int | None = None) -> Workers:
    """Workers with one torch thread each, as many as there are usable cores unless told."""
    return Workers(workers or usable_cores())


def _started(count: int) -> ProcessPoolExecutor:
    return ProcessPoolExecutor(count, mp_context=fork_server(), initializer=_begin)


def keep_freed_memory() -> None:
    """Have this process keep what it frees, where its C library is glibc.

    It would give large blocks back to the kernel, which clears each page anew when a training asks
    for the next one: a third of the time of a small network.
    Source: https://man7.org/linux/man-pages/man3/mallopt.3.html
    """
    if set_option := getattr(ctypes.CDLL(None), "mallopt", None):
        set_option(M_TRIM_THRESHOLD, 2**30)
        set_option(M_MMAP_THRESHOLD, 2**25)


def _begin() -> None:
    """Compute with one thread, and end when the process that asked for the work does."""
    torch.set_num_threads(1)
    keep_freed_memory()
    end_with_parent()


def run_in_order(
    task: Callable[[Any], Any],
    jobs: Iterable[Any],
    *,
    executor: Executor | None,
    died: Callable[[Any], Any] | None = None,
) -> Iterator[Any]:
    """Yield the result of every job in the order of the jobs.

    When a worker dies, what was under way runs again, each job in a process of its own; the result
    of one whose process dies then too is ``died(job)``, without which ``BrokenExecutor`` is raised.
    """
    if executor is None:
        yield from map(task, jobs)
        return
    jobs, again = list(jobs), getattr(executor, "alone", executor.submit)
    futures = [executor.submit(task, job) for job in jobs]
    try:
        for job, future in zip(jobs, futures, strict=True):
            yield _result(future, partial(again, task, job), died and partial(died, job))
    finally:
        for future in futures:
            future.cancel()


def _result(
    future: Future, again: Callable[[], Future], died: Callable[[], Any] | None = None
) -> Any:
    try:
        return future.result()
    except BrokenExecutor:
        future = again()
        if died and isinstance(future.exception(), BrokenExecutor):
            return died()
        return future.result()


def run_as_completed(
    task: Callable[..., Any],
    jobs: Sequence[tuple[Any, ...]],
    *,
    executor: Executor | None,
    desc: str,
) -> Iterator[tuple[int, Any]]:
    """Yield the number and the result of every job, as soon as it is there.

    What was under way when a worker died runs once more.
    """
    with tqdm(total=len(jobs), desc=desc, disable=None) as bar:
        if executor is None:
            found = ((number, task(*job)) for number, job in enumerate(jobs))
        else:
            futures = {executor.submit(task, *job): number for number, job in enumerate(jobs)}
            again = getattr(executor, "alone", executor.submit)
            found = (
                (number, _result(future, partial(again, task, *jobs[number])))
                for future in as_completed(futures)
                for number in [futures[future]]
            )
        for number, result in found:
            bar.update()
            yield number, result
