"""The ladder: specimens are mended, failures are rows, budgets out of reach say so."""

import copy

import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn

from edgeopt.data.splits import Split
from edgeopt.experiments import recovery as mending
from edgeopt.experiments import remedies
from edgeopt.experiments.candidates import artifact_of, grid, prepare_candidates
from edgeopt.experiments.recovery import (
    PARENT,
    Mended,
    MendedSpec,
    fallen,
    mend,
    mend_candidate,
    repair_fallen,
)
from edgeopt.experiments.sweep import candidate_table
from edgeopt.quantization.equalization import plant_collapse
from edgeopt.quantization.variants import quantization_aware_train
from edgeopt.runtimes.contract import Artifact
from edgeopt.runtimes.export import export_artifact
from edgeopt.runtimes.parity import ExportError
from edgeopt.runtimes.registry import load_session, session_logits
from tests.specimens import CLASSES, in_colour, splits, trained_cnn, trained_mobilenet

COLUMNS = [
    "remedy",
    "based_on",
    "accuracy",
    "accuracy_drop",
    "latency_ms",
    "artifact_bytes",
    "int8_mac_share",
    "reached",
    "error",
]


def mended(model: nn.Module, folder, *, colour: bool = False, **options) -> Mended:
    calibration, validation = splits()
    shaped = in_colour if colour else torch.clone
    batches = [(shaped(images), labels) for images, labels in calibration.loader(32)]
    return mend(
        model,
        **{
            "calibration_loader": batches,
            "validation": Split(shaped(validation.take(len(validation))), validation.labels),
            "max_accuracy_drop": 0.01,
            "folder": folder,
            "rounds": 1,
            "calls_per_round": 2,
            **options,
        },
    )


def accuracy_of(result: Mended) -> float:
    validation = splits()[1]
    session = load_session(result.artifact)
    predictions = session_logits(session, validation.take(len(validation)).numpy()).argmax(axis=1)
    return float((predictions == validation.labels.numpy()).mean())


def test_a_healthy_model_needs_one_rung(tmp_path) -> None:
    result = mended(trained_cnn(), tmp_path)
    assert result.reached
    assert list(result.ladder.columns) == COLUMNS
    assert result.ladder["remedy"].tolist() == [PARENT, "calibration: minmax"]
    assert result.ladder["reached"].tolist() == [False, True]
    assert result.ladder["int8_mac_share"].tolist() == [0, 1]
    assert (result.ladder["latency_ms"] > 0).all()
    assert result.ladder["artifact_bytes"].iloc[1] == result.artifact.path.stat().st_size
    assert result.diagnosis is None


@pytest.mark.parametrize(
    ("layer", "channels", "factor"),
    [("conv1", [3], 1e4), ("conv1", [0, 5], 1e4), ("conv1", [7], 1e6), ("conv2", [4, 8], 1e5)],
)
def test_specimens_collapse_and_are_mended(tmp_path, layer, channels, factor) -> None:
    planted = plant_collapse(trained_cnn(), layer, channels, factor)
    result = mended(planted, tmp_path)
    ladder = result.ladder.set_index("remedy")
    assert ladder.loc["calibration: minmax", "accuracy"] < 0.7
    assert result.reached
    assert result.ladder["accuracy_drop"].iloc[-1] <= 0.01
    assert result.ladder["int8_mac_share"].iloc[-1] == 1
    assert accuracy_of(result) == result.ladder["accuracy"].iloc[-1]


@pytest.mark.parametrize(
    ("layer", "channels"),
    [
        ("features.2.block.0.0", [5]),
        pytest.param("features.3.block.1.0", [5, 9], marks=pytest.mark.slow),
    ],
)
def test_mobilenet_specimens_collapse_and_are_mended(tmp_path, layer, channels) -> None:
    planted = plant_collapse(trained_mobilenet(), layer, channels, 1e5)
    result = mended(planted, tmp_path, colour=True)
    assert result.ladder["accuracy"].iloc[1] < 0.9
    assert result.reached
    assert result.ladder["accuracy_drop"].iloc[-1] <= 0.01


