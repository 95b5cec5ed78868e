"""Recovery of int8: specimens are repaired, failures are rows, budgets out of reach say so."""

import copy
import pickle
from concurrent.futures import Executor, Future
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn

from edgeopt.data.splits import Split
from edgeopt.experiments.candidates.candidate import (
    CandidateSpec,
    artifact_of,
    grid,
)
from edgeopt.experiments.candidates.preparing import prepare_candidates
from edgeopt.experiments.recovery import attempts, remedies
from edgeopt.experiments.recovery.recover import PARENT, Recovery, recover_int8
from edgeopt.experiments.recovery.remedies import AS_IT_IS, Rewrites
from edgeopt.experiments.recovery.repairs import (
    collapsed,
    recover_candidate,
    recover_collapsed,
    recovery_notes,
)
from edgeopt.experiments.sweep import candidate_table
from edgeopt.model.networks import SmallCNN
from edgeopt.quantization import planting
from edgeopt.quantization.variants import quantization_aware_train
from edgeopt.runtimes.contract import Artifact, ArtifactError, ExportError, Int8Options
from edgeopt.runtimes.export import export_artifact
from edgeopt.runtimes.integer_share import labelled, verify_label
from edgeopt.runtimes.registry import load_session
from edgeopt.system.int8 import U8S8_REDUCED
from tests.artifacts import require_runtime
from tests.networks import OwnLayers, SamePadded
from tests.specimens import CLASSES, in_colour, splits, trained_cnn, trained_mobilenet

COLUMNS = [
    "remedy",
    "based_on",
    "accuracy",
    "macro_f1",
    "images",
    "simulated",
    "quality_drop",
    "latency_ms",
    "artifact_bytes",
    "int8_mac_share",
    "reached",
    "error",
]


def plant_collapse(model: nn.Module, layer: str, channels, factor: float) -> nn.Module:
    example = splits()[1].take(1)
    example = example if isinstance(model, SmallCNN) else in_colour(example)
    return planting.plant_collapse(model, layer, channels, factor, example=example)


def recovered(model: nn.Module, folder, *, colour: bool = False, **options) -> Recovery:
    calibration, validation = splits()
    shaped = in_colour if colour else torch.clone
    batches = [(shaped(images), labels) for images, labels in calibration.loader(32)]
    return recover_int8(
        model,
        **{
            "calibration": batches,
            "validation": Split(shaped(validation.take(len(validation))), validation.labels),
            "max_drop": 0.01,
            "folder": folder,
            "runtime": "onnxruntime",
            "rounds": 1,
            "calls_per_round": 2,
            **options,
        },
    )


def accuracy_of(result: Recovery) -> float:
    validation = splits()[1]
    session = load_session(result.selected.artifact)
    predictions = session.score(validation.take(len(validation)).numpy()).argmax(axis=1)
    return float((predictions == validation.labels.numpy()).mean())


def test_a_sound_model_needs_one_remedy(tmp_path) -> None:
    result = recovered(trained_cnn(), tmp_path)
    assert result.reached
    assert list(result.attempts.columns) == COLUMNS
    assert result.attempts["remedy"].tolist() == [PARENT, AS_IT_IS]
    assert result.attempts["reached"].tolist() == [False, True]
    assert result.attempts["int8_mac_share"].tolist() == [0, 1]
    assert (result.attempts["latency_ms"] > 0).all()
    assert result.attempts["artifact_bytes"].iloc[1] == result.selected.artifact.path.stat().st_size


@pytest.mark.parametrize(
    ("layer", "channels", "factor"),
    [("conv1", [3], 1e4), ("conv1", [0, 5], 1e4), ("conv1", [7], 1e6), ("conv2", [4, 8], 1e5)],
)
def test_specimens_collapse_and_are_repaired(tmp_path, layer, channels, factor) -> None:
    planted = plant_collapse(trained_cnn(), layer, channels, factor)
    result = recovered(planted, tmp_path)
    attempts = result.attempts.set_index("remedy")
    assert attempts.loc[AS_IT_IS, "accuracy"] < 0.7
    assert result.attempts["remedy"].iloc[-1] == "channel groups rescaled"
    assert result.reached
    assert result.attempts["quality_drop"].iloc[-1] <= 0.01
    assert result.attempts["int8_mac_share"].iloc[-1] == 1
    assert accuracy_of(result) == result.attempts["accuracy"].iloc[-1]


