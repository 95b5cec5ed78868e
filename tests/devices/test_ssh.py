import contextlib
import hashlib
import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch

from edgeopt.devices import DeviceError, device_named, measure_on, write_bundle
from tests.devices.servers import free_port

PROBED = {
    "packages": "",
    **{"home": "/", "executable": "", "version": [3, 11, 1], "machine": "z80", "libc": ""},
    "free": 9,
}


def device_of(server, **options):
    return device_named(server.name, **{"python": sys.executable, **options})


def bundle(folder, tasks, images, **counts):
    counts = {"rounds": 3, "calls_per_round": 4, **counts}
    return write_bundle(folder, tasks, images={"net": images}, **counts)


def agents(server) -> list[int]:
    """Processes that run on the device's own files."""
    found = subprocess.run(["pgrep", "-f", f"{server.home}/"], capture_output=True, text=True)
    return [int(word) for word in found.stdout.split()]


def left_behind(server) -> list[str]:
    return [path.name for path in server.home.rglob("*")]


def test_a_device_measures_what_the_plan_says_and_keeps_nothing(
    trusted, tasks, images, network, tmp_path
):
    plan = bundle(tmp_path / "bundle", tasks, images)
    results = measure_on(device_of(trusted), plan)
    samples = results.measured.samples
    assert results.errors == {}
    assert samples.groupby(["candidate", "round"]).size().to_dict() == {
        (name, number): 4 for name in ("onnxruntime", "torch") for number in range(3)
    }
    with torch.no_grad():
        logits = network(images.take(30)).numpy()
    assert results.classes["torch"].tolist() == logits.argmax(1).tolist()
    assert results.digests["torch"] == hashlib.sha256(logits).hexdigest()
    assert results.classes["onnxruntime"].tolist() == logits.argmax(1).tolist()
    assert results.memory.set_index("candidate")["peak_rss_bytes"].gt(2**20).all()
    assert results.facts["packages"]["numpy"] == np.__version__
    assert left_behind(trusted) == []
    assert agents(trusted) == []


def test_a_device_is_given_a_file_once(trusted, tasks, images, tmp_path, monkeypatch):
    plan = bundle(tmp_path / "bundle", tasks, images)
    device = device_of(trusted)
    monkeypatch.setattr(type(device), "clean", lambda *_: None)
    measure_on(device, plan)
    [folder] = (trusted.home / ".cache/edgeopt").iterdir()
    before = {p: p.stat().st_mtime_ns for p in (folder / "files").iterdir()}
    broken = next(iter(before))
    broken.write_bytes(b"cut")
    (folder / "journal.jsonl").unlink()
    measure_on(device, plan)
    changed = [p for p, when in before.items() if p.stat().st_mtime_ns != when]
    assert changed == [broken]
    monkeypatch.undo()
    monkeypatch.setenv("HOME", str(tmp_path))
    device.clean(plan)
    assert left_behind(trusted) == []


@pytest.mark.parametrize("kills", [4, pytest.param(20, marks=pytest.mark.slow)])
def test_kills_and_cut_connections_lose_nothing(trusted, tasks, images, tmp_path, kills):
    plan = bundle(tmp_path / "bundle", tasks, images, rounds=100 * kills, calls_per_round=50)
    chance = random.Random(kills)
    done, over = [], threading.Event()

    def kill():
        while len(done) < kills and not over.wait(chance.uniform(1, 3)):
            if chance.random() < 0.5:
                done.extend([None] * trusted.cut())
                continue
            for pid in agents(trusted):
                with contextlib.suppress(ProcessLookupError):
                    done.append(os.kill(pid, signal.SIGKILL))

    killer = threading.Thread(target=kill, daemon=True)
    killer.start()
    try:
        results = measure_on(device_of(trusted), plan)
    finally:
        over.set()
        killer.join()
    calls = results.measured.samples.groupby(["candidate", "round"]).size()
    assert len(done) >= kills
    assert len(calls) == 2 * 100 * kills
    assert calls.eq(50).all()
    assert results.measured.conditions["round"].tolist() == [*range(100 * kills)]
    assert results.errors == {}
    assert left_behind(trusted) == []
    time.sleep(0.5)
    assert agents(trusted) == []


