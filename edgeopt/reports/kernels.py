"""Kernels of notebooks: this very interpreter, forked from a server that has imported all."""

import multiprocessing
import os
import tempfile
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from threading import RLock
from typing import Any

import matplotlib
import pandas as pd
import zmq
from jupyter_client.kernelspec import KernelSpecManager
from jupyter_client.manager import AsyncKernelManager
from jupyter_client.provisioning import LocalProvisioner
from tqdm import tqdm
from traitlets import default

from edgeopt.system import end_with_parent, fork_server, share_server

INLINE = "module://matplotlib_inline.backend_inline"


class ThisPythonKernel(AsyncKernelManager):
    """Starts ``python3`` with this very interpreter, whatever kernels are registered elsewhere.

    A kernel has a folder of its own for temporary files, so that one that is killed leaves none.
    """

    async def start_kernel(self, **options: Any) -> None:
        """Start the kernel with its own ``TMPDIR``."""
        self._scratch = tempfile.TemporaryDirectory(prefix="edgeopt-")
        self.provisioner = Forked(kernel_spec=self.kernel_spec, parent=self)
        await super().start_kernel(env={**os.environ, "TMPDIR": self._scratch.name}, **options)

    async def cleanup_resources(self, restart: bool = False) -> None:
        """Remove the ended kernel's temporary files too; safe to call twice."""
        await super().cleanup_resources(restart=restart)
        self._scratch.cleanup()

    @default("kernel_spec_manager")
    def _only_the_native_kernel(self) -> KernelSpecManager:
        return KernelSpecManager(parent=self, kernel_dirs=[])

    @default("transport_encryption")
    def _encrypted_where_possible(self) -> str:
        return "auto" if zmq.has("curve") else "disabled"


class Forked(LocalProvisioner):
    """Forks a kernel where others start an interpreter, which saves each chapter its imports.

    Jupyter knows it as ``edgeopt-forked``.
    """

    async def launch_kernel(self, cmd: list[str], **options: Any) -> dict[str, Any]:
        """Fork the kernel, with the arguments that ``cmd`` ends in."""
        fork_server()
        arguments = cmd[cmd.index("-f") :]
        self.cwd = options.get("cwd") or Path.cwd()
        self.process = KernelProcess(arguments, env=options["env"], cwd=self.cwd)
        self.process.start()
        self.pid = self.pgid = self.process.pid
        return self.connection_info


def end_kernels() -> None:
    """End the kernels that an interrupt, at an unlucky moment, has left without a manager.

    This process would wait for them at its end.
    """
    for child in multiprocessing.active_children():
        if isinstance(child, KernelProcess):
            child.kill()


class KernelProcess(ForkServerProcess):
    """A kernel in a session of its own, with what a provisioner asks of ``subprocess.Popen``."""

    stdin = stdout = stderr = None

    def __init__(self, arguments: list[str], *, env: dict[str, str], cwd: str | Path) -> None:
        super().__init__()
        self._begin = arguments, env, cwd

    def run(self) -> None:
        """Be a kernel until it is shut down, or the process that asked for it has ended."""
        from ipykernel.kernelapp import IPKernelApp

        arguments, env, cwd = self._begin
        os.setsid()
        os.chdir(cwd)
        os.environ.clear()
        os.environ.update(env)
        tempfile.tempdir = None  # that of the server
        # What these read when they are imported, which the server does as if in a terminal.
        pd.set_option("display.max_columns", 20)
        matplotlib.rcParams["backend"] = env.get("MPLBACKEND", INLINE)
        tqdm.set_lock(
            RLock()
        )  # of threads: the semaphore of processes would outlive a killed kernel
        share_server()
        end_with_parent()
        IPKernelApp.launch_instance(arguments, parent_handle=os.getppid())

    def poll(self) -> int | None:
        """Give the exit code; None while it runs."""
        return self.exitcode

    def wait(self) -> int | None:
        """Wait for the end."""
        self.join()
        return self.exitcode

    def send_signal(self, number: int) -> None:
        """Send a signal."""
        os.kill(self.pid, number)