@pytest.mark.parametrize(
    ("layer", "channels"),
    [
        ("features.2.block.0.0", [5]),
        pytest.param("features.4.block.0.0", [2, 7], marks=pytest.mark.slow),
    ],
)
def test_mobilenet_specimens_collapse_and_are_repaired(tmp_path, layer, channels) -> None:
    planted = plant_collapse(trained_mobilenet(), layer, channels, 1e5)
    result = recovered(planted, tmp_path, colour=True)
    assert result.attempts["accuracy"].iloc[1] < 0.9
    assert result.reached
    assert result.attempts["quality_drop"].iloc[-1] <= 0.01


@pytest.mark.parametrize("runtime", ["torch", "executorch", "openvino", "litert"])
def test_every_runtime_is_repaired_by_the_same_rewrite(tmp_path, runtime) -> None:
    require_runtime(runtime)
    result = recovered(plant_collapse(trained_cnn(), "conv1", 3, 1e4), tmp_path, runtime=runtime)
    assert result.attempts["accuracy"].iloc[1] < 0.7
    assert result.attempts["remedy"].iloc[-1] == "channel groups rescaled"
    assert (result.reached, result.attempts["int8_mac_share"].iloc[-1]) == (True, 1)


@pytest.mark.parametrize(
    "runtime",
    ["onnxruntime", *(pytest.param(name, marks=pytest.mark.slow) for name in ("torch", "litert"))],
)
@pytest.mark.parametrize(
    ("layer", "channels", "factor", "remedy"),
    [
        ("features.5.block.3.0", [5], 1e3, "channel groups rescaled"),  # a residual stream
        ("features.0.0", [2], 1e4, "scales inserted"),  # Hardswish behind it
    ],
)
def test_what_is_no_chain_is_repaired_too(tmp_path, layer, channels, factor, remedy, runtime):
    require_runtime(runtime)
    planted = plant_collapse(trained_mobilenet(), layer, channels, factor)
    result = recovered(planted, tmp_path, colour=True, runtime=runtime)
    assert result.attempts["accuracy"].iloc[1] < 0.9
    assert result.attempts["remedy"].iloc[-1] == remedy
    assert (result.reached, result.attempts["int8_mac_share"].iloc[-1]) == (True, 1)


@pytest.mark.parametrize("runtime", ["torch", "onnxruntime", "executorch", "litert"])
def test_a_runtime_leaves_layers_in_float_by_name_and_says_so(tmp_path, runtime) -> None:
    require_runtime(runtime)
    loader = splits()[0].loader(32)
    exported = export_artifact(
        trained_cnn(),
        tmp_path / "mixed",
        runtime=runtime,
        precision="int8",
        input_shape=(1, 1, 28, 28),
        calibration=loader,
        options=Int8Options(float_layers=frozenset({"conv1"})),
    )
    mixed = labelled(exported)
    assert mixed.precision == "int8-mixed"
    assert 0 < verify_label(mixed) < 0.95
    with pytest.raises(ArtifactError, match="it is not int8, which takes at least 95%"):
        verify_label(exported)


@pytest.mark.parametrize(
    ("drop", "agreement", "refused"),
    [
        (0.055, 0.945, True),  # all that changed became wrong; the bound is 0.044
        (0.055, 0.8, False),  # as many changed as after a training; the bound is 0.075
        (0.7, 0.2, True),
        (0.03, 0.97, False),  # 8 of 256 images
    ],
)
def test_a_few_images_refuse_only_what_is_surely_too_low(drop, agreement, refused) -> None:
    nothing = dict.fromkeys(("runtime", "validation", "rewrites", "scheme"))
    judge = attempts.Judge(**nothing, threads=1, files=iter(()), max_drop=0.01, known={})
    screened = attempts.Attempt(None, drop=drop, agreement=agreement, images=256)
    assert judge.falls_short(screened) is refused


