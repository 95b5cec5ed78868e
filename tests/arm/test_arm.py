"""The agent on an emulated ARM machine: what it computes counts, what its clock told does not."""

import hashlib
import json
import os
import subprocess
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from edgeopt.devices import Task, measure_on, write_archive, write_bundle
from edgeopt.devices.device import Device, check_ending
from edgeopt.experiments import device_sweep
from edgeopt.experiments.sweep import Target
from edgeopt.runtimes import Int8Options, load_session, runtime_named
from edgeopt.runtimes.export import export_artifact
from edgeopt.system import host_facts, int8_scheme
from tests.arm.emulator import PYTHON
from tests.artifacts import calibration_loader, trained_cnn
from tests.conftest import striped_split
from tests.devices.test_device import with_place
from tests.experiments.test_on_device import FLOORS, sweep

pytestmark = pytest.mark.arm
RUNTIMES = ("onnxruntime", "litert")
BATCH = {"fp32": 64, "int8": 1}
TOLERANCE = 1e-4
FACTS = "import json; from edgeopt.system.host import host_facts; print(json.dumps(host_facts()))"
IMAGES = striped_split(96, seed=3)


class Board(Device):
    """An emulated machine that runs the agent's archive."""

    name = "ssh://board"

    def __init__(self, folder: Path) -> None:
        self.archive = write_archive(folder / "agent")

    def start(self, *words, path, **pipes):
        environment = {**os.environ, "PYTHONPATH": str(path)}
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        return subprocess.Popen([PYTHON, *words], env=environment, text=True, **pipes)

    def facts(self):
        with self.start("-c", FACTS, path=self.archive) as asked:
            return json.load(asked.stdout)

    def run(self, plan, *, on_line):
        words = [self.archive, "run", plan.folder, "--show", "records"]
        with self.start(*words, path=Path(__file__).parents[2]) as agent:
            for line in agent.stdout:
                on_line(line)
            said = agent.stderr.read()
        check_ending(agent.returncode, said, device=self.name)

    def clean(self, plan):
        pass


@pytest.fixture(scope="module")
def board(tmp_path_factory):
    return Board(tmp_path_factory.mktemp("board"))


@pytest.fixture(scope="module")
def artifacts(board, tmp_path_factory):
    """A network as each runtime takes it; for ONNX Runtime with the int8 of both machines."""
    folder = tmp_path_factory.mktemp("artifacts")
    schemes = {int8_scheme(facts["isa"]) for facts in (host_facts(), board.facts())}
    made = [("fp32", None), *(("int8", scheme) for scheme in schemes)]
    kinds = [("onnxruntime", *kind) for kind in made]
    if not runtime_named("litert").unavailable():
        kinds += [("litert", "fp32", None), ("litert", "int8", None)]
    return {
        path.name: export_artifact(
            trained_cnn(),
            path,
            runtime=runtime,
            precision=precision,
            input_shape=(BATCH[precision], 1, 28, 28),
            calibration=calibration_loader(),
            options=Int8Options(scheme=scheme) if scheme else Int8Options(),
        )
        for runtime, precision, scheme in kinds
        for path in [folder / f"{runtime}-{scheme.name if scheme else precision}"]
    }
