"""The agent on an emulated ARM machine: what it computes counts, what its clock told does not."""

import hashlib
import json
import os
import subprocess
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest

from edgeopt.agent.journal import JOURNAL, read_records
from edgeopt.devices import Task, measure_on, write_archive, write_bundle
from edgeopt.devices.device import Device, check_ending
from edgeopt.experiments import device_sweep
from edgeopt.experiments.sweep import Target
from edgeopt.runtimes import Int8Options, load_session, runtime_named
from edgeopt.runtimes.export import export_artifact
from edgeopt.system import host_facts, int8_scheme
from edgeopt.system.int8 import U8S8
from tests.arm.emulator import PYTHON
from tests.artifacts import calibration_loader, trained_cnn
from tests.conftest import striped_split
from tests.devices.test_device import with_place
from tests.experiments.test_on_device import FLOORS, sweep

pytestmark = pytest.mark.arm
RUNTIMES = ("onnxruntime", "litert")
BATCH = {"fp32": 16, "int8": 1}
TOLERANCE = 1e-4
CRASHING = "tests.devices.crashing:CrashingSession"
FACTS = "import json; from edgeopt.system.host import host_facts; print(json.dumps(host_facts()))"
IMAGES = striped_split(96, seed=3)


class Board(Device):
    """An emulated machine that runs the agent's archive."""

    name = "ssh://board"

    def __init__(self, folder: Path) -> None:
        self.archive = write_archive(folder / "agent")

    def start(self, *words, path):
        environment = {**os.environ, "PYTHONPATH": str(path)}
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        where = {"cwd": self.archive.parent, "env": environment}
        return subprocess.Popen([PYTHON, *words], text=True, **where, **pipes)

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
    """One network as each runtime takes it; in ONNX with the int8 of either machine."""
    schemes = {int8_scheme(facts["isa"]) for facts in (host_facts(), board.facts())}
    kinds = {f"onnxruntime-int8-{s.name}": ("onnxruntime", "int8", s) for s in schemes}
    kinds |= {
        f"{runtime}-{precision}": (runtime, precision, U8S8)
        for runtime, precision in (("onnxruntime", "fp32"), ("litert", "fp32"), ("litert", "int8"))
        if not runtime_named(runtime).unavailable()
    }
    folder = tmp_path_factory.mktemp("artifacts")
    return {
        name: export_artifact(
            trained_cnn(),
            folder / name,
            runtime=runtime,
            precision=precision,
            input_shape=(BATCH[precision], 1, 28, 28),
            calibration=calibration_loader(),
            options=Int8Options(scheme=scheme),
        )
        for name, (runtime, precision, scheme) in kinds.items()
    }


def bundle(folder, tasks, *, memory):
    counts = {"rounds": 2, "calls_per_round": 2, "warmup_calls": 0, "memory": memory}
    return write_bundle(folder, tasks, images={"net": IMAGES}, **counts)


@pytest.fixture(scope="module")
def measured(board, artifacts, tmp_path_factory):
    """What the board sent back, the first logits that it kept, and the logits of this machine."""
    tasks = [Task(name, own, "net", score=True) for name, own in artifacts.items()]
    folder = tmp_path_factory.mktemp("bundle")
    return SimpleNamespace(
        results=measure_on(board, bundle(folder, tasks, memory=False)),
        kept={name: np.load(folder / "scored" / f"{name}.npy") for name in artifacts},
        here={
            name: load_session(own).score(IMAGES.take(len(IMAGES)).numpy())
            for name, own in artifacts.items()
        },
    )


@pytest.fixture(scope="module")
def table(artifacts, measured):
    """The board's rows of a sweep over the artifacts."""
    answers = [
        (name, hashlib.sha256(logits.tobytes()).hexdigest(), " ".join(map(str, logits.argmax(1))))
        for name, logits in measured.here.items()
    ]
    return device_sweep(
        measured.results,
        pd.concat([sweep().assign(candidate=name) for name in artifacts], ignore_index=True),
        answers=pd.DataFrame(answers, columns=["candidate", "digest", "classes"]),
        floors=FLOORS,
        images={"small_cnn": IMAGES},
        target=Target(),
        batch_size=1,
    ).set_index("candidate")


def names_of(artifacts, runtime, precision):
    if reason := runtime_named(runtime).unavailable():
        pytest.skip(reason)
    return [n for n, a in artifacts.items() if (a.runtime, a.precision) == (runtime, precision)]


def test_the_board_is_known_for_an_emulated_arm_machine(measured):
    facts = measured.results.facts
    assert (facts["architecture"], facts["emulated"]) == ("aarch64", True)
    assert facts["isa"] == ["neon", "asimdhp", "asimddp"]
    assert facts["l2_bytes"].startswith("unavailable:")


def test_nothing_fails_there_but_what_ends_its_process(measured, artifacts, board, tmp_path):
    assert measured.results.errors == {}
    tasks = [Task(name, artifacts["onnxruntime-fp32"], "net") for name in ("sound", "crashing")]
    plan = with_place(bundle(tmp_path, tasks, memory=True), "crashing", CRASHING)
    errors = measure_on(board, plan).errors
    assert errors == {"crashing": "it ended its process: killed by SIGSEGV"}
    [used] = [r for r in read_records(tmp_path / JOURNAL).values() if r["kind"] == "memory"]
    assert used["name"] == "sound"
    assert used["peak_rss_bytes"] > used["idle_rss_bytes"] > 0


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_int8_computes_the_same_bits_on_both_machines(artifacts, table, runtime):
    rows = table.loc[names_of(artifacts, runtime, "int8")]
    assert rows["device_logits"].eq("equal bit for bit").all()
    assert rows["device_differs"].eq(0).all()


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_fp32_answers_alike_and_its_logits_are_close(artifacts, table, measured, runtime):
    [name] = names_of(artifacts, runtime, "fp32")
    assert table.loc[name, "device_differs"] == 0
    kept, here = measured.kept[name], measured.here[name][: BATCH["fp32"]]
    np.testing.assert_allclose(kept, here, rtol=0, atol=TOLERANCE)


def test_no_latency_and_no_memory_is_told_of_it(table, measured):
    assert table["latency_kind"].eq("unavailable: emulated").all()
    told = table.filter(regex="^(latency_(?!kind)|throughput|call_|energy_proxy|.*rss_bytes)")
    assert told.isna().all(axis=None)
    assert measured.results.measured.samples["latency_ms"].isna().all()
    assert measured.results.starts.empty
