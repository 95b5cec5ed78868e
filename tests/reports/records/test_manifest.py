import hashlib
import json
import platform
import shutil
import subprocess

import pytest

from edgeopt.reports.commands import main
from edgeopt.reports.records.manifest import (
    config_of,
    data_facts,
    deciding_facts,
    find_run,
    git_facts,
    provenance,
    read_manifest,
    verify,
    write_manifest,
)
from edgeopt.study.folder import RunFolder, open_run


@pytest.fixture
def run(tmp_path, monkeypatch):
    monkeypatch.setenv("EDGEOPT_REPORTS", str(tmp_path))
    run = open_run("quick")
    run.write_json("data.json", {"name": "tiny", "checksum": "ab" * 32, "counts": {"train": 8}})
    run.write_bytes("artifacts/base.onnx", b"onnx")
    run.write_bytes("index.html", b"<html>")
    run.write_bytes(".lock", b"")
    done = {"status": "done", "title": "Train", "error": "", "finished": "2026", "seconds": 1.5}
    facts = provenance(
        run, parameters={"threads": 2}, notebooks={"01_baseline_training": done}, root=tmp_path
    )
    write_manifest(run, facts)
    return run


def test_every_file_but_hidden_ones_and_itself_is_recorded_with_its_checksum(run):
    artifacts = read_manifest(run)["artifacts"]
    assert sorted(artifacts) == ["artifacts/base.onnx", "data.json", "index.html"]
    assert artifacts["artifacts/base.onnx"] == {
        "bytes": 4,
        "sha256": hashlib.sha256(b"onnx").hexdigest(),
    }


def test_the_manifest_says_what_the_run_was_made_from(run):
    recorded = read_manifest(run)
    assert recorded["run"] == "quick"
    assert recorded["data"]["checksum"] == "ab" * 32
    assert recorded["threads"] == 2
    assert recorded["packages"]["numpy"][0].isdigit()
    assert recorded["host"]["usable_cores"] >= 1
    assert recorded["int8_scheme"]["note"]


def test_an_untouched_run_verifies(run):
    assert verify(run).empty
    assert main(["verify", "--run", "quick"]) == 0


def test_what_differs_is_missing_or_extra_is_named(run, caplog):
    run.write_bytes("artifacts/base.onnx", b"onnX")
    run.path("index.html").unlink()
    run.write_bytes("notes.txt", b"mine")
    found = verify(run)
    assert dict(zip(found["file"], found["problem"], strict=True)) == {
        "artifacts/base.onnx": "differs",
        "index.html": "missing",
        "notes.txt": "extra",
    }
    assert main(["verify", "--run", "quick"]) == 1
    assert "missing  index.html" in caplog.text


def test_an_empty_file_that_vanished_is_missing(run):
    facts = {k: v for k, v in read_manifest(run).items() if k != "artifacts"}
    run.write_bytes("empty.txt", b"")
    write_manifest(run, facts)
    run.path("empty.txt").unlink()
    assert verify(run)["problem"].to_list() == ["missing"]


def test_a_run_without_manifest_says_that_it_did_not_finish(run):
    run.path("manifest.json").unlink()
    with pytest.raises(FileNotFoundError, match=r"manifest.json is missing: run `make report RUN="):
        verify(run)
    assert main(["verify", "--run", "quick"]) == 2


def test_a_broken_manifest_is_named(run):
    run.path("manifest.json").write_text("{")
    with pytest.raises(ValueError, match=r"manifest.json is not JSON"):
        verify(run)
    run.path("manifest.json").write_text(json.dumps({"schema": 2}))
    with pytest.raises(ValueError, match=r"manifest.json at \$"):
        verify(run)


def test_an_unknown_run_lists_the_known_ones(run):
    with pytest.raises(FileNotFoundError, match=r"no run 'quik' in .*'quick'"):
        find_run("quik")


@pytest.mark.parametrize("name", ["..", "../elsewhere", "", "quick/sub"])
def test_a_run_is_a_folder_of_the_reports(run, name):
    (run.path("sub")).mkdir()
    (run.root.parent.parent / "elsewhere").mkdir(exist_ok=True)
    with pytest.raises(FileNotFoundError, match="no run "):
        find_run(name)


def test_a_copied_run_has_the_name_of_its_folder(run):
    run.write_json("manifest.json", {**read_manifest(run), "parameters": {"run": "quick"}})
    copy = RunFolder(shutil.copytree(run.root, run.root.parent / "before"))
    assert config_of(copy).run == "before"


def test_a_deciding_device_that_was_not_measured_yet_is_not_told(run):
    run.write_json("devices.json", {"host": {"isa": []}})
    parameters = {"devices": ["ssh://pi"]}
    assert deciding_facts(run, parameters=parameters)["architecture"] == platform.machine()


def test_data_that_was_not_recorded_says_why(tmp_path):
    assert "01_baseline_training" in data_facts(open_run("new", root=tmp_path))["unavailable"]


@pytest.mark.skipif(shutil.which("git") is None, reason="git is not installed")
def test_the_commit_and_uncommitted_changes_outside_of_the_reports(tmp_path):
    def git(*arguments):
        who = ["-c", "user.name=a", "-c", "user.email=a@b"]
        command = ["git", "-C", str(tmp_path), *who, *arguments]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()

    assert git_facts(tmp_path)["commit"].startswith("unavailable: ")
    git("init", "-q")
    (tmp_path / "code.py").write_text("1")
    git("add", "code.py")
    git("commit", "-qm", "first")
    (tmp_path / "reports").mkdir()
    (tmp_path / "reports/new.html").write_text("1")
    assert git_facts(tmp_path) == {"commit": git("rev-parse", "HEAD"), "dirty": False}
    (tmp_path / "code.py").write_text("2")
    assert git_facts(tmp_path)["dirty"] is True


def test_without_git_the_commit_is_unavailable(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", "")
    assert git_facts(tmp_path) == {"commit": "unavailable: git is not installed", "dirty": None}