def test_every_remedy_is_tried_on_request(tmp_path) -> None:
    trained: list[nn.Module] = []

    def train_quantized(model: nn.Module) -> nn.Module:
        trained.append(model)
        return copy.deepcopy(model)

    planted = plant_collapse(trained_cnn(), "conv1", 3, 1e4)
    before = copy.deepcopy(planted.state_dict())
    result = mended(planted, tmp_path, exhaustive=True, train_quantized=train_quantized)
    names = result.ladder["remedy"].tolist()
    assert names == [
        PARENT,
        *(f"calibration: {method}" for method in ("minmax", "percentile", "entropy")),
        "equalization by weights",
        *(f"equalization by activations, {m}" for m in ("minmax", "percentile", "entropy")),
        "bias correction",
        "1 most sensitive layer in float",
        *[name for name in names if name.endswith("layers in float")],
        "dynamic",
        "quantization-aware training",
    ]
    ladder = result.ladder.set_index("remedy")
    whole_in_float = ladder.loc["2 most sensitive layers in float"]
    assert "computes no MAC in integers: it is not int8" in whole_in_float["error"]
    assert not whole_in_float["reached"]
    assert (ladder["error"] == "").sum() == len(ladder) - 1
    assert ladder.loc["1 most sensitive layer in float", "int8_mac_share"] < 1
    assert ladder.loc["equalization by weights", "reached"]
    alone = [name for name in names if not ladder.loc[name, "based_on"]]
    assert alone == names[: names.index("bias correction")]
    assert ladder.loc["bias correction", "based_on"] in alone[1:]
    assert ladder["based_on"].iloc[-1] in names[1:-1]
    assert result.artifact.path.name == "04-int8.onnx"  # the cheapest that reached, not the last
    assert len(trained) == 1
    assert result.diagnosis is not None
    assert all(torch.equal(value, before[name]) for name, value in planted.state_dict().items())


