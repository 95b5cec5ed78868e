import textwrap
from pathlib import Path

import numpy as np
import pytest
import torch

from edgeopt.metrics.resident import resident_memory
from edgeopt.model.networks import SmallCNN
from edgeopt.runtimes.contract import Artifact
from edgeopt.runtimes.export import export_artifact

IMAGE = (1, 1, 28, 28)


@pytest.fixture
def fake_runtime(tmp_path, monkeypatch):
    """A runtime for the child process alone: it holds a MiB per byte of the file."""
    source = """
        import sys, types

        def load_session(artifact, *, threads):
            if not artifact.path.exists():
                raise ValueError(f"{artifact.path.name} is gone")
            held = bytearray(b"1") * (artifact.path.stat().st_size * 2**20)
            print("a runtime that talks")
            return lambda batch: (held, batch.shape == artifact.input_shape or 1 / 0)

        sys.modules["edgeopt.runtimes.registry"] = types.ModuleType("edgeopt.runtimes.registry")
        sys.modules["edgeopt.runtimes.registry"].load_session = load_session
    """
    (tmp_path / "sitecustomize.py").write_text(textwrap.dedent(source))
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}:{Path(__file__).parents[2]}")
    path = tmp_path / "artifact.bin"
    path.write_bytes(bytes(64))
    return Artifact(path, "torch", "fp32", IMAGE, "", 64)


def test_memory_is_that_of_the_fresh_process(fake_runtime):
    ballast = np.ones(2**26)  # 512 MiB here must not show in the child
    memory = resident_memory(fake_runtime)
    assert 64 * 2**20 <= memory.peak_bytes - memory.baseline_bytes < 80 * 2**20
    assert memory.peak_bytes < ballast.nbytes
    assert 64 * 2**20 <= memory.added_bytes < 65 * 2**20


@pytest.mark.parametrize(("runtime", "holds_torch"), [("torch", True), ("onnxruntime", False)])
def test_a_process_holds_the_runtime_that_it_runs_and_no_other(tmp_path, runtime, holds_torch):
    options = {"runtime": runtime, "precision": "fp32", "input_shape": IMAGE}
    memory = resident_memory(export_artifact(SmallCNN().eval(), tmp_path / "m", **options))
    torch_library = sum(
        path.stat().st_size for path in Path(torch.__path__[0], "lib").glob("*cpu*")
    )
    assert memory.peak_bytes > memory.baseline_bytes
    assert (memory.peak_bytes > torch_library / 3) == holds_torch


def test_a_failure_names_the_artifact_and_the_cause(fake_runtime):
    fake_runtime.path.unlink()
    with pytest.raises(
        RuntimeError, match=r"artifact.bin failed: ValueError: artifact.bin is gone"
    ):
        resident_memory(fake_runtime)
