"""Worker processes for what is prepared and trained, many at once."""

import multiprocessing
import pickle
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Executor, ProcessPoolExecutor, as_completed
from typing import Any

import torch
from tqdm import tqdm

from edgeopt.system.host import usable_cores

# What the workers' server imports once, so that each worker starts with it.
PRELOADED = ("edgeopt.experiments.candidates", "edgeopt.experiments.trainings")


class ByValue(dict):
    """Networks or trainings that go to another process as bytes.

    Shared memory would take a file descriptor for each of a network's hundreds of tensors.
    """

    def __reduce__(self) -> tuple[Any, ...]:
        return _from_bytes, (pickle.dumps(dict(self)),)


def _from_bytes(content: bytes) -> dict[Any, Any]:
    # pickle would import torchvision, which may not load by itself
    import edgeopt.system.torchvision  # noqa: F401

    return pickle.loads(content)


def process_pool(workers: int | None = None) -> ProcessPoolExecutor:
    """Workers with one torch thread each, as many as there are usable cores unless told.

    They are forked from a server that has imported the package once, and has no threads.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([*PRELOADED])
    return ProcessPoolExecutor(
        workers or usable_cores(),
        mp_context=context,
        initializer=torch.set_num_threads,
        initargs=(1,),
    )


def run_in_order(
    task: Callable[[Any], Any], jobs: Iterable[Any], *, executor: Executor | None
) -> Iterator[Any]:
    """Yield the result of every job in the order of the jobs."""
    return (executor.map if executor else map)(task, jobs)


def run_as_completed(
    task: Callable[..., Any],
    jobs: Sequence[tuple[Any, ...]],
    *,
    executor: Executor | None,
    desc: str,
) -> Iterator[tuple[int, Any]]:
    """Yield the number and the result of every job, as soon as it is there."""
    with tqdm(total=len(jobs), desc=desc, disable=None) as bar:
        if executor is None:
            found = ((number, task(*job)) for number, job in enumerate(jobs))
        else:
            futures = {executor.submit(task, *job): number for number, job in enumerate(jobs)}
            found = ((futures[future], future.result()) for future in as_completed(futures))
        for number, result in found:
            bar.update()
            yield number, result
