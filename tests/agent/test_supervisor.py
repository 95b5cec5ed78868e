"""Whole runs of a plan, with workers that are processes of their own."""

import fcntl
import json
import os
import platform
import subprocess
import sys
import threading
import time
import zipfile
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from edgeopt.agent import supervisor
from edgeopt.agent.journal import Journal, parsed
from edgeopt.agent.plan import PlanError
from edgeopt.agent.supervisor import AgentError, device_facts, end_with_parent, run
from tests.agent.made_up import entry, write_plan

ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def started_from_the_package(monkeypatch):
    """Let the workers find the package and the tests, whatever runs pytest."""
    monkeypatch.setattr(sys.modules["__main__"], "__file__", str(ROOT / "main.py"), raising=False)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))


@pytest.fixture(autouse=True)
def turn(tmp_path, monkeypatch):
    monkeypatch.setattr(supervisor, "TURN", tmp_path / "turn.lock")
    return tmp_path / "turn.lock"


def ran(folder):
    run(folder, show="")
    return Journal(folder)


def wait_for(something):
    for _ in range(600):
        if found := something():
            return found
        time.sleep(0.05)
    raise TimeoutError


def errors(journal):
    return {record["name"]: (record["at"], record["error"]) for record in journal.of_kind("failed")}


def test_a_plan_is_measured_to_its_end_once(tmp_path):
    folder = write_plan(tmp_path, [entry(tmp_path, "a"), entry(tmp_path, "b")], memory=True)
    journal = ran(folder)
    kinds = [kind for kind, _, _ in journal.records]
    assert (kinds[0], kinds[-1]) == ("begin", "done")
    counts = {kind: kinds.count(kind) for kind in ("scored", "visit", "lap", "memory", "failed")}
    assert counts == {"scored": 2, "visit": 6, "lap": 3, "memory": 2, "failed": 0}
    assert [record["name"] for record in journal.of_kind("memory")] == ["a", "b"]
    assert all(record["peak_rss_bytes"] > 0 for record in journal.of_kind("memory"))
    assert ran(folder).records == journal.records


def test_memory_is_read_only_when_asked_for(tmp_path):
    assert not ran(write_plan(tmp_path, [entry(tmp_path, "a")])).of_kind("memory")


@pytest.mark.parametrize(
    ("session", "reason"),
    [
        ("Deadly", "killed by SIGKILL"),
        ("Exiting", "exit code 7"),
        ("Complaining", "illegal instruction"),
    ],
)
def test_what_ends_its_process_twice_has_failed_and_the_others_are_measured(
    tmp_path, session, reason
):
    artifacts = [entry(tmp_path, "bad", session), entry(tmp_path, "good")]
    journal = ran(write_plan(tmp_path, artifacts, memory=True))
    assert errors(journal) == {"bad": (0, f"it ended its process: {reason}")}
    assert [record["name"] for record in journal.of_kind("visit")] == ["good"] * 3
    assert [record["name"] for record in journal.of_kind("memory")] == ["good"]


def test_what_ends_its_process_once_is_measured(tmp_path):
    journal = ran(write_plan(tmp_path, [entry(tmp_path, "a", "DeadlyOnce")]))
    assert errors(journal) == {}
    assert len(journal.of_kind("visit")) == 3


def test_a_failure_is_of_the_round_that_was_underway(tmp_path):
    folder = write_plan(tmp_path, [entry(tmp_path, "a", "Deadly", score=False)])
    Journal(folder).add("lap", number=0)
    Journal(folder).add("lap", number=1)
    assert ran(folder).of_kind("failed")[0]["at"] == 2


def test_a_worker_that_ends_outside_of_any_artifact_ends_the_run(tmp_path, monkeypatch):
    (tmp_path / "numpy.py").write_text("raise ImportError('numpy is broken')")
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}:{ROOT}")
    folder = write_plan(tmp_path, [entry(tmp_path, "a")])
    said = "the agent's worker ended outside of any artifact: ImportError: numpy is broken"
    with pytest.raises(AgentError, match=said):
        ran(folder)


def test_workers_are_started_from_the_archive_that_holds_the_agent(tmp_path, monkeypatch):
    with zipfile.ZipFile(tmp_path / "agent.pyz", "w") as archive:
        archive.writestr("__main__.py", "raise SystemExit('this is the archive')")
    started = tmp_path / "agent.pyz" / "__main__.py"
    monkeypatch.setattr(sys.modules["__main__"], "__file__", str(started))
    with pytest.raises(AgentError, match="this is the archive"):
        ran(write_plan(tmp_path, [entry(tmp_path, "a")]))


def test_a_process_whose_memory_cannot_be_read_says_why(tmp_path, monkeypatch):
    folder = write_plan(tmp_path, [entry(tmp_path, "a", "Forgetful")], memory=True)
    [record] = ran(folder).of_kind("memory")
    assert record["unavailable"] == ("unavailable: the process that runs it failed: exit code 7")
    assert not {"peak_rss_bytes", "idle_rss_bytes"} & set(record)