def test_what_a_simulation_says_falls_gets_no_file(tmp_path) -> None:
    require_runtime("executorch")
    planted = plant_collapse(trained_cnn(), "conv1", 3, 1e4)
    found = recovered(planted, tmp_path, runtime="executorch").attempts
    assert found["simulated"].tolist() == [False, True, False]
    assert found["artifact_bytes"].isna().tolist() == [False, True, False]
    assert found["latency_ms"].isna().tolist() == [False, True, False]
    assert found["reached"].tolist() == [False, False, True]
    assert len([*tmp_path.iterdir()]) == 2


def test_what_is_selected_has_a_file_whatever_a_simulation_says(tmp_path, monkeypatch) -> None:
    trained = []

    def train(model):
        trained.append(copy.deepcopy(model))
        return trained[-1]

    def nearly_blind(model, split, **_):
        right = round((0.5 if any(model is own for own in trained) else 0.3) * len(split))
        labels = split.labels.numpy()
        return np.where(np.arange(len(split)) < right, labels, (labels + 1) % CLASSES)

    monkeypatch.setattr(attempts, "simulated_classes", nearly_blind)
    options = {"train_quantized": train, "float_layers": (), "runtime": "openvino"}
    result = recovered(trained_cnn(), tmp_path, **options)
    told = result.attempts.set_index("remedy")["simulated"]
    assert not told["quantization-aware training"]
    assert told[AS_IT_IS]
    assert told.sum() == len(told) - 2
    assert result.selected.remedy.name == "quantization-aware training"
    assert accuracy_of(result) == result.selected.accuracy > 0.9
    assert len(trained) == 1


def test_a_layer_that_is_not_there_is_named(tmp_path) -> None:
    options = Int8Options(float_layers=frozenset({"conv9"}))
    with pytest.raises(ValueError, match="float layers hold 'conv9', no module of SmallCNN"):
        export_artifact(
            trained_cnn(),
            tmp_path / "mixed",
            runtime="torch",
            precision="int8",
            input_shape=(1, 1, 28, 28),
            calibration=splits()[0].loader(32),
            options=options,
        )


def test_every_remedy_is_tried_on_request(tmp_path) -> None:
    trained: list[nn.Module] = []

    def train_quantized(model: nn.Module) -> nn.Module:
        trained.append(model)
        return copy.deepcopy(model)

    planted = plant_collapse(trained_cnn(), "conv1", 3, 1e4)
    before = copy.deepcopy(planted.state_dict())
    result = recovered(planted, tmp_path, exhaustive=True, train_quantized=train_quantized)
    names = result.attempts["remedy"].tolist()
    assert names == [
        PARENT,
        AS_IT_IS,
        "channel groups rescaled",
        *(f"calibration: {method}" for method in ("percentile", "entropy")),
        "bias correction",
        "1 noisiest layer in float",
        "quantization-aware training",
        "dynamic",
        *[name for name in names if name.endswith("layers in float")],
    ]
    attempts = result.attempts.set_index("remedy")
    whole_in_float = attempts.loc["2 noisiest layers in float"]
    assert "computes no MAC in integers: it is not int8" in whole_in_float["error"]
    assert not whole_in_float["reached"]
    assert (attempts["error"] == "").sum() == len(attempts) - 1
    assert attempts.loc["1 noisiest layer in float", "int8_mac_share"] < 1
    assert attempts.loc["channel groups rescaled", "reached"]
    alone = [name for name in names if not attempts.loc[name, "based_on"]]
    assert alone == names[: names.index("bias correction")]
    assert attempts.loc["bias correction", "based_on"] in alone[1:]
    assert attempts["based_on"].iloc[-1] in names[1:-1]
    # the cheapest that reached, not the last
    assert result.selected.remedy.name == "channel groups rescaled"
    assert len(trained) == 1
    assert all(torch.equal(value, before[name]) for name, value in planted.state_dict().items())


def test_leaving_the_worst_layer_in_float_recovers_without_equalization(
    tmp_path, monkeypatch
) -> None:
    monkeypatch.setattr(remedies, "equalize", lambda model, **options: model)
    planted = plant_collapse(trained_cnn(), "conv1", 3, 1e4)
    result = recovered(planted, tmp_path)
    assert result.reached
    assert result.attempts["remedy"].iloc[-1] == "1 noisiest layer in float"
    assert result.attempts["int8_mac_share"].iloc[-1] < 1


