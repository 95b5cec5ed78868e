"""A Dask cluster as one more executor. Source: https://distributed.dask.org."""

import atexit
import importlib.util
import logging
import sysconfig
import threading
import traceback
from collections.abc import Callable
from concurrent.futures import BrokenExecutor, Executor, Future
from concurrent.futures import wait as wait_for_all
from contextlib import ExitStack, suppress
from functools import partial
from pathlib import Path
from typing import Any
from weakref import WeakSet, ref

import dask
from distributed import Client, KilledWorker, LocalCluster, SpecCluster, SSHCluster
from distributed import Future as DaskFuture
from distributed.client import FutureCancelledError
from distributed.scheduler import NoWorkerError
from tqdm import tqdm

from edgeopt.system.host import usable_cores
from edgeopt.system.parallel.delivery import Delivery, own_facts, require_alike, run_packed
from edgeopt.system.parallel.fork_server import fork_server
from edgeopt.system.parallel.scheduler import SchedulerError, ssh_hosts

logger = logging.getLogger(__name__)

SECONDS = 20  # for a scheduler to answer, and for its first worker to come
START_SECONDS = 300  # for a scheduler and its workers to start or to end
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
        self._client, self._opened, self._address = client, opened, address
        self._delivery = Delivery(client)
        self._found: WeakSet[Future] = WeakSet()
        atexit.register(self.shutdown)

    def submit(self, task: Callable[..., Any], /, *args: Any, **options: Any) -> Future:
        """Hand over a call, as the standard library's executors do."""
        packed = self._delivery.packed((task, args, options))
        call = self._client.submit(run_packed, packed, own_facts(), pure=False)
        found: Future = Future()
        found.add_done_callback(partial(_cancel_too, ref(call)))
        self._client.loop.add_callback(self._settle, found, call)
        self._found.add(found)
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
        for found in [*self._found] if cancel_futures else ():
            found.cancel()
        if wait:
            wait_for_all(self._found)
        with suppress(OSError, RuntimeError):  # the scheduler is gone
            self._delivery.take_back()
        self._opened.close()

    async def _settle(self, found: Future, call: DaskFuture) -> None:
        """Hand on a call's outcome, and keep nothing of it on the workers.

        Not by ``Client.get_executor``: its futures stay pending for good when a result is lost with
        its worker and the call's next workers die too, and a held result is computed again when the
        worker that computed it dies, though it is here already.
        """
        try:
            result = await self._outcome(call)
        except Exception as error:
            if found.set_running_or_notify_cancel():
                found.set_exception(error)
        else:
            if found.set_running_or_notify_cancel():
                found.set_result(result)

    async def _outcome(self, call: DaskFuture) -> Any:
        """Await a call; its failure is told in the terms of the standard library."""
        kept = "what was finished is kept: run again"
        try:
            return await self._client.gather(call, asynchronous=True)
        except (FutureCancelledError, OSError) as error:
            if isinstance(error, OSError) and self._client.status == "running":
                raise  # the call's own
            gone = f"the scheduler {self._address} is gone; {kept}"
            raise SchedulerError(gone) from error
        except NoWorkerError as error:
            gone = f"scheduler {self._address} has had no worker for {error.timeout:g} s; {kept}"
            raise SchedulerError(gone) from error
        except KilledWorker as error:
            died = f"{error.allowed_failures + 1} workers of {self._address} died of one call"
            raise BrokenExecutor(f"{died}: was their memory too small?") from error


def _cancel_too(call: ref[DaskFuture], found: Future) -> None:
    if found.cancelled() and (own := call()):
        own.cancel()


def connected(address: str) -> tuple[Client, ExitStack]:
    """Reach a scheduler, or start one, with workers like this process; and what ends it all."""
    with ExitStack() as opened:
        opened.enter_context(dask.config.set(SETTINGS))
        try:
            started = _within(START_SECONDS, partial(_started, address))
            if started:
                opened.callback(_close, started)
            client = Client(started or address, timeout=SECONDS, set_as_default=False)
            opened.callback(client.close)
            workers = _checked_workers(client, address)
        except SchedulerError:
            raise
        except Exception as error:  # of Dask, ssh, TLS and their files
            reason = f"{type(error).__name__}: {error}"
            _close_clients(error)
            raise SchedulerError(f"scheduler {address} cannot be used: {reason}") from error
        tqdm.write(f"scheduler {address}: {workers} worker(s), dashboard {client.dashboard_link}")
        return client, opened.pop_all()


def _close_clients(error: Exception) -> None:
    """Close the client that an error, as of TLS, has left open to the garbage collector.

    Its finalizer takes a lock: run as the next cluster starts, which holds it, both would wait for
    ever.
    """
    for frame, _ in traceback.walk_tb(error.__traceback__):
        if isinstance(left := frame.f_locals.get("self"), Client):
            left.close()


def _within(seconds: float, make: Callable[[], Any]) -> Any:
    """Return what is made, or raise ``TimeoutError``: Dask waits for ever for a host that hangs."""
    made: Future = Future()

    def run() -> None:
        try:
            made.set_result(make())
        except BaseException as error:  # raised where it is waited for
            made.set_exception(error)

    threading.Thread(target=run, daemon=True).start()
    try:
        return made.result(timeout=seconds)
    except TimeoutError as error:
        raise TimeoutError(f"nothing started within {seconds:g} s") from error


def _close(cluster: SpecCluster) -> None:
    """End what was started; workers that do not end by themselves end with their hosts' SSH."""
    try:
        cluster.close(START_SECONDS)
    except TimeoutError:
        logger.warning("%s did not end within %g s", cluster.name, START_SECONDS)


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
    one = {"nthreads": 1, "memory_limit": 0}  # as for processes here: the machine's
    if hosts := ssh_hosts(address):
        idle = {"idle_timeout": "1 hour"}  # left alone, it ends by itself
        return SSHCluster([hosts[0], *hosts], worker_options=one, scheduler_options=idle)
    if address == "local":
        fork_server()
        own = {"n_workers": usable_cores(), "threads_per_worker": 1, "memory_limit": 0}
        return LocalCluster(**own, dashboard_address="127.0.0.1:0", silence_logs=logging.ERROR)
    return None