def test_a_process_whose_memory_takes_too_long_is_ended(tmp_path, monkeypatch):
    monkeypatch.setattr(supervisor, "MEMORY_SECONDS", 0.01)
    [record] = ran(write_plan(tmp_path, [entry(tmp_path, "a")], memory=True)).of_kind("memory")
    assert record["unavailable"] == "unavailable: not done in 0.01 s"


def test_all_records_are_shown_of_this_run_and_of_earlier_ones(tmp_path, capfd):
    folder = write_plan(tmp_path, [entry(tmp_path, "a")], rounds=1)
    for _ in range(2):
        run(folder, show="records")
        lines = [*filter(parsed, capfd.readouterr().out.splitlines(keepends=True))]
        assert "".join(lines) == (folder / "journal.jsonl").read_text()
        kinds = [json.loads(line)["kind"] for line in lines]
        assert kinds == ["begin", "scored", "visit", "lap", "done"]


@pytest.mark.parametrize("what", ["the plan", "the device"])
def test_what_another_process_measures_is_waited_for(tmp_path, turn, capsys, what):
    folder = write_plan(tmp_path, [entry(tmp_path, "a")])
    path = folder / "lock" if what == "the plan" else turn
    waiting = threading.Thread(target=lambda: run(folder, show="records"))
    with path.open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        lock.write("process 7")
        lock.flush()
        path.chmod(0o600)
        waiting.start()
        shown = wait_for(lambda: capsys.readouterr().out)
        assert not Journal(folder).records
    waiting.join(60)
    assert parsed(shown.strip()) == {"kind": "waiting", "name": "process 7", "round": 0}
    assert Journal(folder).has("done")
    assert not Journal(folder).of_kind("waiting")


def test_a_lock_that_is_another_file_too_is_refused(tmp_path, turn):
    precious = tmp_path / "precious"
    precious.write_text("kept")
    turn.hardlink_to(precious)
    with pytest.raises(AgentError, match=r"turn\.lock is not a lock of this user's; remove it"):
        ran(write_plan(tmp_path, [entry(tmp_path, "a")]))
    assert precious.read_text() == "kept"


def test_a_worker_that_dies_outside_of_any_artifact_ends_the_measurement(tmp_path, monkeypatch):
    folder = write_plan(tmp_path, [entry(tmp_path, "a")])
    reasons = iter(["ZeroDivisionError", "ZeroDivisionError"])
    monkeypatch.setattr(supervisor, "_worker_ending", lambda *_, **__: next(reasons))
    told = "ended outside of any artifact: ZeroDivisionError"
    with pytest.raises(AgentError, match=told):
        ran(folder)
    Journal(folder).add("failed", "a", at=0, error="it ended its process")
    (folder / "underway").write_text("a")  # of a job that will not be tried again
    with pytest.raises(AgentError, match=told):
        ran(folder)


def test_the_journal_of_another_plan_is_refused(tmp_path):
    folder = write_plan(tmp_path, [entry(tmp_path, "a")])
    Journal(folder).add("begin", plan="c0ffee", facts={}, state={})
    with pytest.raises(PlanError, match=r"journal\.jsonl belongs to another plan: c0ffee"):
        ran(folder)


def test_facts_name_the_device_and_the_plan_s_packages():
    facts = device_facts(SimpleNamespace(values={"packages": ["numpy", "no-such-package"]}))
    assert facts["packages"] == {"numpy": np.__version__, "no-such-package": "not installed"}
    assert facts["architecture"] == platform.machine()
    assert facts["python"] == platform.python_version()
    assert facts["emulated"] is False


def test_the_state_is_none_where_the_machine_does_not_tell(tmp_path, monkeypatch):
    monkeypatch.setattr(supervisor, "clock_mhz", lambda: np.nan)
    monkeypatch.setattr(supervisor, "temperature_c", lambda: 61.5)
    monkeypatch.setattr(supervisor, "throttling", lambda: "core_throttle_count=7")
    journal = ran(write_plan(tmp_path, [], rounds=0))
    state = {"clock_mhz": None, "temperature_c": 61.5, "throttling": "core_throttle_count=7"}
    assert [record["state"] for record in journal.records.values()] == [state] * 2


def test_a_process_watches_its_standard_input_beside_its_work(monkeypatch):
    words, read, ended = iter([b"a word", b""]), [], threading.Event()

    def listen(descriptor, _):
        read.append((descriptor, threading.current_thread().daemon))
        return next(words)

    def leave(code):
        read.append(code)
        ended.set()

    monkeypatch.setattr(supervisor, "os", SimpleNamespace(read=listen, _exit=leave))
    end_with_parent()
    assert ended.wait(60)
    assert read == [(0, True), (0, True), 3]


def test_a_process_ends_with_its_standard_input():
    sleeping = "import time; from edgeopt.agent.supervisor import end_with_parent as watch; watch()"
    command = [sys.executable, "-c", f"{sleeping}; print('ready', flush=True); time.sleep(600)"]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env={**os.environ}
    ) as child:
        assert child.stdout.readline() == b"ready\n"
        child.stdin.close()
        assert child.wait(60) == 3