def test_leaving_the_worst_layer_in_float_mends_without_equalization(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(remedies, "equalize", lambda model, images=None: model)
    planted = plant_collapse(trained_cnn(), "conv1", 3, 1e4)
    result = mended(planted, tmp_path)
    assert result.reached
    assert result.ladder["remedy"].iloc[-1] == "1 most sensitive layer in float"
    worst = result.diagnosis.iloc[0]
    assert (worst["layer"], worst["worst_channel"]) == ("conv1", 3)


def test_a_budget_that_nothing_reaches_gives_the_best_attempt(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(remedies, "equalize", lambda model, images=None: model)
    planted = plant_collapse(trained_cnn(), "conv1", 3, 1e4)
    result = mended(planted, tmp_path, float_layers=())
    assert not result.reached
    assert not result.ladder["reached"].any()
    assert accuracy_of(result) == result.ladder["accuracy"].iloc[1:].max()


def test_a_remedy_that_fails_is_a_row_and_the_others_go_on(tmp_path) -> None:
    def train_quantized(model: nn.Module) -> nn.Module:
        raise ExportError("no such operator")

    result = mended(
        trained_cnn(),
        tmp_path,
        exhaustive=True,
        float_layers=(1,),
        train_quantized=train_quantized,
    )
    last = result.ladder.iloc[-1]
    assert last["error"] == "no such operator"
    assert not last["reached"]
    failed = result.ladder["error"] != ""
    assert (result.ladder["latency_ms"].isna() == failed).all()
    assert result.ladder.set_index("remedy").loc["dynamic", "accuracy"] > 0.9


def test_no_remedy_at_all_is_an_error_that_lists_the_causes(tmp_path, monkeypatch) -> None:
    def only_fp32(*arguments: object, precision: str, **options: object) -> Artifact:
        if precision != "fp32":
            raise ExportError("unknown operator Foo")
        return export_artifact(*arguments, precision=precision, **options)

    monkeypatch.setattr(remedies, "export_artifact", only_fp32)
    with pytest.raises(ExportError, match=r"no remedy could be applied: .*unknown operator Foo"):
        mended(trained_cnn(), tmp_path)


def test_a_model_that_cannot_be_exported_is_refused(tmp_path) -> None:
    class Odd(nn.Module):
        def forward(self, images: torch.Tensor) -> torch.Tensor:
            return torch.linalg.eigvals(images[:, 0]).real[:, :CLASSES]

    with pytest.raises(ExportError, match=r"the fp32 model cannot be served: .*Odd"):
        mended(Odd().eval(), tmp_path)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_accuracy_drop": -0.1}, "max_accuracy_drop is -0.1; allowed"),
        ({"max_accuracy_drop": 1.0}, "max_accuracy_drop is 1.0"),
        ({"max_accuracy_drop": float("nan")}, "max_accuracy_drop is nan"),
        ({"max_accuracy_drop": True}, "max_accuracy_drop is True"),
        ({"calibration_loader": []}, "calibration set holds no images"),
    ],
)
def test_refuses_bad_requests(tmp_path, options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        mended(trained_cnn(), tmp_path, **options)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_quantization_aware_training_based_on_the_mended_weights(tmp_path) -> None:
    pytest.importorskip("executorch")
    loader = splits()[0].loader(32, shuffle=True)
    result = mended(
        plant_collapse(trained_cnn(), "conv1", 3, 1e4),
        tmp_path,
        exhaustive=True,
        float_layers=(),
        train_quantized=lambda model: quantization_aware_train(
            model, loader, epochs=1, learning_rate=1e-4, progress=False
        ),
    )
    last = result.ladder.iloc[-1]
    assert (last["remedy"], last["error"]) == ("quantization-aware training", "")
    assert last["reached"]


@pytest.fixture
def candidates(tmp_path):
    """fp32 and int8 of a sound network (seed 0) and of one that collapses (seed 1)."""
    calibration, validation = splits()
    planted = plant_collapse(trained_cnn(), "conv1", 3, 1e4)
    axes = ([0.0], ["fp32", "int8"], ["onnxruntime"])
    return prepare_candidates(
        [spec for seed in (0, 1) for spec in grid(*axes, seed=seed)],
        models={("small_cnn", 0, 0.0): trained_cnn(), ("small_cnn", 1, 0.0): planted},
        calibration={"small_cnn": calibration.loader(32)},
        validation={"small_cnn": validation},
        directory=tmp_path,
    )


CHEAP = {"max_accuracy_drop": 0.01, "rounds": 2, "calls_per_round": 3}


def test_what_fell_is_found_and_its_mended_candidate_is_a_row_of_its_own(candidates, tmp_path):
    [broken] = fallen(candidates, max_accuracy_drop=0.01)
    assert (broken.spec.seed, broken.spec.precision) == (1, "int8")
    calibration, validation = splits()
    planted = plant_collapse(trained_cnn(), "conv1", 3, 1e4)
    options = {"calibration_loader": calibration.loader(32), **CHEAP}
    whole, mended = mend_candidate(broken, planted, validation, directory=tmp_path, **options)
    assert whole.name == f"{broken.name}-repaired"
    assert whole.spec.remedy == mended.ladder.loc[mended.ladder["reached"], "remedy"].iloc[0]
    row = next(candidate_table([whole]).itertuples())
    assert row.accuracy >= candidates[2].facts["accuracy"] - 0.01 > broken.facts["accuracy"]
    found = artifact_of(row, tmp_path, input_shape=(1, 1, 28, 28))
    answers = session_logits(load_session(found), validation.take(len(validation)).numpy()).argmax(
        1
    )
    assert row.accuracy == np.mean(answers == validation.labels.numpy())
    assert (row.agreement > 0.9, row.int8_mac_share > 0.9) == (True, True)


def test_nothing_fell_where_the_drop_is_allowed(candidates):
    assert fallen(candidates, max_accuracy_drop=0.99) == []


def test_the_best_attempt_is_named_where_no_remedy_reached(candidates, tmp_path, monkeypatch):
    ladder = pd.DataFrame(
        {
            "remedy": ["none (fp32)", "first", "best", "failed"],
            "accuracy": [0.9, 0.3, 0.5, np.nan],
            "reached": False,
        }
    )
    short = Mended(candidates[1].artifact, trained_cnn(), False, ladder, None)
    monkeypatch.setattr(mending, "mend", lambda *_, **__: short)
    result, _ = mend_candidate(candidates[1], trained_cnn(), splits()[1], directory=tmp_path)
    assert result.spec.remedy == "best"


def test_a_mended_dynamic_artifact_says_so():
    spec = MendedSpec(0.0, "int8-dynamic", "onnxruntime", model="net", remedy="dynamic")
    assert spec.name == "net-p0-onnxruntime-int8-dynamic-repaired"


def test_repair_fallen_repairs_every_seed_of_a_network_of_which_one_fell(candidates, tmp_path):
    calibration, validation = splits()
    planted = plant_collapse(trained_cnn(), "conv1", 3, 1e4)
    models = {("small_cnn", 0, 0.0): trained_cnn(), ("small_cnn", 1, 0.0): planted}
    options = {
        "validation": {"small_cnn": validation},
        "calibration": {"small_cnn": calibration.loader(32)},
        "max_accuracy_drop": 0.01,
        "directory": tmp_path,
    }
    repairs = repair_fallen(candidates, models, **options)
    assert [r.candidate.spec.seed for r in repairs] == [0, 1]
    assert {r.candidate.name for r in repairs} == {f"{candidates[1].name}-repaired"}
    assert [r.file_stem[-5:] for r in repairs] == ["seed0", "seed1"]
    assert repairs[1].candidate.facts["accuracy"] > candidates[3].facts["accuracy"] + 0.2
    assert repairs[1].ladder["reached"].any()
    assert repair_fallen(candidates, models, **options, batch_size=4) == []
    assert repair_fallen(candidates[:2], models, **options) == []