@pytest.mark.parametrize("cured", [True, False])
def test_training_keeps_all_in_integers_where_a_layer_in_float_would_not(
    tmp_path, monkeypatch, cured: bool
) -> None:
    monkeypatch.setattr(remedies, "equalize", lambda model, **options: model)
    planted = plant_collapse(trained_cnn(), "conv1", 3, 1e4)

    def train_quantized(model: nn.Module) -> nn.Module:
        return trained_cnn() if cured else copy.deepcopy(model)

    result = recovered(planted, tmp_path, train_quantized=train_quantized)
    left, trained = "1 noisiest layer in float", "quantization-aware training"
    assert result.attempts["remedy"].tolist()[-2:] == [left, trained]  # and no dynamic ranges
    assert result.attempts.set_index("remedy").loc[left, "reached"]
    assert result.reached
    assert result.selected.remedy.name == (trained if cured else left)
    assert result.selected.artifact.precision == ("int8" if cured else "int8-mixed")


def test_a_budget_that_nothing_reaches_gives_the_best_attempt(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(remedies, "equalize", lambda model, **options: model)
    planted = plant_collapse(trained_cnn(), "conv1", 3, 1e4)
    result = recovered(planted, tmp_path, float_layers=())
    assert not result.reached
    assert not result.attempts["reached"].any()
    scored = result.attempts[result.attempts["images"] == len(splits()[1])].iloc[1:]
    assert scored.empty or accuracy_of(result) == scored["accuracy"].max()


def test_a_remedy_that_fails_is_a_row_and_the_others_go_on(tmp_path) -> None:
    def train_quantized(model: nn.Module) -> nn.Module:
        raise ExportError("no such operator")

    result = recovered(
        trained_cnn(),
        tmp_path,
        exhaustive=True,
        float_layers=(1,),
        train_quantized=train_quantized,
    )
    trained = result.attempts.set_index("remedy").loc["quantization-aware training"]
    assert trained["error"] == "no such operator"
    assert not trained["reached"]
    failed = result.attempts["error"] != ""
    assert (result.attempts["latency_ms"].isna() == failed).all()
    assert result.attempts.set_index("remedy").loc["dynamic", "accuracy"] > 0.9


def test_no_remedy_at_all_is_an_error_that_lists_the_causes(tmp_path, monkeypatch) -> None:
    def only_fp32(*arguments: object, precision: str, **options: object) -> Artifact:
        if precision != "fp32":
            raise ExportError("unknown operator Foo")
        return export_artifact(*arguments, precision=precision, **options)

    monkeypatch.setattr(attempts, "export_artifact", only_fp32)
    with pytest.raises(ExportError, match=r"no remedy could be applied: .*unknown operator Foo"):
        recovered(trained_cnn(), tmp_path)


def test_a_model_that_cannot_be_exported_is_refused(tmp_path) -> None:
    class Odd(nn.Module):
        def forward(self, images: torch.Tensor) -> torch.Tensor:
            return torch.linalg.eigvals(images[:, 0]).real[:, :CLASSES]

    with pytest.raises(ExportError, match=r"the fp32 model cannot be served: .*Odd"):
        recovered(Odd().eval(), tmp_path)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_drop": -0.1}, "max_drop is -0.1; allowed"),
        ({"max_drop": 1.1}, "max_drop is 1.1"),
        ({"max_drop": float("nan")}, "max_drop is nan"),
        ({"max_drop": True}, "max_drop is True"),
        ({"calibration": []}, "calibration set holds no images"),
    ],
)
def test_refuses_bad_requests(tmp_path, options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        recovered(trained_cnn(), tmp_path, **options)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_quantization_aware_training_based_on_the_equalized_weights(tmp_path) -> None:
    pytest.importorskip("executorch")
    loader = splits()[0].loader(32, shuffle=True)
    result = recovered(
        plant_collapse(trained_cnn(), "conv1", 3, 1e4),
        tmp_path,
        exhaustive=True,
        float_layers=(),
        train_quantized=lambda model: quantization_aware_train(
            model, loader, epochs=1, learning_rate=1e-4, progress=False
        ),
    )
    trained = result.attempts.set_index("remedy").loc["quantization-aware training"]
    assert trained["error"] == ""
    assert trained["reached"]


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


CHEAP = {"max_drop": 0.01, "rounds": 2, "calls_per_round": 3}


@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")  # SamePadded asks for sizes
@pytest.mark.parametrize("runtime", ["torch", "onnxruntime"])
@pytest.mark.parametrize("kind", [OwnLayers, SamePadded])
def test_every_remedy_takes_a_network_of_its_own_layers(kind, runtime, tmp_path):
    torch.manual_seed(0)
    untrained = kind().eval()
    tried = recovered(
        *(untrained, tmp_path), colour=True, runtime=runtime, exhaustive=True, float_layers=(1,)
    ).attempts.set_index("remedy")
    assert {"channel groups rescaled", "bias correction", "1 noisiest layer in float"} <= {
        *tried.index
    }
    assert [*tried["error"].unique()] == [""]
    whole, left = tried["int8_mac_share"][["channel groups rescaled", "1 noisiest layer in float"]]
    assert whole == 1
    assert left < 1


def test_collapsed_is_found_and_its_repaired_candidate_is_a_row_of_its_own(candidates, tmp_path):
    [broken] = collapsed(candidates, max_drop=0.01)
    assert (broken.spec.seed, broken.spec.precision) == (1, "int8")
    calibration, validation = splits()
    planted = plant_collapse(trained_cnn(), "conv1", 3, 1e4)
    rewrites = Rewrites(planted, calibration=calibration.loader(32))
    found = recover_candidate(broken.spec, rewrites, validation, directory=tmp_path, **CHEAP)
    whole, tried = found.candidate, found.attempts
    assert whole.name == f"{broken.name}-repaired"
    assert whole.spec.remedy == tried.loc[tried["reached"], "remedy"].iloc[0]
    row = next(candidate_table([whole]).itertuples())
    assert row.accuracy >= candidates[2].facts["accuracy"] - 0.01 > broken.facts["accuracy"]
    artifact = artifact_of(row, tmp_path, input_shape=(1, 1, 28, 28))
    images = validation.take(len(validation)).numpy()
    answers = load_session(artifact).score(images).argmax(1)
    assert row.accuracy == np.mean(answers == validation.labels.numpy())
    assert (row.agreement > 0.9, row.int8_mac_share > 0.9) == (True, True)


def test_collapsed_counts_accuracy_and_macro_f1_where_the_images_tell(candidates):
    fp32, int8 = candidates[2:4]
    assert (fp32.spec.precision, int8.spec.precision) == ("fp32", "int8")
    parent = replace(fp32, facts={**fp32.facts, "accuracy": 0.9, "macro_f1": 0.88})

    def fallen(accuracy, macro_f1, agreement=1.0):
        facts = {"accuracy": accuracy, "macro_f1": macro_f1, "agreement": agreement}
        own = replace(int8, facts={**int8.facts, **facts}, logits=np.zeros((400, 4)))
        return [c.spec for c in collapsed([parent, own], max_drop=0.01)]

    assert fallen(0.9, 0.88) == fallen(0.89, 0.87) == fallen(0.91, 0.87) == []
    assert fallen(0.88, 0.88) == fallen(0.91, 0.86) == [int8.spec]
    # Of 400 images 4% have another answer: 0.01 by one standard error of chance, 0.016 by 1.645.
    assert fallen(0.9, 0.855, agreement=0.96) == []
    assert fallen(0.9, 0.853, agreement=0.96) == [int8.spec]
    assert fallen(0.885, 0.88, agreement=0.96) == [int8.spec]  # accuracy counts as it is


def test_collapsed_is_empty_where_the_drop_is_allowed(candidates):
    assert collapsed(candidates, max_drop=0.99) == []


def test_recover_candidate_names_the_best_remedy_where_none_reached(
    candidates, tmp_path, monkeypatch
):
    monkeypatch.setattr(remedies, "equalize", lambda model, **options: model)
    planted = plant_collapse(trained_cnn(), "conv1", 3, 1e4)
    calibration, validation = splits()
    options = {"float_layers": (), "directory": tmp_path, **CHEAP}
    spec, rewrites = candidates[3].spec, Rewrites(planted, calibration=calibration.loader(32))
    found = recover_candidate(spec, rewrites, validation, **options)
    tried = found.attempts.iloc[1:]
    assert not tried["reached"].any()
    assert found.candidate.name.endswith("-closest")
    note = recovery_notes(candidates, [found], max_drop=0.01)[spec.name]
    assert f"was not recovered: {found.candidate.spec.remedy} came closest" in note
    assert found.candidate.spec.remedy in set(tried["remedy"])
    session = load_session(found.candidate.artifact)
    answers = session.score(validation.take(len(validation)).numpy()).argmax(1)
    assert found.candidate.facts["accuracy"] == np.mean(answers == validation.labels.numpy())


class Projected(nn.Module):
    """A network most of whose work is a product with a constant, which torch leaves in float."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.head = nn.Conv2d(1, 4, 3), nn.Linear(4 * 26 * 26, CLASSES)
        self.register_buffer("bank", torch.ones(28, 200))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        hidden = torch.relu(self.layer(images))
        projected = torch.einsum("bhw,wk->bhk", images[:, 0], self.bank).mean((1, 2))
        return self.head(hidden.flatten(1)) + projected.unsqueeze(1)


def test_int8_that_is_mostly_float_is_named_by_its_share(tmp_path):
    calibration, validation = splits()
    torch.manual_seed(0)
    [mixed] = prepare_candidates(
        grid([0.0], ["int8"], ["torch"], model="net"),
        models={("net", 0, 0.0): Projected().eval()},
        calibration={"net": calibration.loader(32)},
        validation={"net": validation},
        directory=tmp_path,
    )
    assert mixed.error == ""
    share = mixed.facts["int8_mac_share"]
    assert 0 < share < 0.95
    assert mixed.name == f"net-p0-torch-int8-mixed-{int(100 * share)}"
    assert mixed.artifact.path.name == f"{mixed.name}.pt"
    assert (tmp_path / mixed.facts["artifact"]).is_file()
    assert load_session(mixed.artifact).score(validation.take(2).numpy()).shape == (2, CLASSES)


def test_a_repaired_dynamic_artifact_says_so():
    spec = CandidateSpec(0.0, "int8-dynamic", "onnxruntime", model="net", remedy="dynamic")
    assert spec.name == "net-p0-onnxruntime-int8-dynamic-repaired"


def test_recover_collapsed_repairs_every_seed_of_a_network_of_which_one_fell(candidates, tmp_path):
    calibration, validation = splits()
    planted = plant_collapse(trained_cnn(), "conv1", 3, 1e4)
    models = {("small_cnn", 0, 0.0): trained_cnn(), ("small_cnn", 1, 0.0): planted}
    options = {
        "validation": {"small_cnn": validation},
        "calibration": {"small_cnn": calibration.loader(32)},
        "max_drop": 0.01,
        "directory": tmp_path,
    }
    found = recover_collapsed(candidates, models, **options)
    assert [r.candidate.spec.seed for r in found] == [0, 1]
    assert {r.candidate.name for r in found} == {f"{candidates[1].name}-repaired"}
    assert [r.file_stem[-5:] for r in found] == ["seed0", "seed1"]
    assert found[1].candidate.facts["accuracy"] > candidates[3].facts["accuracy"] + 0.2
    assert found[1].attempts["reached"].any()
    notes = recovery_notes(candidates, found, max_drop=0.01)
    assert notes == {candidates[3].name: f"int8 collapsed; recovered as {found[0].candidate.name}"}
    lost = recovery_notes(candidates, [], max_drop=0.01)
    assert lost == {candidates[3].name: "int8 collapsed and was not recovered"}
    assert recover_collapsed(candidates, models, **options, batch_size=4) == []
    assert recover_collapsed(candidates[:2], models, **options) == []


def test_recover_collapsed_trains_where_nothing_else_suffices(candidates, tmp_path, monkeypatch):
    monkeypatch.setattr(remedies, "equalize", lambda model, **options: model)
    monkeypatch.setattr(remedies, "_float_layers", lambda *_, **options: iter(()))
    calibration, validation = splits()
    options = {
        "validation": {"small_cnn": validation},
        "calibration": {"small_cnn": calibration.loader(32)},
        "max_drop": 0.01,
        "directory": tmp_path,
        "train_quantized": {"small_cnn": lambda model: trained_cnn()},
    }
    planted = {("small_cnn", 1, 0.0): plant_collapse(trained_cnn(), "conv1", 3, 1e4)}
    [found] = recover_collapsed(candidates[2:], planted, **options)
    assert found.candidate.spec.remedy == "quantization-aware training"
    assert found.candidate.name.endswith("int8-repaired")
    tried = found.attempts["remedy"].tolist()
    assert tried[-1] == "quantization-aware training"
    assert "bias correction" in tried


class Elsewhere(Executor):
    """Hands over what it is given, and hands it back, as another process would."""

    def submit(self, task, job):
        done = Future()
        done.set_result(_carried(_carried(task)(_carried(job))))
        return done


def _carried(thing):
    return pickle.loads(pickle.dumps(thing))


def test_recover_collapsed_gives_the_same_elsewhere_and_makes_nothing_twice(
    candidates, tmp_path, monkeypatch
):
    exported = []

    def noted(model, path, **options):
        exported.append((options["runtime"], options["precision"]))
        return export_artifact(model, path, **options)

    monkeypatch.setattr(attempts, "export_artifact", noted)
    calibration, validation = splits()
    planted = plant_collapse(trained_cnn(), "conv1", 3, 1e4)
    models = {("small_cnn", 0, 0.0): trained_cnn(), ("small_cnn", 1, 0.0): planted}
    options = {
        "validation": {"small_cnn": validation},
        "calibration": {"small_cnn": calibration.loader(32)},
        "max_drop": 0.01,
        "directory": tmp_path,
    }
    here = recover_collapsed(candidates, models, **options)
    assert exported == [("onnxruntime", "int8")]
    there = recover_collapsed(candidates, models, **options, executor=Elsewhere())
    assert [r.candidate.spec for r in there] == [r.candidate.spec for r in here]
    for one, other in zip(here, there, strict=True):
        assert one.candidate.facts == other.candidate.facts
        pd.testing.assert_frame_equal(one.attempts, other.attempts)


def test_runtimes_that_share_a_file_have_one_each_once_it_is_named(tmp_path, monkeypatch):
    require_runtime("openvino")
    monkeypatch.setattr(remedies, "equalize", lambda model, **options: model)
    calibration, validation = splits()
    planted = {("small_cnn", 0, 0.0): plant_collapse(trained_cnn(), "conv1", 3, 1e4)}
    options = {
        "validation": {"small_cnn": validation},
        "calibration": {"small_cnn": calibration.loader(32)},
        "directory": tmp_path,
    }
    specs = grid([0.0], ["fp32", "int8"], ["onnxruntime", "openvino"])
    tried = prepare_candidates(specs, models=planted, **options)
    found = recover_collapsed(tried, planted, max_drop=0.01, **options)
    made = [repair.candidate for repair in found]
    assert [c.spec.precision for c in made] == ["int8-mixed"] * 2
    for candidate in made:
        assert candidate.artifact.path.stem == candidate.name
        assert (tmp_path / candidate.facts["artifact"]).is_file()
        load_session(candidate.artifact)


@pytest.mark.parametrize(("runtime", "steps"), [("onnxruntime", 64), ("torch", 127)])
def test_biases_are_corrected_for_the_weights_of_the_runtimes_files(
    runtime, steps, tmp_path, monkeypatch
):
    calibration, validation = splits()
    asked = []

    def recorded(model, *, calibration, weight_steps):
        asked.append(weight_steps)
        return model

    monkeypatch.setattr(remedies, "correct_bias", recorded)
    recover_int8(
        trained_cnn(),
        calibration=calibration.loader(32),
        validation=validation.first(32),
        max_drop=0.5,
        folder=tmp_path,
        runtime=runtime,
        scheme=U8S8_REDUCED,  # torch's files have 8-bit weights all the same
        float_layers=(),
        exhaustive=True,
        rounds=0,
    )
    assert asked == [steps]
