"""A Dask cluster: calls, what they are given, and workers and schedulers that end."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from concurrent.futures import BrokenExecutor
from pathlib import Path

import dask
import numpy as np
import pytest
import torch

from edgeopt.system import SchedulerError, check_scheduler, open_scheduler, run_in_order
from edgeopt.system.parallel import cluster as clusters
from edgeopt.system.parallel.delivery import LARGE
from edgeopt.system.parallel.workers import ByValue
from tests.devices.servers import SSHD, AsyncSsh, OpenSsh


def where(subject: Path | np.ndarray) -> tuple[str, bytes, int]:
    """Where a worker finds what it was given, its first bytes, and the worker."""
    if isinstance(subject, Path):
        return str(subject), subject.read_bytes()[:4], os.getpid()
    return str(subject.filename), subject.tobytes()[:4], os.getpid()


def inside(held: ByValue) -> tuple[str, bytes, int]:
    return where(held["subject"])


def threads(_: int) -> int:
    time.sleep(0.3)
    return torch.get_num_threads()


def killed_once(marker: Path, seen: list[bytes]) -> bytes:
    """End the first worker that it runs on."""
    first = Path(str(marker) + "-was-here")
    if not first.exists():
        first.touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return seen[0].tobytes()[:4]


def killed(job: int) -> int:
    if job == 13:
        os.kill(os.getpid(), signal.SIGKILL)
    return job + 1


def slowly_where(_: int) -> int:
    time.sleep(1)
    return os.getpid()


def failed(_: int) -> None:
    raise ValueError("no such layer")


@pytest.fixture(scope="module")
def cluster():
    own = {
        "distributed.scheduler.allowed-failures": 1,  # each takes seconds
        "distributed.deploy.lost-worker-timeout": "1 ms",  # as on a machine that needs longer
    }
    with dask.config.set(own), open_scheduler("local") as opened:
        yield opened


@pytest.mark.parametrize(
    "address", ["local", "tcp://a:1", "tls://a.b:8786", "tcp://[::1]:80", "ssh:[a]", "ssh:[a, b,a]"]
)
def test_check_scheduler_returns_an_address(address) -> None:
    assert check_scheduler(address) == address


@pytest.mark.parametrize(
    "address", ["", "dask", "tcp://a", "http://a:1", "tcp://a:1/x", "ssh:[]", "ssh:a", "ssh:[a,,b]"]
)
def test_check_scheduler_refuses_what_is_no_address(address) -> None:
    with pytest.raises(ValueError, match="allowed: null, local, tcp://host:port, tls://"):
        check_scheduler(address)


def test_results_come_in_order_from_workers_of_one_thread(cluster) -> None:
    assert [*run_in_order(killed, [3, 1, 2], executor=cluster)] == [4, 2, 3]
    assert [*run_in_order(threads, range(4), executor=cluster)] == [1] * 4


def test_an_error_of_a_call_is_raised_as_it_was(cluster) -> None:
    with pytest.raises(ValueError, match="no such layer"):
        cluster.submit(failed, 0).result()


@pytest.mark.parametrize("size", [4, LARGE + 5])
def test_a_file_is_read_on_the_worker_from_a_copy(size, cluster, tmp_path) -> None:
    own = tmp_path / "some-name.bin"
    own.write_bytes(b"abcd" * size)
    found = [*run_in_order(inside, [ByValue(subject=own)] * 4, executor=cluster)]
    for path, content, _ in found:
        assert content == b"abcd"
        assert Path(path).name == own.name
        assert not path.startswith(str(tmp_path))
    own.write_bytes(b"efgh" * size)  # another content under the same name
    os.utime(own, (1, 1))
    assert cluster.submit(where, own).result()[1] == b"efgh"


def test_a_large_array_is_mapped_from_one_copy_on_each_worker(cluster) -> None:
    array = np.arange(LARGE, dtype=np.uint16)
    found = [*run_in_order(where, [array, array[:], array, array], executor=cluster)]
    assert {content for _, content, _ in found} == {b"\x00\x00\x01\x00"}
    by_worker = {(path, worker) for path, _, worker in found}
    assert len(by_worker) == len({worker for *_, worker in found})
    other = array + 1
    assert cluster.submit(where, other).result()[1] == b"\x01\x00\x02\x00"


def test_a_call_whose_worker_is_killed_runs_again_with_all_that_it_needs(cluster, tmp_path) -> None:
    array = np.full(LARGE + 1, 7, dtype=np.uint8)
    marker = tmp_path / "nothing"
    assert cluster.submit(killed_once, marker, [array]).result(timeout=60) == b"\x07" * 4
    assert (tmp_path / "nothing-was-here").exists()


def test_a_call_that_kills_every_worker_is_told_and_the_others_run(cluster) -> None:
    def died(job: int) -> str:
        return f"{job} died"

    found = [*run_in_order(killed, [1, 13, 2], executor=cluster, died=died)]
    assert found == [2, "13 died", 3]
    with pytest.raises(BrokenExecutor, match="2 workers of local died of one call"):
        cluster.submit(killed, 13).result(timeout=100)


def test_a_module_of_the_users_own_is_brought_along(cluster, tmp_path, monkeypatch) -> None:
    (tmp_path / "brought_module.py").write_text("def seven() -> int:\n    return 7\n")
    (tmp_path / "brought_package").mkdir()
    (tmp_path / "brought_package" / "__init__.py").write_text("")
    (tmp_path / "brought_package" / "nets.py").write_text("def eight() -> int:\n    return 8\n")
    monkeypatch.syspath_prepend(tmp_path)
    from brought_module import seven
    from brought_package.nets import eight

    for name in ("brought_module", "brought_package.nets"):
        cluster.bring(name)
    assert cluster.submit(seven).result() == 7
    assert cluster.submit(eight).result() == 8


def test_a_worker_with_other_packages_is_refused_by_name(cluster, monkeypatch) -> None:
    facts = {**clusters.own_facts(), "torch": "1.0"}
    monkeypatch.setattr(clusters, "own_facts", lambda: facts)
    said = re.escape(f"is unlike this machine: torch {torch.__version__} (here 1.0)")
    with pytest.raises(SchedulerError, match=rf"worker tcp://\S+ {said}"):
        cluster.submit(threads, 0).result()


@pytest.mark.parametrize("address", ["tcp://127.0.0.1:9", "tcp://no-such-host.invalid:80"])
def test_a_scheduler_that_does_not_answer_is_one_error(address, monkeypatch) -> None:
    monkeypatch.setattr(clusters, "SECONDS", 1)
    with pytest.raises(SchedulerError, match=rf"scheduler {address} cannot be used"):
        open_scheduler(address)


def test_tls_without_its_files_is_one_error() -> None:
    with pytest.raises(SchedulerError, match=r"tls://a:1 cannot be used: .*TLS"):
        open_scheduler("tls://a:1")


@pytest.fixture
def elsewhere(tmp_path):
    """A scheduler in a process of its own: the process, and its address."""
    file = tmp_path / "scheduler.json"
    command = [sys.executable, "-m", "distributed.cli.dask_scheduler", "--no-dashboard"]
    options = ["--host", "127.0.0.1", "--port", "0", "--scheduler-file", file]
    soon = {**os.environ, "DASK_DISTRIBUTED__SCHEDULER__NO_WORKERS_TIMEOUT": "2s"}
    with subprocess.Popen([*command, *options], env=soon, stderr=subprocess.DEVNULL) as process:
        while process.poll() is None and not file.exists():
            time.sleep(0.1)
        yield process, json.loads(file.read_text())["address"]
        process.kill()


def test_hosts_by_ssh_have_a_worker_as_often_as_they_are_named(tmp_path, monkeypatch) -> None:
    server = (OpenSsh if Path(SSHD).exists() else AsyncSsh)(tmp_path / "server")
    monkeypatch.setenv("HOME", str(tmp_path))
    with server.running():
        server.accept(tmp_path)
        server.trust(tmp_path)
        with (tmp_path / ".ssh" / "config").open("a") as config:
            config.write(f"  Port {server.port}\n")
        with open_scheduler("ssh:[localhost, localhost]") as opened:
            opened.bring("tests")  # nothing of this folder is installed there
            calls = [opened.submit(slowly_where, number) for number in range(4)]
            assert len({call.result(timeout=60) for call in calls}) == 2


def test_a_scheduler_without_workers_and_one_that_ends(elsewhere, monkeypatch) -> None:
    process, address = elsewhere
    monkeypatch.setattr(clusters, "SECONDS", 1)
    with pytest.raises(SchedulerError, match=f"scheduler {address} has no worker after 1 s"):
        open_scheduler(address)
    monkeypatch.undo()
    command = [sys.executable, "-m", "distributed.cli.dask_worker", address, "--no-dashboard"]
    with subprocess.Popen([*command, "--nthreads", "1"], stderr=subprocess.DEVNULL) as worker:
        opened = open_scheduler(address)
        calls = [opened.submit(time.sleep, 30) for _ in range(2)]
        time.sleep(1)
        process.kill()
        for call in calls:
            with pytest.raises(SchedulerError, match=f"{address} is gone; what was finished is"):
                call.result(timeout=30)
        opened.shutdown()
        worker.kill()


def test_a_call_whose_last_worker_is_gone_is_told(elsewhere) -> None:
    _, address = elsewhere
    command = [sys.executable, "-m", "distributed.cli.dask_worker", address, "--no-dashboard"]
    options = ["--nthreads", "1", "--no-nanny"]
    with (
        subprocess.Popen([*command, *options], stderr=subprocess.DEVNULL),
        open_scheduler(address) as opened,
    ):
        call = opened.submit(killed, 13)
        with pytest.raises(SchedulerError, match=f"{address} has had no worker for 2 s; what was"):
            call.result(timeout=60)


def counted(folder: Path) -> int:
    (folder / f"{os.getpid()}-{time.time_ns()}").touch()
    return os.getpid()


def test_a_result_that_is_here_is_not_computed_again_when_its_worker_dies(
    cluster, tmp_path
) -> None:
    call = cluster.submit(counted, tmp_path)  # held to the end, as results of a run are
    os.kill(call.result(timeout=60), signal.SIGKILL)
    others = [cluster.submit(slowly_where, number) for number in range(4)]
    assert len({other.result(timeout=100) for other in others}) == 2  # it is back
    assert len([*tmp_path.iterdir()]) == 1


def test_what_hangs_while_it_starts_is_one_error(monkeypatch) -> None:
    monkeypatch.setattr(clusters, "START_SECONDS", 0.2)
    monkeypatch.setattr(clusters, "SSHCluster", lambda *_, **__: time.sleep(30))
    with pytest.raises(SchedulerError, match=r"ssh:\[a\] cannot be used: .* within 0.2 s"):
        open_scheduler("ssh:[a]")


@pytest.mark.parametrize("address", ["tcp://127.0.0.1:9", "tls://a:1"])
def test_a_client_that_could_not_connect_is_not_left_open(address, monkeypatch) -> None:
    monkeypatch.setattr(clusters, "SECONDS", 1)
    made = []

    class Kept(clusters.Client):
        def __init__(self, *args, **options) -> None:
            made.append(self)
            super().__init__(*args, **options)

    monkeypatch.setattr(clusters, "Client", Kept)
    with pytest.raises(SchedulerError, match="cannot be used"):
        open_scheduler(address)
    assert [own.status for own in made] == ["closed"]
