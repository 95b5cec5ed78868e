from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch

from edgeopt.data import Split
from edgeopt.devices import Task
from edgeopt.runtimes.export import export_artifact
from tests.devices.servers import SSHD, AsyncSsh, OpenSsh, Server

SHAPE = (1, 1, 8, 8)


@pytest.fixture(scope="session")
def images() -> Split:
    rng = np.random.default_rng(0)
    pixels = torch.from_numpy(rng.integers(0, 256, (30, *SHAPE[1:]), dtype=np.uint8))
    return Split(pixels, torch.arange(30) % 3, mean=0.3, std=0.5)


@pytest.fixture(scope="session")
def network() -> torch.nn.Module:
    torch.manual_seed(0)
    linear = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 3))
    return linear.eval()


@pytest.fixture(scope="session")
def tasks(tmp_path_factory, network):
    """The same network in two runtimes, each scored on the device."""
    folder = tmp_path_factory.mktemp("artifacts")
    return [
        Task(
            runtime,
            export_artifact(
                network, folder / runtime, runtime=runtime, precision="fp32", input_shape=SHAPE
            ),
            images="net",
            score=True,
        )
        for runtime in ("onnxruntime", "torch")
    ]


@contextmanager
def started(kind: type[Server], tmp_path_factory) -> Iterator[Server]:
    one = kind(tmp_path_factory.mktemp("ssh") / "server")
    with one.running():
        yield one


@pytest.fixture(scope="module")
def second(tmp_path_factory):
    """Another server, asyncssh's."""
    with started(AsyncSsh, tmp_path_factory) as one:
        yield one


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    """OpenSSH's where it is installed, else asyncssh's."""
    kind = OpenSsh if Path(SSHD).exists() else AsyncSsh
    with started(kind, tmp_path_factory) as one:
        yield one


@pytest.fixture
def home(tmp_path, monkeypatch) -> Path:
    """A home folder of this side, empty."""
    monkeypatch.setenv("HOME", str(tmp_path))
    return tmp_path


@pytest.fixture
def trusted(server, home):
    """The server, with its key known and one's own accepted."""
    server.accept(home)
    server.trust(home)
    return server
