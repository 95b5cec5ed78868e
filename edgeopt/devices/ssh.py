"""A device that is reached by SSH: the way there, the way back, and what it leaves behind."""

import asyncio
import json
import shlex
import socket
import threading
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from concurrent.futures import wait
from contextlib import asynccontextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import asyncssh

from edgeopt.agent.plan import FILES, PLAN, Plan
from edgeopt.devices.archive import write_archive
from edgeopt.devices.device import Device, DeviceError, DeviceLost, address_of, check_ending
from edgeopt.devices.environment import CACHE, Remote, files_there, installed, python_for
from edgeopt.system import file_sha256, host

CONNECT_SECONDS = 15
SSH_PORT = 22
ALIVE = {"keepalive_interval": 5, "keepalive_count_max": 3}  # seconds, and answers that may miss
TELL_FACTS = "\nimport json\nprint()\nprint(json.dumps(host_facts()))\n"
# Names of the files in a folder that are what their name says, told by the device.
WHOLE_FILES = """
import hashlib, json, os, sys
folder, names = sys.argv[1], json.load(sys.stdin)
os.makedirs(folder, mode=0o700, exist_ok=True)
def whole(name):
    try:
        with open(os.path.join(folder, name), "rb") as file:
            return hashlib.sha256(file.read()).hexdigest() == names[name]
    except OSError:
        return False
print(json.dumps([name for name in names if whole(name)]))
"""


class SshDevice(Device):
    """A computer that is reached by SSH, as ``ssh://[user@]name[:port]``.

    Keys, agent, jump hosts and all else are those of ``~/.ssh/config``; host keys are checked
    against the known hosts. A measurement lies in ``~/.cache/edgeopt`` there and is removed when it
    is done, but for the virtual environment, which the next one uses again.

    Parameters
    ----------
    name : str
        The address.
    python : str
        Python on the device.
    wheels : str
        ``fetch`` lets the device's pip fetch the runtimes that it lacks; ``push`` fetches them
        here, for its platform and Python, and installs them there without a network.
    """

    def __init__(self, name: str, *, python: str = "python3", wheels: str = "fetch") -> None:
        self.name, self._python, self._wheels = name, python, wheels
        self._address = address_of(name)
        self._reached = False

    def run(self, plan: Plan, *, on_line: Callable[[str], None]) -> None:
        """Bring what is missing there, and run the agent until it ends or the connection does."""
        _wait_for(self._run(plan, on_line))

    def facts(self, packages: Sequence[str] = ()) -> dict[str, Any]:
        """Ask the device what it is, by the code that asks this machine."""
        return _wait_for(self._facts(packages))

    async def _facts(self, packages: Sequence[str]) -> dict[str, Any]:
        source = Path(host.__file__).read_text(encoding="utf-8")
        async with self._connected() as remote:
            told = await remote.ask([remote.python, "-"], input=source + TELL_FACTS)
            found = await installed(remote, packages) if packages else {}
        # Where the own Python lacks one, the agent has an environment, with versions by its name.
        return told | ({"packages": found} if found and {*found} >= {*packages} else {})

    def clean(self, plan: Plan) -> None:
        """Remove the bundle and its results."""
        if self._reached:
            _wait_for(self._clean(plan))

    async def _run(self, plan: Plan, on_line: Callable[[str], None]) -> None:
        async with self._connected() as remote:
            python = await python_for(remote, plan.values["packages"], wheels=self._wheels)
            folder = _folder(remote, plan)
            agent = await self._push(remote, plan, folder)
            # Some runtimes write into the user's home, which is to stay as it was.
            places = [f"HOME={folder}/home", f"PYTHONUSERBASE={remote.packages}"]
            command = ["env", *places, python, agent, "run", folder, "--show", "records"]
            async with remote.connection.create_process(f"exec {shlex.join(command)}") as process:
                async for line in process.stdout:
                    on_line(line)
                said = await process.stderr.read()
                await process.wait_closed()
            if process.exit_status is None and process.exit_signal is None:
                raise DeviceLost(f"{self.name}: the connection was lost")
            signal = (process.exit_signal or [""])[0]
            check_ending(process.exit_status, said, device=self.name, signal=signal)

    async def _clean(self, plan: Plan) -> None:
        async with self._connected() as remote:
            await remote.run(["rm", "-rf", "--", _folder(remote, plan)])
            parents = [f"{remote.home}/{CACHE}", f"{remote.home}/{Path(CACHE).parent}"]
            await remote.connection.run(shlex.join(["rmdir", *parents]))  # those that are empty

    async def _push(self, remote: Remote, plan: Plan, folder: str) -> str:
        """Copy what the device does not have yet; return where the agent lies."""
        with TemporaryDirectory(prefix="edgeopt-") as scratch:
            archive = write_archive(Path(scratch, "agent.pyz"))
            agent = f"agent-{file_sha256(archive)[:16]}.pyz"
            sources = {f"{FILES}/{path.name}": path for path in plan.files()}
            sources |= {PLAN: plan.folder / PLAN, agent: archive}
            digests = {name: file_sha256(path) for name, path in sources.items()}
            command = [remote.python, "-c", WHOLE_FILES, folder]
            whole = await remote.ask(command, input=json.dumps(digests))
            missing = {name: path for name, path in sources.items() if name not in whole}
            remote.require_free(sum(path.stat().st_size for path in missing.values()))
            await _copy(remote, missing, folder)
        return f"{folder}/{agent}"

    @asynccontextmanager
    async def _connected(self) -> AsyncIterator[Remote]:
        try:
            connection = await asyncssh.connect(
                **self._address, **ALIVE, connect_timeout=CONNECT_SECONDS, encoding="utf-8"
            )
        except (OSError, asyncssh.Error) as error:
            reason = f"{self.name}: {await _why(error, **self._address)}"
            raise (DeviceLost if self._reached else DeviceError)(reason) from error
        self._reached = True
        try:
            async with connection:
                yield await Remote.of(connection, name=self.name, python=self._python)
        except (ConnectionError, asyncssh.DisconnectError, asyncssh.ChannelOpenError) as error:
            raise DeviceLost(f"{self.name}: the connection was lost: {error}") from error


