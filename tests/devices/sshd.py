"""An OpenSSH server of the tests' own, on loopback, gone afterwards."""

import contextlib
import getpass
import os
import shutil
import socket
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path

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


@dataclass(frozen=True)
class Server:
    """A running server; ``home`` is the home folder on the device."""

    folder: Path
    port: int
    home: Path

    @property
    def name(self) -> str:
        """The device, as parameter files say it."""
        return f"ssh://{getpass.getuser()}@localhost:{self.port}"

    def trust(self) -> None:
        """Put the server's key among the known hosts of the test's home."""
        key = (self.folder / "host_key.pub").read_text().rsplit(" ", 1)[0]
        hosts = Path.home() / ".ssh" / "known_hosts"
        with hosts.open("a") as file:
            file.write(f"[localhost]:{self.port} {key}\n")

    def sessions(self) -> list[int]:
        """Processes that serve a connection now."""
        pid = int((self.folder / "pid").read_text())
        found = subprocess.run(["pgrep", "-P", str(pid)], capture_output=True, text=True)
        return [int(word) for word in found.stdout.split()]


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]


@contextlib.contextmanager
def running_server(folder: Path):
    """Start a server whose user key is that of the test's home, and stop it."""
    folder.mkdir(parents=True)
    home = folder / "home"
    home.mkdir()
    for name in ("host_key", "user_key"):
        make = ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(folder / name)]
        subprocess.run(make, check=True)
    server = Server(folder, free_port(), home)
    config = folder / "sshd_config"
    config.write_text(OPTIONS.format(port=server.port, folder=folder, home=home))
    if os.geteuid() == 0:
        Path("/run/sshd").mkdir(exist_ok=True)
    process = subprocess.Popen([SSHD, "-D", "-e", "-f", str(config)], stderr=subprocess.DEVNULL)
    try:
        _wait_for_port(server.port)
        yield server
    finally:
        process.terminate()
        process.wait()


def _wait_for_port(port: int) -> None:
    for _ in range(100):
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port)):
            return
        time.sleep(0.05)
    raise RuntimeError(f"sshd does not listen on port {port}")


def use_key(server: Server, home: Path) -> None:
    """Let SSH of a home folder use the server's user key."""
    ssh = home / ".ssh"
    ssh.mkdir(mode=0o700, exist_ok=True)
    with (ssh / "config").open("a") as file:
        file.write(f"Host localhost\n  IdentityFile {server.folder / 'user_key'}\n")
    (ssh / "known_hosts").touch()
