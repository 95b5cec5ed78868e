"""Memory that the agent reads in a process of its own."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from edgeopt.devices import Task, write_bundle
from tests.agent.made_up import entry, write_plan
from tests.artifacts import artifact_of
from tests.conftest import striped_split

ROOT = Path(__file__).parents[2]


def memory_in(folder, name):
    """What the agent's command writes last; whatever a runtime prints comes before."""
    command = [sys.executable, "-m", "edgeopt.agent", "memory", str(folder), name]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT
    ) as child:
        return json.loads(child.stdout.read().splitlines()[-1])


def test_memory_is_that_of_the_fresh_process(tmp_path):
    ballast = np.ones(2**26)  # 512 MiB here must not show in the child
    memory = memory_in(write_plan(tmp_path, [entry(tmp_path, "held", "Holding")]), "held")
    assert 64 * 2**20 <= memory["peak_rss_bytes"] - memory["idle_rss_bytes"] < 80 * 2**20
    assert memory["peak_rss_bytes"] < ballast.nbytes
    assert 64 * 2**20 <= memory["added_rss_bytes"] < 65 * 2**20


@pytest.mark.parametrize(("runtime", "holds_torch"), [("torch", True), ("onnxruntime", False)])
def test_a_process_holds_the_runtime_that_it_runs_and_no_other(tmp_path, runtime, holds_torch):
    task = Task("net", artifact_of(runtime, "fp32"), "shown")
    shown = {"shown": striped_split(1, seed=0)}
    plan = write_bundle(tmp_path, [task], images=shown, rounds=1, calls_per_round=1)
    memory = memory_in(plan.folder, "net")
    torch_library = sum(
        path.stat().st_size for path in Path(torch.__path__[0], "lib").glob("*cpu*")
    )
    assert memory["peak_rss_bytes"] > memory["idle_rss_bytes"]
    assert (memory["peak_rss_bytes"] > torch_library / 3) == holds_torch
