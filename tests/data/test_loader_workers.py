"""Worker processes of a loader beside the runtimes: what kills a process is seen from outside."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SCRIPT = """
import signal
import sys
from pathlib import Path

import torch

from edgeopt.data import Split
from edgeopt.model import SmallCNN
from edgeopt.runtimes import export_artifact, load_session

def load():
    assert sum(len(labels) for _, labels in split.loader(16, num_workers=2)) == 64

folder = Path(sys.argv[1])
split = Split(torch.rand(64, 1, 28, 28), torch.arange(64) % 4)
load()  # leaves torch's handler of SIGCHLD behind
options = {"precision": "fp32", "input_shape": (1, 1, 28, 28)}
artifact = export_artifact(SmallCNN(), folder / "a", runtime="openvino", **options)
sessions = [load_session(artifact), load_session(artifact)]
while sessions:
    del sessions[0]  # the oldest first
signal.raise_signal(signal.SIGCHLD)  # at once: later, freed memory may be in use again
load()
export_artifact(SmallCNN(), folder / "b", runtime="executorch", **options)
"""


def test_export_artifact_survives_loader_workers_after_openvino(tmp_path):
    pytest.importorskip("openvino")
    pytest.importorskip("executorch")
    command = [sys.executable, "-c", SCRIPT, str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr  # -11 is SIGSEGV
    assert (tmp_path / "b.pte").stat().st_size > 0
