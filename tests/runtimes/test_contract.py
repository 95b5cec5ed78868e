"""What every registered runtime promises, asserted on each: edgeopt's own and a foreign one."""

import ast
import functools
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import edgeopt
from edgeopt.config import ConfigError, ExperimentConfig
from edgeopt.experiments import run_sweep
from edgeopt.metrics.activations import artifact_activation_bytes
from edgeopt.model import set_deterministic
from edgeopt.plots import frontier
from edgeopt.runtimes.contract import Int8Options, Runtime
from edgeopt.runtimes.export import export_artifact, simulated_classes
from edgeopt.runtimes.integer_share import executed_macs, verify_label
from edgeopt.runtimes.registry import OWN, load_session, registered, runtime_named
from edgeopt.schema import PRECISIONS
from edgeopt.system.int8 import U8U8
from edgeopt.system.upstream import RuntimeUnavailable
from tests.artifacts import FOLDER, calibration_loader, require_runtime
from tests.conftest import striped_split
from tests.linear_runtime import NAME as FOREIGN
from tests.linear_runtime import installed

UNPROFILED = ("torch", "litert", FOREIGN)
EVERY = (*OWN, FOREIGN)
SHAPE = (1, 1, 28, 28)
HIDDEN, CLASSES = 8, 4


@pytest.fixture(autouse=True)
def foreign_runtime(tmp_path):
    with installed(tmp_path):
        yield


def linear_network():
    set_deterministic(0)
    layers = (nn.Flatten(), nn.Linear(28 * 28, HIDDEN), nn.Linear(HIDDEN, CLASSES))
    return nn.Sequential(*layers).eval()


@pytest.fixture
def network():
    return linear_network()


@functools.cache
def exported(name):
    require_runtime(name)
    target = {"runtime": name, "precision": "fp32", "input_shape": SHAPE}
    return export_artifact(linear_network(), Path(FOLDER.name) / f"linear-{name}", **target)


def test_runtimes_are_told_apart():
    assert tuple(registered()) == EVERY
    found = [runtime_named(name) for name in EVERY]
    for fact in ("name", "title", "marker"):
        assert len({getattr(one, fact) for one in found}) == len(EVERY)
    assert [one.name for one in found] == list(EVERY)


@pytest.mark.parametrize("name", EVERY)
def test_a_runtime_says_what_it_runs(name):
    require_runtime(name)
    target = runtime_named(name)
    assert target.unavailable() == ""
    assert "fp32" in target.precisions
    assert set(target.precisions) <= set(PRECISIONS)
    assert target.suffix.startswith(".")


@pytest.mark.parametrize("name", EVERY)
def test_an_exported_file_gives_torchs_logits(name, network):
    artifact = exported(name)
    assert artifact.path.suffix == runtime_named(name).suffix
    images = striped_split(3, seed=2).take(1)
    with torch.no_grad():
        expected = network(images).numpy()
    session = load_session(artifact)
    np.testing.assert_allclose(session(images.numpy()), expected, rtol=1e-4, atol=1e-5)
    assert session.threads == 1
    with session.bound(images.numpy()) as call:
        call()


@pytest.mark.parametrize("name", EVERY)
def test_executed_macs_prove_the_label(name):
    artifact = exported(name)
    counts = [count.macs for count in executed_macs(artifact)]
    assert sum(counts) == 28 * 28 * HIDDEN + HIDDEN * CLASSES
    assert verify_label(artifact) == 0.0


@pytest.mark.parametrize("name", EVERY)
def test_weights_and_activations_are_counted(name, network):
    artifact = exported(name)
    parameters = 28 * 28 * HIDDEN + HIDDEN + HIDDEN * CLASSES + CLASSES
    # Exporters may keep the shape of a flattening beside the weights, and add the first bias,
    # multiplied by the second layer, to the second.
    counted = runtime_named(name).weight_bytes(artifact)
    assert 4 * (parameters - HIDDEN) <= counted <= 4 * parameters + 64
    assert artifact_activation_bytes(artifact, model=network) == 4 * (28 * 28 + HIDDEN)


@pytest.mark.filterwarnings("ignore")  # of a profiler that says it is experimental
@pytest.mark.parametrize("name", EVERY)
def test_layer_times_are_a_table_or_say_why_not(name):
    artifact, target = exported(name), runtime_named(name)
    if name in UNPROFILED:
        with pytest.raises(RuntimeUnavailable, match=r"^unavailable: "):
            target.layer_times(artifact, threads=1)
        return
    table = target.layer_times(artifact, threads=1)
    assert list(table) == ["layer", "op", "measured_ms", "share"]
    if table["measured_ms"].sum():  # profilers of whole microseconds may see none
        assert table["share"].sum() == pytest.approx(1)
    else:
        assert table["share"].isna().all()


