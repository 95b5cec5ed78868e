"""What a device that is reached by SSH brings, and the Python that runs the agent there."""

import asyncio
import hashlib
import json
import logging
import shlex
import subprocess
import sys
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import asyncssh

from edgeopt.devices.device import DeviceError, DeviceLost

logger = logging.getLogger(__name__)

CACHE = ".cache/edgeopt"
OLDEST = (3, 9)
PIP_OPTIONS = (
    *("--quiet", "--only-binary=:all:"),
    *("--no-cache-dir", "--disable-pip-version-check"),  # nothing more is left in the user's cache
)
NO_WHEEL = "No matching distribution found"  # in pip's words
MARGIN_BYTES = 2**20
OLDEST_GLIBC = 17
# For Python 3.2 and newer, so that one that is too old can be told.
PROBE = """
import json, os, platform, shutil, site, sys
home = os.path.expanduser("~")
print(json.dumps({"home": home, "executable": sys.executable, "version": list(sys.version_info[:3]),
    "machine": platform.machine(), "libc": platform.libc_ver()[1],
    "packages": site.getuserbase(), "free": shutil.disk_usage(home).free}))
"""
INSTALLED = """
import json, sys
from importlib import metadata
found = {}
for name in sys.argv[1:]:
    try:
        found[name] = metadata.version(name)
    except metadata.PackageNotFoundError:
        pass
print(json.dumps(found))
"""


@dataclass(frozen=True)
class Remote:
    """An open connection, and what the device at its other end told of itself.

    ``packages`` is where its Python looks for those that a user has installed.
    """

    connection: asyncssh.SSHClientConnection
    name: str
    python: str
    home: str
    version: tuple[int, ...]
    machine: str
    libc: str
    packages: str
    free: int

    @classmethod
    async def of(
        cls, connection: asyncssh.SSHClientConnection, *, name: str, python: str
    ) -> "Remote":
        """Ask a device what it is; ``DeviceError`` without a Python that is new enough."""
        # The device's own shell knows where its home folder is.
        program = f"~/{shlex.quote(python[2:])}" if python.startswith("~/") else shlex.quote(python)
        asked = await ended(connection, f"{program} -c {shlex.quote(PROBE)}", name=name)
        if asked.exit_status == 127:
            raise DeviceError(f"{name}: there is no {python}; install Python 3.9 or newer")
        if asked.exit_status != 0:
            raise DeviceError(f"{name}: {python} does not run: {asked.stderr.strip()[-200:]}")
        told = _last_line(asked.stdout, name=name)
        if tuple(told["version"]) < OLDEST:
            found = ".".join(map(str, told["version"]))
            raise DeviceError(f"{name}: {python} is Python {found}; allowed: 3.9 or newer")
        python = told.pop("executable")
        return cls(connection, name, python, **{**told, "version": tuple(told["version"])})

    async def ask(self, command: Sequence[str], *, input: str = "") -> Any:
        """Run a command and return the JSON that its last line holds; ``DeviceError`` as `run`."""
        return _last_line(await self.run(command, input=input), name=self.name)

    async def run(self, command: Sequence[str], *, input: str = "") -> str:
        """Run a command and return what it wrote; ``DeviceError`` when it fails."""
        done = await ended(self.connection, shlex.join(command), name=self.name, input=input)
        if done.exit_status != 0:
            said = " ".join((done.stderr or done.stdout or "").split())[-300:]
            raise DeviceError(f"{self.name}: {command[0]} failed: {said or done.exit_status}")
        return done.stdout

    def require_free(self, size: int) -> None:
        """Raise ``DeviceError`` unless the device's disk has this much room."""
        if self.free < size + MARGIN_BYTES:
            raise DeviceError(
                f"{self.name}: {size / 2**20:.1f} MiB are needed below {self.home}, "
                f"{self.free / 2**20:.1f} MiB are free"
            )


def _last_line(said: str, *, name: str) -> Any:
    """Read JSON from the last line: the shell's own files may have printed before."""
    last = said.strip().rpartition("\n")[2]
    try:
        return json.loads(last)
    except ValueError:
        raise DeviceError(f"{name}: it answered {last[:100]!r}, not what was asked") from None


async def ended(
    connection: asyncssh.SSHClientConnection, command: str, *, name: str, input: str = ""
) -> asyncssh.SSHCompletedProcess:
    """Run a command to its end, good or bad; ``DeviceLost`` when the connection ends before."""
    done = await connection.run(command, input=input)
    if done.exit_status is None and done.exit_signal is None:
        raise DeviceLost(f"{name}: the connection was lost")
    return done


