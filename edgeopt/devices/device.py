"""What a device is, what its name may be, and this machine as one."""

import os
import subprocess
import sys
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any
from urllib.parse import urlsplit

from edgeopt.agent.plan import Plan
from edgeopt.system import host_facts

HOST = "host"
ALLOWED = "allowed: host, ssh://[user@]name[:port]"
WHEELS = ("fetch", "push")  # who fetches what the device lacks: it, or this machine


class DeviceError(RuntimeError):
    """A device cannot be reached, or cannot measure."""


class DeviceLost(DeviceError):  # noqa: N818 - the measurement goes on after it
    """The connection or the agent ended before the measurement did."""


class Device(ABC):
    """Where artifacts are measured.

    Attributes
    ----------
    name : str
        As parameter files and tables say it.
    """

    name: str

    @abstractmethod
    def facts(self, packages: Sequence[str] = ()) -> dict[str, Any]:
        """Describe the device as :func:`edgeopt.system.host_facts` does this machine.

        With the versions of ``packages`` where the device's own Python has them all.
        """

    @abstractmethod
    def run(self, plan: Plan, *, on_line: Callable[[str], None]) -> None:
        """Run the agent on a bundle, and hand over each line that it writes, as it comes.

        Raises ``DeviceLost`` when it ended too early, ``DeviceError`` for what no further try
        mends.
        """

    @abstractmethod
    def clean(self, plan: Plan) -> None:
        """Remove what was put there for a plan, if anything was."""


class Host(Device):
    """The machine that this runs on: the agent in a process of its own."""

    name = HOST

    def facts(self, packages: Sequence[str] = ()) -> dict[str, Any]:
        """Describe this machine; kept results tell the versions of its packages themselves."""
        return host_facts()

    def run(self, plan: Plan, *, on_line: Callable[[str], None]) -> None:
        """Run the agent with this Python, which finds what this process finds."""
        command = [sys.executable, "-m", "edgeopt.agent", "run", str(plan.folder)]
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        with subprocess.Popen(
            [*command, "--show", "records"], env=environment, text=True, **pipes
        ) as agent:
            try:
                for line in agent.stdout:
                    on_line(line)
                said = agent.stderr.read()
            finally:
                agent.stdin.close()  # which ends it
        check_ending(agent.returncode, said, device=self.name)

    def clean(self, plan: Plan) -> None:
        """Leave the bundle to whoever made it."""


def check_ending(code: int | None, said: str, *, device: str, signal: str = "") -> None:
    """Raise unless the agent ended well: ``DeviceError`` for what it can tell, else lost."""
    ending = f"killed by SIG{signal}" if signal else f"exit code {code}"
    last = said.strip().rpartition("\n")[2] or ending
    if code == 2:
        raise DeviceError(f"{device}: {last}")
    if code != 0:
        raise DeviceLost(f"{device}: the agent ended: {last}")


def address_of(name: str) -> dict[str, Any]:
    """Host, port and user of ``ssh://[user@]name[:port]``; what is left out, SSH decides.

    Raises ``ValueError`` for anything more: a password does not belong in a parameter file.
    """
    parts = urlsplit(name)
    if parts.password is not None:
        raise ValueError(f"device ssh://...@{parts.hostname} holds a password; {ALLOWED}, by a key")
    try:
        given = {"host": parts.hostname, "port": parts.port, "username": parts.username}
    except ValueError as error:
        raise ValueError(f"device is {name!r}: {error}; {ALLOWED}") from None
    extra = parts.path.strip("/") or parts.query or parts.fragment
    if parts.scheme != "ssh" or not parts.hostname or extra:
        raise ValueError(f"unknown device {name!r}; {ALLOWED}")
    return {key: value for key, value in given.items() if value}


def check_device(name: str) -> str:
    """Return a device's name; ``ValueError`` unless it is ``host`` or an address."""
    if name != HOST:
        address_of(name)
    return name
