import ast
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from edgeopt.devices import write_bundle
from edgeopt.devices.archive import write_archive

RUNTIMES = {"torch", "onnxruntime", "executorch", "openvino", "ai_edge_litert"}


@pytest.fixture(scope="module")
def archive(tmp_path_factory) -> Path:
    return write_archive(tmp_path_factory.mktemp("agent") / "agent.pyz")


def imported(source: bytes) -> set[str]:
    tree = ast.walk(ast.parse(source))
    names = [
        [alias.name for alias in node.names] if isinstance(node, ast.Import) else [node.module]
        for node in tree
        if isinstance(node, ast.Import | ast.ImportFrom)
    ]
    return {name for some in names for name in some}


def test_the_archive_imports_itself_the_standard_library_and_numpy_alone(archive):
    with zipfile.ZipFile(archive) as opened:
        names = opened.namelist()
        modules = {name for some in names for name in imported(opened.read(some))}
    own = {name for name in modules if name.startswith("edgeopt")}
    packed = {name.removesuffix(".py").replace("/", ".") for name in names}
    assert own <= packed
    others = {name.partition(".")[0] for name in modules - own}
    assert others - set(sys.stdlib_module_names) - RUNTIMES == {"numpy"}


def test_the_archive_is_for_python_3_9_and_newer(archive, tmp_path):
    with zipfile.ZipFile(archive) as opened:
        opened.extractall(tmp_path)
    command = [str(Path(sys.executable).with_name("vermin")), "-t=3.9-", "--no-tips"]
    told = subprocess.run([*command, str(tmp_path)], capture_output=True, text=True)
    assert told.returncode == 0, told.stdout


def test_the_same_code_is_the_same_bytes(archive, tmp_path):
    assert write_archive(tmp_path / "other.pyz").read_bytes() == archive.read_bytes()


def test_the_archive_measures_without_the_package(archive, tmp_path, tasks, images):
    counts = {"rounds": 2, "calls_per_round": 3}
    plan = write_bundle(tmp_path / "bundle", tasks[:1], images={"net": images}, **counts)
    command = [sys.executable, str(archive), "run", str(plan.folder), "--show", "progress"]
    environment = {**os.environ, "PYTHONPATH": ""}
    told = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert told.returncode == 0, told.stderr
    lines = told.stdout.split("\n")
    told_by = [line.split()[0] for line in lines if line]
    assert [word for word in told_by if word != "waiting"] == [  # for tests beside this one
        *("begin", "scored", "lap", "lap", "memory", "done")
    ]
