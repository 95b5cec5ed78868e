import fcntl
import json
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import replace
from unittest.mock import Mock

import pytest

from edgeopt.agent.offline import records_digest
from edgeopt.agent.plan import read_plan
from edgeopt.agent.supervisor import TURN
from edgeopt.devices import DeviceError, device_named, measure_on, write_bundle
from edgeopt.devices.device import address_of


def with_place(plan, name, place):
    """The plan with another session class for one of its artifacts."""
    file = plan.folder / "plan.json"
    values = json.loads(file.read_text())
    for entry in values["artifacts"]:
        if entry["name"] == name:
            entry["place"] = place
    file.write_text(json.dumps(values))
    return read_plan(plan.folder)


@pytest.fixture
def plan(tmp_path, tasks, images):
    counts = {"rounds": 3, "calls_per_round": 4}
    return write_bundle(tmp_path / "bundle", tasks, images={"net": images}, **counts)


def test_an_artifact_that_ends_its_process_takes_its_own_row_down_and_no_other(plan):
    crashing = with_place(plan, "torch", "tests.devices.crashing:CrashingSession")
    results = measure_on(device_named("host"), crashing)
    assert results.errors == {"torch": "it ended its process: killed by SIGSEGV"}
    counts = results.measured.samples.groupby("candidate")["latency_ms"].count()
    assert counts.to_dict() == {"onnxruntime": 12, "torch": 0}
    assert results.memory["candidate"].tolist() == ["onnxruntime"]


def test_a_runtime_that_is_not_installed_is_unavailable_and_no_failure_of_the_run(plan):
    elsewhere = with_place(plan, "torch", "no_such_runtime.session:Session")
    results = measure_on(device_named("host"), elsewhere)
    assert results.errors == {"torch": "RuntimeUnavailable: no_such_runtime is not installed"}


def test_a_file_that_was_changed_is_refused_by_the_agent(plan):
    first = plan.files()[0]
    content = bytearray(first.read_bytes())
    first.unlink()  # it may be a link to the artifact itself
    content[-1] ^= 1
    first.write_bytes(content)
    with pytest.raises(DeviceError, match=f"host: PlanError: .*{first.name} was changed"):
        measure_on(device_named("host"), plan)


@contextmanager
def held(path):
    """Hold a lock as process 7 would."""
    with path.open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        lock.truncate(0)
        lock.write("process 7")
        lock.flush()
        yield


@pytest.mark.parametrize("what", ["the plan", "the device"])
def test_what_another_process_measures_there_is_waited_for(plan, caplog, what):
    path = plan.folder / "lock" if what == "the plan" else TURN
    with ThreadPoolExecutor() as threads:
        with held(path):
            results = threads.submit(measure_on, device_named("host"), plan)
            while "host is measuring for process 7; waiting" not in caplog.text:
                assert wait([results], timeout=0.05).not_done
        assert len(results.result(60).measured.samples) == 24


@pytest.mark.parametrize("waits", [True, False])
def test_what_another_process_measures_there_is_not_removed(plan, waits):
    """Here the agent ends in nothing: what was put there goes, unless it is another's as well."""
    host = device_named("host")
    shown = '{"kind": "waiting", "name": "process 7", "round": 0}'

    def run(plan, *, on_line):
        on_line(shown if waits else "")
        raise DeviceError("no more")

    host.run, host.clean = run, Mock()
    with pytest.raises(DeviceError, match="no more"):
        measure_on(host, plan)
    assert host.clean.called != waits


@pytest.fixture(scope="module")
def measured(tmp_path_factory, tasks, images):
    """A plan, what it gave, and the file that it was kept in."""
    folder = tmp_path_factory.mktemp("measured")
    plan = write_bundle(
        folder / "bundle", tasks, images={"net": images}, rounds=2, calls_per_round=3
    )
    return plan, measure_on(device_named("host"), plan, kept=folder / "kept"), folder / "kept"


def refusing():
    """This machine, which measures nothing."""
    host = device_named("host")
    host.run = Mock(side_effect=DeviceError("it would measure"))
    return host


def test_what_was_measured_is_read_and_not_measured_again(measured):
    plan, first, kept = measured
    again = measure_on(refusing(), plan, kept=kept)
    assert again.measured.samples.equals(first.measured.samples)
    assert again.measured.conditions.equals(first.measured.conditions)
    assert again.digests == first.digests


@pytest.mark.parametrize("change", ["plan", "facts", "packages", "content", "nothing in it"])
def test_what_was_measured_of_something_else_is_measured_again(measured, tmp_path, change, caplog):
    plan, _, kept = measured
    held = json.loads(kept.read_text())
    if change == "plan":
        plan = replace(plan, digest="another")
    elif change == "packages":
        held["measured_by"]["packages"]["torch"] = "another"
    elif change == "nothing in it":
        held = {}
    else:
        [begin] = [record for record in held["records"] if record["kind"] == "begin"]
        begin["facts"]["cpu"] = "another"
    if change == "facts":  # as another device would have sealed them
        held["sha256"] = records_digest(held["records"])
    (tmp_path / "kept").write_text(json.dumps(held))
    with pytest.raises(DeviceError, match="it would measure"):
        measure_on(refusing(), plan, kept=tmp_path / "kept")
    assert ("will be measured again" in caplog.text) == (change in ("content", "nothing in it"))


def test_an_agent_that_ends_too_early_without_an_error_is_lost(plan, monkeypatch):
    monkeypatch.setattr("edgeopt.devices.measuring.time.sleep", lambda _: None)
    silent = device_named("host")
    silent.run = Mock()
    with pytest.raises(DeviceError, match="ended before the measurement did, 5 times in a row"):
        measure_on(silent, plan)


def test_an_address_is_read_in_its_parts():
    assert address_of("ssh://pi@board:2222") == {"host": "board", "port": 2222, "username": "pi"}
    assert address_of("ssh://board") == {"host": "board"}


@pytest.mark.parametrize("name", ["", "board", "http://board", "ssh://", "ssh://board/home"])
def test_what_is_no_device_is_refused(name):
    with pytest.raises(ValueError, match=r"allowed: host, ssh://\[user@\]name\[:port\]"):
        device_named(name)


def test_a_password_is_refused_and_not_repeated():
    with pytest.raises(ValueError, match="holds a password") as refused:
        device_named("ssh://pi:secret@board")
    assert "secret" not in str(refused.value)