async def python_for(remote: Remote, packages: Sequence[str], *, wheels: str) -> str:
    """Return the path of a Python with these packages: the device's own where it has them all.

    Else that of a virtual environment in the user's cache there, made once, with the versions that
    are installed here or, where they have no wheel for it, the newest that has. A package without
    one is left out, which the agent says of its runtime; ``DeviceError`` when NumPy is.
    """
    if set(await installed(remote, packages)) >= set(packages):
        return remote.python
    # What is behind a + tells builds of one version apart, which package indexes do not hold.
    wanted = {name: metadata.version(name).partition("+")[0] for name in packages}
    named = hashlib.sha256(repr((wanted, remote.version)).encode()).hexdigest()[:16]
    folder = f"{remote.home}/{CACHE}/python-{named}"
    python, ready = f"{folder}/bin/python", f"{folder}/ready"
    asked = await ended(remote.connection, shlex.join(["test", "-e", ready]), name=remote.name)
    if asked.exit_status == 0:
        return python
    await remote.run([remote.python, "-m", "venv", "--clear", folder])
    if await _install(remote, python, wanted, source=wheels):
        await remote.run(["touch", ready])
    return python


async def installed(remote: Remote, packages: Sequence[str]) -> dict[str, str]:
    """Versions of those of the packages that the device's own Python has."""
    return await remote.ask([remote.python, "-c", INSTALLED, *packages])


async def _install(remote: Remote, python: str, wanted: Mapping[str, str], *, source: str) -> bool:
    """Install what there are wheels of; whether the next time would not find more."""
    complete = True
    pip = [python, "-m", "pip", "install", *PIP_OPTIONS]
    for name, version in wanted.items():
        try:
            await _install_one(remote, pip, f"{name}=={version}", source=source)
        except DeviceError:
            logger.info("%s: no %s %s there; trying another", remote.name, name, version)
            try:
                await _install_one(remote, pip, name, source=source)
            except DeviceError as error:
                if name == "numpy":
                    hint = "device_wheels: push fetches what is missing here"
                    raise DeviceError(f"{error}; {hint}") from error
                complete &= NO_WHEEL in str(error)
                logger.warning("%s: %s is unavailable there: %s", remote.name, name, error)
    return complete


async def _install_one(
    remote: Remote, pip: Sequence[str], requirement: str, *, source: str
) -> None:
    if source == "push":
        await _push_wheels(remote, pip, requirement)
    else:
        await remote.run([*pip, requirement])


async def _push_wheels(remote: Remote, pip: Sequence[str], requirement: str) -> None:
    """Fetch a requirement's wheels here and install them there."""
    with TemporaryDirectory(prefix="edgeopt-") as scratch:
        # In a thread: the connection is kept alive meanwhile.
        await asyncio.to_thread(_download, requirement, Path(scratch), remote)
        files = sorted(Path(scratch).glob("*.whl"))
        remote.require_free(4 * sum(file.stat().st_size for file in files))
        folder = f"{remote.home}/{CACHE}/wheels"
        async with files_there(remote, folder) as sftp:
            await sftp.makedirs(folder, exist_ok=True)
            await sftp.put([str(file) for file in files], folder)
        try:
            await remote.run([*pip, "--no-index", "--find-links", folder, requirement])
        finally:
            await remote.run(["rm", "-rf", "--", folder])


@asynccontextmanager
async def files_there(remote: Remote, folder: str) -> AsyncIterator[asyncssh.SFTPClient]:
    """Open SFTP to write in a folder; ``DeviceError`` where that fails, or there is none."""
    try:
        client = await remote.connection.start_sftp_client()
    except asyncssh.ChannelOpenError as error:
        raise DeviceError(f"{remote.name}: its SSH server has no SFTP: {error}") from error
    try:
        async with client as sftp:
            yield sftp
    except asyncssh.SFTPError as error:
        if isinstance(error, asyncssh.SFTPConnectionLost | asyncssh.SFTPNoConnection):
            raise DeviceLost(f"{remote.name}: the connection was lost: {error}") from error
        raise DeviceError(f"{remote.name}: cannot write in {folder}: {error}") from error


def _download(requirement: str, folder: Path, remote: Remote) -> None:
    """Let this machine's pip fetch wheels for the device's platform and Python."""
    version = ".".join(map(str, remote.version[:2]))
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--only-binary=:all:"]
    command += ["--dest", str(folder), "--python-version", version, "--implementation", "cp"]
    command += [word for tag in platform_tags(remote.machine, remote.libc) for word in tag]
    done = subprocess.run([*command, requirement], capture_output=True, text=True)
    if done.returncode:
        last = done.stderr.strip().rpartition("\n")[2]
        raise DeviceError(f"there is no wheel of {requirement} for {remote.machine}: {last}")


def platform_tags(machine: str, libc: str) -> Iterable[tuple[str, str]]:
    """``--platform`` options of pip for a machine with this glibc, the newest first.

    Source: https://packaging.python.org/en/latest/specifications/platform-compatibility-tags/
    """
    newest = int(libc.partition(".")[2] or OLDEST_GLIBC)
    for minor in range(newest, OLDEST_GLIBC - 1, -1):
        yield "--platform", f"manylinux_2_{minor}_{machine}"
    yield "--platform", f"manylinux2014_{machine}"
