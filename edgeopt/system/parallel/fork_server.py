"""A server that has imported the package once, from which kernels and all workers here come."""

import multiprocessing
import os
import signal
import sys
import threading
from multiprocessing import forkserver, resource_tracker
from multiprocessing.context import ForkServerContext

PRELOADED = (
    "ipykernel.kernelapp",
    "edgeopt.experiments.candidates.preparing",
    "edgeopt.experiments.trainings.networks",
    "edgeopt.plots.sweep",
    "edgeopt.runtimes.exporters",
    "edgeopt.study.study",
    "edgeopt.system.torchvision",
)
# Of the process that removes the semaphores of kernels that were ended: it need not tell of it.
QUIET = "ignore:resource_tracker:UserWarning"
INTERRUPT = {signal.SIGINT}


def fork_server() -> ForkServerContext:
    """Start the server, where it does not run, and give the context of its processes.

    It has no threads, and answers once it has imported the package, which nobody waits for here.
    An interrupt does not reach it, nor its workers: they end when who asked for them does.
    """
    if QUIET not in sys.warnoptions:
        sys.warnoptions.append(QUIET)
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([*PRELOADED])
    resource_tracker.ensure_running()  # which would unblock the signal
    before = signal.pthread_sigmask(signal.SIG_BLOCK, INTERRUPT)
    try:
        forkserver._forkserver.ensure_running()
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
    return context


def share_server() -> None:
    """Have this process, forked from a server, ask that one for its own processes.

    CPython would start another one: its ``ensure_running`` looks for a server that is a child.
    An interrupt reaches it again.
    """
    signal.pthread_sigmask(signal.SIG_UNBLOCK, INTERRUPT)
    forkserver._forkserver.ensure_running = resource_tracker.ensure_running


def end_with_parent() -> None:
    """End this process when the one that asked for it does.

    Killed, that one cannot say so; without this its processes and the server would stay for good.
    """
    asking = multiprocessing.parent_process()

    def end() -> None:
        asking.join()
        os._exit(1)

    threading.Thread(target=end, daemon=True).start()
