"""A device by its name, and the loop that measures there until nothing is missing."""

import logging
import os
import subprocess
import sys
import time
from abc import ABC, abstractmethod
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from tqdm import tqdm

from edgeopt.agent.journal import key_of, parsed
from edgeopt.agent.plan import Plan
from edgeopt.devices.results import DeviceResults, keep_records, kept_records, results_of
from edgeopt.system import host_facts

logger = logging.getLogger(__name__)

HOST = "host"
ALLOWED = "allowed: host, ssh://[user@]name[:port]"
WHEELS = ("fetch", "push")  # who fetches what the device lacks: it, or this machine
ATTEMPTS = 5  # in a row that bring nothing new

DONE = ("done", "", 0)  # key of the record that comes last
Records = dict[tuple[str, str, int], dict[str, Any]]


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
    def facts(self) -> dict[str, Any]:
        """Describe the device as :func:`edgeopt.system.host_facts` does this machine."""

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

    def facts(self) -> dict[str, Any]:
        """Describe this machine."""
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


def check_ending(code: int | None, said: str, *, device: str) -> None:
    """Raise unless the agent ended well: ``DeviceError`` for what it can tell, else lost."""
    last = said.strip().rpartition("\n")[2] or f"exit code {code}"
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


def device_named(name: str, **options: str) -> Device:
    """Make a device of its name; ``options`` are those of :class:`edgeopt.devices.ssh.SshDevice`.

    Raises ``ValueError`` unless it is ``host`` or ``ssh://[user@]name[:port]``.
    """
    if check_device(name) == HOST:
        return Host()
    from edgeopt.devices.ssh import SshDevice

    return SshDevice(name, **options)


def measure_on(device: Device, plan: Plan, *, kept: Path | None = None) -> DeviceResults:
    """Measure a bundle on a device; lost agents and connections are started again.

    Nothing that came is measured twice. What the device was given is removed; where the measurement
    ended in its middle, it stays, and the same measurement goes on from there. With ``kept``, a
    file, the records of this very plan, device and code that it holds are taken as they are;
    others are measured, and written there. Raises ``DeviceError`` after five starts in a row that
    brought nothing.
    """
    if kept and (found := kept_records(kept, plan=plan, facts=device.facts())):
        logger.info("%s was measured before: %s", device.name, kept)
        return results_of(found, plan=plan, device=device.name)
    records = _measured(device, plan)
    if kept:
        keep_records(records, plan=plan, to=kept)
    return results_of(records, plan=plan, device=device.name)


def _measured(device: Device, plan: Plan) -> list[dict[str, Any]]:
    records: Records = {}
    with tqdm(total=plan.values["rounds"], desc=f"rounds on {device.name}", disable=None) as bar:
        try:
            _until_done(device, plan, records, bar)
        finally:
            if not records or DONE in records:
                _clean(device, plan)
    return [*records.values()]


def _clean(device: Device, plan: Plan) -> None:
    """Remove what a device was given; where it is out of reach, say what is left there."""
    try:
        device.clean(plan)
    except DeviceError as error:
        logger.warning("%s; what was put there stays until the next measurement", error)


def _until_done(device: Device, plan: Plan, records: Records, bar: tqdm) -> None:
    def take(line: str) -> None:
        record = parsed(line)
        if record and key_of(record) not in records:
            records[key_of(record)] = record
            bar.update(record["kind"] == "lap")

    idle = 0
    while DONE not in records:
        before = len(records)
        try:
            device.run(plan, on_line=take)
            if DONE not in records:
                raise DeviceLost(f"{device.name}: the agent ended before the measurement did")
        except DeviceLost as error:
            logger.warning("%s; trying again", error)
            idle = 0 if len(records) > before else idle + 1
            if idle >= ATTEMPTS:
                raise DeviceError(f"{error}, {ATTEMPTS} times in a row") from error
            time.sleep(2**idle - 1)