@pytest.mark.parametrize("name", EVERY)
def test_options_are_refused_where_a_runtime_takes_none(name, network, tmp_path):
    options = {"options": Int8Options("percentile"), "input_shape": SHAPE}
    with pytest.raises(ValueError, match=f"{name} fp32 takes no options"):
        export_artifact(network, tmp_path / "m", runtime=name, precision="fp32", **options)


@pytest.mark.parametrize("name", [n for n in OWN if "int8" in runtime_named(n).precisions])
def test_a_scheme_is_for_runtimes_whose_integers_depend_on_the_cpu(name, network, tmp_path):
    options = {"options": Int8Options(scheme=U8U8), "calibration": calibration_loader()}
    request = {"runtime": name, "precision": "int8", "input_shape": SHAPE, **options}
    if runtime_named(name).takes_scheme:
        assert export_artifact(network, tmp_path / "m", **request).precision == "int8"
    else:
        with pytest.raises(ValueError, match=f"{name} takes float_layers alone"):
            export_artifact(network, tmp_path / "m", **request)


SIMULATED = [n for n in OWN if type(runtime_named(n)).simulated is not Runtime.simulated]


@pytest.mark.parametrize("name", SIMULATED)
def test_a_simulation_answers_as_the_file_does(name, network, tmp_path):
    require_runtime(name)
    how = {"runtime": name, "calibration": (*calibration_loader(),)}
    file = export_artifact(network, tmp_path / "int8", precision="int8", input_shape=SHAPE, **how)
    images = striped_split(70, seed=1).take(70)
    logits = load_session(file).score(images.numpy())
    simulated = runtime_named(name).simulated(
        network, calibration=how["calibration"], options=Int8Options()
    )
    told = simulated(images).detach().numpy()
    assert np.abs(told - logits).max() <= 0.02 * np.abs(logits).max()
    assert np.abs(told - network(images).detach().numpy()).max() > 0
    classes = simulated_classes(network, striped_split(70, seed=1), **how)
    assert (classes == told.argmax(1)).all()


def test_what_cannot_be_simulated_is_logged_and_left_to_the_file(network, monkeypatch, caplog):
    def fail(*_, **__):
        raise AssertionError("shape guard")

    monkeypatch.setattr(type(runtime_named("torch")), "simulated", fail)
    how = {"runtime": "torch", "calibration": calibration_loader()}
    with caplog.at_level("INFO"):
        assert simulated_classes(network, striped_split(8, seed=1), **how) is None
    assert "int8 of Sequential cannot be simulated: AssertionError: shape guard" in caplog.text


def test_a_runtime_that_writes_fast_has_no_simulation(network):
    how = {"runtime": "torch", "calibration": calibration_loader()}
    assert simulated_classes(network, striped_split(8, seed=1), **how) is None


def test_a_foreign_runtime_goes_through_a_sweep_into_the_table(network):
    loaders = [striped_split(64, seed=seed).loader(32) for seed in (3, 4)]
    counts = {"calibration_batches": 1, "benchmark_repeats": 2, "calls_per_round": 3}
    budgets = {"memory_budgets_mb": [1.0], "active_memory_budget_mb": 1.0}
    sweep = run_sweep(
        network,
        *loaders,
        device="cpu",
        pruning_levels=[0.0],
        precisions=["fp32", "int8"],
        power_watts=5.0,
        latency_multiplier=1.0,
        runtimes=["torch", FOREIGN],
        model="linear",
        **counts,
        **budgets,
    ).set_index(["runtime", "precision"])
    foreign, torchs = sweep.loc[(FOREIGN, "fp32")], sweep.loc[("torch", "fp32")]
    assert (foreign["status"], foreign["candidate"]) == ("ok", f"linear-p0-{FOREIGN}-fp32")
    assert foreign["accuracy"] == torchs["accuracy"]
    assert foreign["macs"] == torchs["macs"] == 28 * 28 * HIDDEN + HIDDEN * CLASSES
    assert foreign["latency_p50_ms"] > 0
    assert foreign["accepted"]
    assert (FOREIGN, "int8") not in sweep.index
    axes = frontier(sweep.reset_index())
    assert "NumPy" in [text.get_text() for text in axes.figure.legends[0].get_texts()]


def test_a_foreign_runtime_is_a_parameter_like_the_others():
    assert ExperimentConfig(runtimes=["torch", FOREIGN]).runtimes == ("torch", FOREIGN)
    with pytest.raises(ConfigError, match=f"'tvm'; allowed: torch, .*{FOREIGN}"):
        ExperimentConfig(runtimes=["tvm"])


def test_no_room_but_the_runtimes_own_says_a_runtimes_name():
    package = Path(edgeopt.__file__).parent
    said = [
        f"{path.relative_to(package)}:{node.lineno}"
        for path in package.rglob("*.py")
        if path.relative_to(package).parts[0] not in ("runtimes", "system")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Constant) and node.value in OWN
    ]
    assert said == []
