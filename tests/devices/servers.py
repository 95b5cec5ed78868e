"""SSH servers of the tests' own on loopback: OpenSSH's where it is installed, and asyncssh's."""

import asyncio
import contextlib
import getpass
import os
import shutil
import signal
import socket
import subprocess
import threading
import time
from abc import ABC, abstractmethod
from pathlib import Path

import asyncssh

SSHD = shutil.which("sshd") or "/usr/sbin/sshd"
OPTIONS = """
ListenAddress 127.0.0.1
Port {port}
HostKey {folder}/host_key
AuthorizedKeysFile {folder}/user_key.pub
PidFile {folder}/pid
StrictModes no
UsePAM no
PasswordAuthentication no
KbdInteractiveAuthentication no
PermitRootLogin yes
Subsystem sftp internal-sftp
SetEnv HOME={home}
"""


class Server(ABC):
    """A running server; ``home`` is the home folder on the device."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.home = folder, folder / "home"
        self.home.mkdir(parents=True)
        for name in ("host_key", "user_key"):
            key = asyncssh.generate_private_key("ssh-ed25519")
            key.write_private_key(folder / name)
            key.write_public_key(folder / f"{name}.pub")
            (folder / name).chmod(0o600)
        self.port = free_port()

    @property
    def name(self) -> str:
        """The device, as parameter files say it."""
        return f"ssh://{getpass.getuser()}@localhost:{self.port}"

    def accept(self, home: Path) -> None:
        """Let SSH of a home folder use the key that the server accepts."""
        ssh = home / ".ssh"
        ssh.mkdir(mode=0o700, exist_ok=True)
        (ssh / "config").write_text(f"Host localhost\n  IdentityFile {self.folder / 'user_key'}\n")
        (ssh / "known_hosts").touch()

    def trust(self, home: Path, *, key: str = "host_key") -> None:
        """Put a key among the known hosts of a home folder."""
        words = (self.folder / f"{key}.pub").read_text().split()[:2]
        with (home / ".ssh" / "known_hosts").open("a") as file:
            file.write(f"[localhost]:{self.port} {' '.join(words)}\n")

    @abstractmethod
    def cut(self) -> int:
        """Cut the connections that there are; how many."""

    @abstractmethod
    def running(self) -> contextlib.AbstractContextManager[None]:
        """Serve as long as the block lasts."""


class OpenSsh(Server):
    """OpenSSH's server, started with a configuration of its own."""

    @contextlib.contextmanager
    def running(self):
        config = self.folder / "sshd_config"
        config.write_text(OPTIONS.format(port=self.port, folder=self.folder, home=self.home))
        if os.geteuid() == 0:
            Path("/run/sshd").mkdir(exist_ok=True)  # where it drops its privileges
        command = [SSHD, "-D", "-e", "-f", str(config)]
        process = subprocess.Popen(command, stderr=subprocess.DEVNULL)
        try:
            _wait_for_port(self.port)
            yield
        finally:
            process.terminate()
            process.wait()

    def cut(self) -> int:
        parent = (self.folder / "pid").read_text().strip()
        found = subprocess.run(["pgrep", "-P", parent], capture_output=True, text=True)
        for word in found.stdout.split():
            with contextlib.suppress(ProcessLookupError):
                os.kill(int(word), signal.SIGKILL)
        return len(found.stdout.split())


class AsyncSsh(Server):
    """asyncssh's server, in a thread; each command runs in a shell."""

    @contextlib.contextmanager
    def running(self):
        self._loop, self._connections = asyncio.new_event_loop(), set()
        thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        thread.start()
        acceptor = self._do(self._listen())
        try:
            yield
        finally:
            acceptor.close()
            self._do(acceptor.wait_closed())
            self.cut()
            self._loop.call_soon_threadsafe(self._loop.stop)
            thread.join()
            self._loop.close()

    def cut(self) -> int:
        connections, self._connections = self._connections, set()
        for connection in connections:
            self._loop.call_soon_threadsafe(connection.abort)
        return len(connections)

    def _do(self, work):
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(timeout=30)

    async def _listen(self):
        return await asyncssh.listen(
            "127.0.0.1",
            self.port,
            server_host_keys=[str(self.folder / "host_key")],
            authorized_client_keys=str(self.folder / "user_key.pub"),
            process_factory=self._serve,
            sftp_factory=True,
        )

    async def _serve(self, process):
        self._connections.add(process.get_extra_info("connection"))
        pipes = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.PIPE)
        environment = {**os.environ, "HOME": str(self.home)}
        child = subprocess.Popen(process.command, shell=True, env=environment, **pipes)
        await process.redirect(stdin=child.stdin, stdout=child.stdout, stderr=child.stderr)
        code = await asyncio.to_thread(child.wait)
        await process.stdout.drain()
        process.exit(code)
        await process.wait_closed()


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]


def _wait_for_port(port: int) -> None:
    for _ in range(100):
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port)):
            return
        time.sleep(0.05)
    raise RuntimeError(f"the server does not listen on port {port}")