def test_a_connection_that_ends_while_a_device_is_asked_what_it_is_is_made_again(
    trusted, tasks, images, tmp_path
):
    asked, python = tmp_path / "asked", tmp_path / "python"
    python.write_text(f'#!/bin/sh\nmkdir {asked} && sleep 60\nexec {sys.executable} "$@"\n')
    python.chmod(0o755)

    def cut():
        while not asked.exists():
            time.sleep(0.05)
        trusted.cut()

    cutter = threading.Thread(target=cut, daemon=True)
    cutter.start()
    plan = bundle(tmp_path / "bundle", tasks[:1], images)
    results = measure_on(device_of(trusted, python=str(python)), plan)
    assert len(results.measured.samples) == 12


def test_two_devices_measure_at_once(trusted, second, tasks, images, home, tmp_path):
    second.trust(home)
    config = home / ".ssh/config"
    config.write_text(config.read_text() + f"  IdentityFile {second.folder / 'user_key'}\n")
    plan = bundle(tmp_path / "bundle", tasks[:1], images)
    devices = [device_of(server) for server in (trusted, second)]
    with ThreadPoolExecutor(2) as threads:
        found = list(threads.map(lambda device: measure_on(device, plan), devices))
    assert [results.device for results in found] == [trusted.name, second.name]
    assert [len(results.measured.samples) for results in found] == [12, 12]
    assert [*left_behind(trusted), *left_behind(second)] == []


def test_no_such_host_and_nothing_that_listens_are_told(home):
    with pytest.raises(DeviceError, match=r"no such host: no-such-host\.invalid"):
        device_named("ssh://no-such-host.invalid").facts()
    with pytest.raises(DeviceError, match=r"connection refused: nothing listens on port \d+"):
        device_named(f"ssh://localhost:{free_port()}").facts()


def test_an_unknown_host_key_is_refused_with_the_command_that_adds_it(server, home):
    server.accept(home)
    with pytest.raises(DeviceError, match=r"host key is not known.*SHA256:.*ssh-keyscan -p"):
        device_of(server).facts()


def test_a_changed_host_key_is_refused(server, home):
    server.accept(home)
    server.trust(home, key="user_key")
    with pytest.raises(DeviceError, match=r"has changed to SHA256:.*ssh-keygen -R"):
        device_of(server).facts()


def test_a_key_that_is_not_accepted_is_told(server, home):
    server.accept(home)
    server.trust(home)
    (home / ".ssh/config").unlink()
    with pytest.raises(DeviceError, match="no key was accepted; ssh-copy-id"):
        device_of(server).facts()


def test_a_device_without_python_and_one_that_is_too_old_are_told(trusted, tmp_path):
    with pytest.raises(DeviceError, match="there is no no-such-python; install"):
        device_of(trusted, python="no-such-python").facts()
    old = tmp_path / "python2"
    told = json.dumps(PROBED | {"version": [3, 8, 1]})
    old.write_text(f"#!/bin/sh\necho '{told}'\n")
    old.chmod(0o755)
    with pytest.raises(DeviceError, match=r"is Python 3\.8\.1; allowed: 3\.9 or newer"):
        device_of(trusted, python=str(old)).facts()


def test_a_full_disk_is_told_before_anything_is_copied(trusted, tasks, images, tmp_path):
    full = tmp_path / "python"
    told = json.dumps(PROBED | {"home": str(trusted.home), "executable": sys.executable})
    full.write_text(f"#!/bin/sh\necho '{told}'\n")
    full.chmod(0o755)
    plan = bundle(tmp_path / "bundle", tasks, images)
    with pytest.raises(DeviceError, match=r"MiB are needed below .*, 0\.0 MiB are free"):
        measure_on(device_of(trusted, python=str(full)), plan)
    assert left_behind(trusted) == []
