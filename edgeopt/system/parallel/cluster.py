"""A Dask cluster as one more executor. Source: https://distributed.dask.org."""

import atexit
import importlib.util
import logging
import sysconfig
from collections.abc import Callable
from concurrent.futures import BrokenExecutor, Executor, Future
from contextlib import ExitStack, suppress
from functools import partial
from pathlib import Path
from typing import Any

import dask
from distributed import Client, KilledWorker, LocalCluster, SpecCluster, SSHCluster
from distributed.scheduler import NoWorkerError
from tqdm import tqdm

from edgeopt.system.host import usable_cores
from edgeopt.system.parallel.delivery import Delivery, own_facts, require_alike, run_packed
from edgeopt.system.parallel.fork_server import fork_server
from edgeopt.system.parallel.scheduler import SchedulerError, ssh_hosts

SECONDS = 20  # for a scheduler to answer, and for its first worker to come
SETTINGS = {
    # A call holds one network; Dask warns of calls of more than 10 MB.
    "distributed.admin.large-graph-warning-threshold": "1 GiB",
    # Dask gives up for good a worker that has died and is not back after 15 s, which a busy machine
    # needs to start one; where none comes back, calls would wait for ever.
    "distributed.deploy.lost-worker-timeout": "1 hour",
    "distributed.scheduler.no-workers-timeout": "5 minutes",
    # Looked at fifty, ten and two times a second, each time a computing worker holds its breath.
    "distributed.admin.tick.interval": "1s",
    "distributed.worker.memory.monitor-interval": "2s",
    "distributed.admin.system-monitor.interval": "5s",
    # Workers of this machine are forked with the package imported, as its other processes are.
    "distributed.worker.multiprocessing-method": "forkserver",
}


class Cluster(Executor):
    """Calls to a scheduler's workers; their files and large arrays go to each worker once.

    A call whose worker dies runs again on another; one that ended several raises
    ``BrokenExecutor``. When the scheduler is gone every call raises ``SchedulerError``.
    """

    def __init__(self, client: Client, opened: ExitStack, *, address: str) -> None:
        self._opened, self._address = opened, address
        self._calls = client.get_executor(pure=False)
        self._delivery = Delivery(client)
        atexit.register(self.shutdown)

    def submit(self, task: Callable[..., Any], /, *args: Any, **options: Any) -> Future:
        """Hand over a call, as the standard library's executors do."""
        packed = self._delivery.packed((task, args, options))
        given = self._calls.submit(run_packed, packed, own_facts())
        found: Future = Future()
        found.add_done_callback(lambda own: own.cancelled() and given.cancel())
        given.add_done_callback(partial(self._hand_on, found))
        return found

    def alone(self, task: Callable[..., Any], /, *args: Any) -> Future:
        """Try a call again that was under way when workers died."""
        return self.submit(task, *args)

    def bring(self, module: str) -> None:
        """Let workers import a module or package of the user's own, unless pip installed it."""
        source = Path(importlib.util.find_spec(module.partition(".")[0]).origin)
        if not source.is_relative_to(sysconfig.get_path("purelib")):
            self._delivery.bring(source.parent if source.name == "__init__.py" else source)

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """Take back what was delivered, leave the scheduler, and end what was started here."""
        atexit.unregister(self.shutdown)
        self._calls.shutdown(wait and not cancel_futures)
        with suppress(OSError, RuntimeError):  # the scheduler is gone
            self._delivery.take_back()
        self._opened.close()

    def _hand_on(self, found: Future, given: Future) -> None:
        """Tell the outcome of a call in the terms of the standard library."""
        if not found.set_running_or_notify_cancel():
            return
        kept = "what was finished is kept: run again"
        if given.cancelled():
            found.set_exception(SchedulerError(f"the scheduler {self._address} is gone; {kept}"))
        elif isinstance(error := given.exception(), NoWorkerError):
            gone = f"scheduler {self._address} has had no worker for {error.timeout:g} s; {kept}"
            found.set_exception(SchedulerError(gone))
        elif isinstance(error, KilledWorker):
            died = f"{error.allowed_failures + 1} workers of {self._address} died of one call"
            found.set_exception(BrokenExecutor(f"{died}: was their memory too small?"))
        elif error:
            found.set_exception(error)
        else:
            found.set_result(given.result())


def connected(address: str) -> tuple[Client, ExitStack]:
    """Reach a scheduler, or start one, with workers like this process; and what ends it all."""
    with ExitStack() as opened:
        opened.enter_context(dask.config.set(SETTINGS))
        try:
            started = _started(address)
            if started:
                opened.callback(started.close)
            client = Client(started or address, timeout=SECONDS, set_as_default=False)
            opened.callback(client.close)
            workers = _checked_workers(client, address)
        except SchedulerError:
            raise
        except Exception as error:  # of Dask, ssh, TLS and their files
            reason = f"{type(error).__name__}: {error}"
            raise SchedulerError(f"scheduler {address} cannot be used: {reason}") from error
        tqdm.write(f"scheduler {address}: {workers} worker(s), dashboard {client.dashboard_link}")
        return client, opened.pop_all()


def _checked_workers(client: Client, address: str) -> int:
    """Count the workers; ``SchedulerError`` where there is none, or one is unlike this process."""
    try:
        client.wait_for_workers(1, timeout=SECONDS)
    except TimeoutError as error:
        raise SchedulerError(f"scheduler {address} has no worker after {SECONDS} s") from error
    found = client.run(own_facts)
    for worker, facts in found.items():
        require_alike(facts, own_facts(), worker=worker)
    return len(found)


def _started(address: str) -> SpecCluster | None:
    one = {"nthreads": 1}
    if hosts := ssh_hosts(address):
        idle = {"idle_timeout": "1 hour"}  # left alone, it ends by itself
        return SSHCluster([hosts[0], *hosts], worker_options=one, scheduler_options=idle)
    if address == "local":
        fork_server()
        own = {"n_workers": usable_cores(), "threads_per_worker": 1}
        return LocalCluster(**own, dashboard_address="127.0.0.1:0", silence_logs=logging.ERROR)
    return None
