"""Worker processes for what is prepared and trained, many at once."""

import ctypes
import io
import pickle
import sys
from collections.abc import Callable, Collection, Hashable, Iterable, Iterator, Mapping
from concurrent.futures import (
    FIRST_COMPLETED,
    BrokenExecutor,
    Executor,
    Future,
    ProcessPoolExecutor,
    wait,
)
from functools import partial
from typing import Any

import torch
from tqdm import tqdm

from edgeopt.system.host import usable_cores
from edgeopt.system.parallel.fork_server import end_with_parent, fork_server

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
    jobs = list(jobs)
    futures = [executor.submit(task, job) for job in jobs]
    try:
        for job, future in zip(jobs, futures, strict=True):
            yield _result(future, partial(_again, executor, task, job), died and partial(died, job))
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


def run_when_ready(
    task: Callable[..., Any],
    needs: Mapping[Hashable, Collection[Hashable]],
    *,
    arguments: Callable[[Any], tuple[Any, ...]],
    executor: Executor | None,
    desc: str,
) -> Iterator[tuple[Any, Any]]:
    """Yield the key and the result of every job, as soon as it is there.

    A job is started, in the order of ``needs``, once the results of those that it needs were taken;
    its ``arguments`` are asked for then. What was under way when a worker died runs once more.
    """
    waiting, running, taken = dict(needs), {}, set()
    try:
        with tqdm(total=len(waiting), desc=desc, disable=None) as bar:
            while waiting or running:
                ready = [key for key, own in waiting.items() if taken.issuperset(own)]
                for key in ready if executor else ready[:1]:
                    del waiting[key]
                    given = arguments(key)
                    running[_submitted(task, *given, executor=executor)] = key, given
                for future in wait(running, return_when=FIRST_COMPLETED).done:
                    key, given = running.pop(future)
                    found = _result(future, partial(_again, executor, task, *given))
                    bar.update()
                    yield key, found
                    taken.add(key)
    finally:
        for future in running:
            future.cancel()


def _submitted(task: Callable[..., Any], *given: Any, executor: Executor | None) -> Future:
    """Hand a call to the executor, or make it here without one."""
    if executor:
        return executor.submit(task, *given)
    future: Future = Future()
    future.set_result(task(*given))
    return future


def _again(executor: Executor, task: Callable[..., Any], *given: Any) -> Future:
    """Run a call once more whose worker has died: by itself, where the executor can."""
    return getattr(executor, "alone", executor.submit)(task, *given)