def _folder(remote: Remote, plan: Plan) -> str:
    return f"{remote.home}/{CACHE}/{plan.digest[:16]}"


async def _copy(remote: Remote, files: dict[str, Path], folder: str) -> None:
    """Copy files whole or not at all."""
    async with files_there(remote, folder) as sftp:
        await sftp.makedirs(f"{folder}/{FILES}", exist_ok=True)
        for name, path in files.items():
            part = f"{folder}/{name}.part"
            await sftp.put(str(path), part)
            await sftp.posix_rename(part, f"{folder}/{name}")


async def _why(error: Exception, **address: Any) -> str:
    """Say why there is no connection, and what makes one."""
    host, port = address["host"], address.get("port") or SSH_PORT
    if isinstance(error, asyncssh.HostKeyNotVerifiable):
        return await _host_key_words(host, port)
    if isinstance(error, asyncssh.PermissionDenied):
        return f"no key was accepted; ssh-copy-id -p {port} {address.get('username', '')}@{host}"
    if isinstance(error, socket.gaierror):
        return f"no such host: {host}"
    if isinstance(error, ConnectionRefusedError):
        return f"connection refused: nothing listens on port {port} of {host}"
    if isinstance(error, TimeoutError | asyncssh.TimeoutError):
        return f"no answer within {CONNECT_SECONDS} s"
    return f"no connection: {error}"


async def _host_key_words(host: str, port: int) -> str:
    """Tell an unknown host key from one that has changed, and say what to do after a look at it."""
    key = await asyncssh.get_server_host_key(host, port)
    fingerprint = key.get_fingerprint() if key else "not told"
    add = f"ssh-keyscan -p {port} {host} >> ~/.ssh/known_hosts"
    if not _known(host, port):
        return (
            f"its host key is not known; compare the fingerprint {fingerprint} with the one that "
            f"the device itself shows, then add it: {add}"
        )
    entry = host if port == SSH_PORT else f"'[{host}]:{port}'"
    return (
        f"its host key has changed to {fingerprint}: another machine may answer in its place; "
        f"only when you know why: ssh-keygen -R {entry} && {add}"
    )


def _known(host: str, port: int) -> bool:
    file = Path.home() / ".ssh" / "known_hosts"
    if not file.is_file():
        return False
    keys = asyncssh.match_known_hosts(str(file), host, "", None if port == SSH_PORT else port)
    return any(keys)


async def _all_ended() -> None:
    """Let what was cancelled close its connection: the agent at its other end ends by that."""
    own = asyncio.current_task()
    await asyncio.gather(*(asyncio.all_tasks() - {own}), return_exceptions=True)


def _wait_for(work: Coroutine[Any, Any, Any]) -> Any:
    """Run a coroutine in a loop of its own: a notebook's thread has one that runs already."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, daemon=True)
    thread.start()
    future = asyncio.run_coroutine_threadsafe(work, loop)
    try:
        return future.result()
    except BaseException:
        future.cancel()
        wait([asyncio.run_coroutine_threadsafe(_all_ended(), loop)], timeout=CONNECT_SECONDS)
        raise
    finally:
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()
