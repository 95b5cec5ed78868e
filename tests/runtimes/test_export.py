import copy
import hashlib
import math
import sys

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper
from torch import nn

from edgeopt.runtimes.contract import Artifact
from edgeopt.runtimes.export import export_artifact
from edgeopt.runtimes.formats.onnx_files import PARITY_BATCH, Int8Options, run_onnx
from edgeopt.runtimes.parity import ExportError, parity_images
from edgeopt.runtimes.registry import load_session
from edgeopt.runtimes.torch import FP16_TOLERANCE
from edgeopt.system.int8 import U8S8_REDUCED, U8U8
from edgeopt.system.upstream import RuntimeUnavailable
from tests.artifacts import (
    CLASSES,
    TARGETS,
    artifact_of,
    calibration_loader,
    require_runtime,
    trained_cnn,
)
from tests.conftest import striped_split

SHAPE = (1, 1, 28, 28)
LARGEST_ERROR = {"fp32": 1e-4, "fp16": 0.02, "bf16": 0.1}  # of logits of about 10


@pytest.mark.parametrize(("runtime", "precision"), TARGETS)
def test_every_target_computes_what_its_parent_does(runtime, precision):
    images = striped_split(64, seed=3).take(64)
    expected = trained_cnn()(images).detach().numpy()
    logits = load_session(artifact_of(runtime, precision)).score(images.numpy())
    assert logits.dtype == np.float32
    assert (logits.argmax(1) == expected.argmax(1)).mean() >= 0.97
    assert np.abs(logits - expected).max() <= LARGEST_ERROR.get(precision, 1.0)


@pytest.mark.parametrize(("runtime", "precision"), TARGETS)
def test_the_file_is_whole_and_described(runtime, precision):
    artifact = artifact_of(runtime, precision)
    content = artifact.path.read_bytes()
    assert artifact.sha256 == hashlib.sha256(content).hexdigest()
    assert artifact.size_bytes == len(content)
    assert artifact.input_shape == SHAPE
    assert artifact.path.name.startswith(f"cnn-p12.5-{runtime}-{precision}-1.")
    assert list(artifact.path.parent.glob("*.tmp")) == []


@pytest.mark.parametrize("runtime", ["torch", "onnxruntime"])
def test_int8_files_are_smaller(runtime):
    small, large = artifact_of(runtime, "int8"), artifact_of(runtime, "fp32")
    assert small.size_bytes < large.size_bytes


def test_the_model_is_left_alone(tmp_path):
    model = copy.deepcopy(trained_cnn()).train()
    before = copy.deepcopy(model.state_dict())
    for runtime in ("torch", "onnxruntime"):
        export(model, tmp_path / runtime, runtime=runtime, precision="int8")
    assert model.training
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def export(model, path, *, runtime="onnxruntime", precision="fp32", **options):
    options = {"calibration": calibration_loader(), "input_shape": SHAPE, **options}
    return export_artifact(model, path, runtime=runtime, precision=precision, **options)


def test_same_model_same_bytes_and_suffix_only_where_missing(tmp_path):
    first = export(trained_cnn(), tmp_path / "deep" / "a.onnx")
    second = export(trained_cnn(), tmp_path / "b-p12.5")
    assert first.sha256 == second.sha256
    assert [first.path.name, second.path.name] == ["a.onnx", "b-p12.5.onnx"]


def traced_from_afar(depth: int, *arguments, **options):
    if depth:
        return traced_from_afar(depth - 1, *arguments, **options)
    return export(*arguments, **options)


@pytest.mark.parametrize(("runtime", "precision"), TARGETS)
def test_the_same_network_is_the_same_bytes_from_anywhere(runtime, precision, tmp_path):
    some, others = (
        traced_from_afar(depth, trained_cnn(), path, runtime=runtime, precision=precision)
        for depth, path in ((0, tmp_path / "a"), (7, tmp_path / "deep" / "another-name"))
    )
    assert some.path.read_bytes() == others.path.read_bytes()


def test_torch_int8_is_exported_in_deterministic_mode(tmp_path):
    torch.use_deterministic_algorithms(True)
    try:
        assert export(trained_cnn(), tmp_path / "m", runtime="torch", precision="int8").size_bytes
    finally:
        torch.use_deterministic_algorithms(False)


@pytest.mark.parametrize("precision", ["fp32", "int8"])
def test_onnx_takes_any_batch(precision):
    images = striped_split(5, seed=4).take(5)
    assert run_onnx(artifact_of("onnxruntime", precision).path, images).shape == (5, CLASSES)


def initializers(path):
    return {t.name: numpy_helper.to_array(t) for t in onnx.load(path).graph.initializer}


def test_static_int8_has_a_scale_per_channel_and_unsigned_activations():
    path = artifact_of("onnxruntime", "int8").path
    nodes = [n for n in onnx.load(path).graph.node if n.op_type == "QuantizeLinear"]
    tensors = initializers(path)
    scales = sorted(v.size for k, v in tensors.items() if k.endswith("weight_scale"))
    assert scales == [CLASSES, 6, 8]
    assert {tensors[node.input[2]].dtype for node in nodes} == {np.dtype("uint8")}


@pytest.mark.parametrize(
    ("scheme", "dtype", "largest"), [(U8S8_REDUCED, "int8", 64), (U8U8, "uint8", 255)]
)
def test_the_scheme_decides_the_weights(tmp_path, scheme, dtype, largest):
    options = Int8Options(scheme=scheme)
    artifact = export(trained_cnn(), tmp_path / "m", precision="int8", options=options)
    weights = [v for k, v in initializers(artifact.path).items() if k.endswith("weight_quantized")]
    assert {weight.dtype for weight in weights} == {np.dtype(dtype)}
    assert max(np.abs(weight.astype(int)).max() for weight in weights) <= largest


def test_without_a_scheme_the_weights_suit_this_machine(tmp_path, monkeypatch):
    monkeypatch.setattr("edgeopt.system.int8.host_facts", lambda: {"isa": ["avx2"]})
    artifact = export(trained_cnn(), tmp_path / "m", precision="int8")
    weights = [v for k, v in initializers(artifact.path).items() if k.endswith("weight_quantized")]
    assert max(np.abs(weight.astype(int)).max() for weight in weights) <= 64


@pytest.mark.parametrize("method", ["percentile", "entropy"])
def test_calibration_methods_choose_other_ranges(tmp_path, method, capsys):
    images = striped_split(64, seed=3).take(64)
    options = Int8Options(calibration=method)
    artifact = export(trained_cnn(), tmp_path / "m", precision="int8", options=options)
    logits = run_onnx(artifact.path, images)
    assert artifact.sha256 != artifact_of("onnxruntime", "int8").sha256
    assert (logits.argmax(1) == trained_cnn()(images).argmax(1).numpy()).mean() >= 0.97
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize("runtime", ["onnxruntime", "openvino", "executorch"])
def test_parity_is_a_hard_error_that_leaves_the_old_file(tmp_path, runtime):
    require_runtime(runtime)
    suffix = "pte" if runtime == "executorch" else "onnx"
    (tmp_path / f"m.{suffix}").write_text("old")
    with pytest.raises(ExportError, match=r"SmallCNN to m\..* by up to .*; allowed: 0 and"):
        export(trained_cnn(), tmp_path / "m", runtime=runtime, tolerance=0.0)
    assert [p.name for p in tmp_path.iterdir()] == [f"m.{suffix}"]
    assert (tmp_path / f"m.{suffix}").read_text() == "old"


@pytest.mark.parametrize(("runtime", "precision"), TARGETS)
def test_export_artifact_takes_logits_in_the_hundreds(tmp_path, runtime, precision):
    require_runtime(runtime, precision)
    loud = copy.deepcopy(trained_cnn())
    with torch.no_grad():
        loud.classifier.weight.mul_(1024)
        loud.classifier.bias.mul_(1024)
    largest = loud(parity_images(SHAPE)).abs().max().item()
    assert largest > 125
    artifact = export(loud, tmp_path / "m", runtime=runtime, precision=precision)
    if (runtime, precision) == ("executorch", "int8"):
        assert math.isnan(artifact.parity_difference)
        assert math.isnan(artifact.parity_agreement)
    else:
        assert artifact.parity_difference <= (0.0157 if precision == "fp16" else 1e-4)
        assert artifact.parity_agreement == 1


def test_fp16_may_be_as_far_off_as_its_network_where_logits_are_what_large_numbers_leave(tmp_path):
    torch.manual_seed(0)
    conv, norm, head = nn.Conv2d(1, 8, 3), nn.BatchNorm2d(8), nn.Linear(8 * 26 * 26, 4)
    norm.running_var.fill_(0.37)  # tracing folds it into the convolution, which rounds otherwise
    network = nn.Sequential(conv, norm, nn.Flatten(), head).eval()
    exact = parity_images(SHAPE)
    with torch.inference_mode():
        norm.bias.fill_(300.0)
        head.bias -= network(exact)[0] - torch.tensor([0.5, -0.5, 0.25, 0.0])
        expected, own = network(exact), copy.deepcopy(network).half()(exact.half())
    off = float((own - expected).abs().max() / expected.abs().max())
    artifact = export(network, tmp_path / "half", runtime="torch", precision="fp16")
    assert off > FP16_TOLERANCE
    assert artifact.parity_difference < 4 * off


def test_export_artifact_says_how_far_the_file_is_from_torch(tmp_path):
    artifact = export(trained_cnn(), tmp_path / "m")
    images = parity_images(SHAPE, at_least=PARITY_BATCH)
    expected = trained_cnn()(images).detach().numpy()
    apart = np.abs(run_onnx(artifact.path, images) - expected).max() / np.abs(expected).max()
    assert artifact.parity_difference == pytest.approx(apart, rel=1e-3, abs=1e-9)


class Unexportable(nn.Module):
    def forward(self, images):
        return torch.linalg.svdvals(images[:, 0])


class DataDependent(nn.Module):
    def forward(self, images):
        return images.flatten(1)[:, :2] if images.sum() > 0 else images.flatten(1)[:, 2:4]


@pytest.mark.parametrize(
    ("model", "runtime", "precision", "cause"),
    [
        (Unexportable(), "onnxruntime", "fp32", "linalg_svd"),
        (nn.Sequential(nn.Flatten()), "torch", "int8", "QuantizationError: .* not int8"),
        (DataDependent(), "executorch", "fp32", "DataDependent"),
        (DataDependent(), "torch", "int8", "torch.fx and torch.export cannot trace"),
    ],
)
def test_a_failing_exporter_names_the_model_the_target_and_the_cause(
    tmp_path, model, runtime, precision, cause
):
    require_runtime(runtime)
    expected = rf"(?s)cannot export {type(model).__name__} to m\.\w+ \({runtime} .*{cause}"
    with pytest.raises(ExportError, match=expected):
        export(model, tmp_path / "m", runtime=runtime, precision=precision)
    assert list(tmp_path.iterdir()) == []


def one_class():
    return [(torch.rand(4, 1, 28, 28), torch.zeros(4, dtype=torch.long))]


def wrong_shape():
    return [(torch.rand(2, 3, 28, 28), torch.arange(2))]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"runtime": "tflite"}, "unknown runtime 'tflite'; allowed: torch, onnxruntime"),
        ({"precision": "fp16"}, "of the onnxruntime runtime 'fp16'; allowed: fp32, int8, int8-dyn"),
        ({"input_shape": (1, 28, 28)}, r"input_shape is \(1, 28, 28\); allowed: \[B, C, H, W\]"),
        ({"input_shape": (0, 1, 28, 28)}, "each >= 1"),
        ({"precision": "int8", "calibration": None}, "the calibration set holds no images"),
        ({"precision": "int8", "calibration": one_class()}, "class 0 only"),
        (
            {"precision": "int8", "calibration": wrong_shape()},
            r"calibration images are \(3, 28, 28\), the model's input \(1, 28, 28\)",
        ),
        ({"options": Int8Options(calibration="entropy")}, "onnxruntime fp32 takes no options"),
    ],
)
def test_bad_requests_are_refused_before_anything_is_written(tmp_path, options, message):
    with pytest.raises(ValueError, match=message):
        export(trained_cnn(), tmp_path / "m", **options)
    assert list(tmp_path.iterdir()) == []


def test_bad_int8_options_are_refused():
    message = "calibration method 'mean'; allowed: minmax, percentile, entropy"
    with pytest.raises(ValueError, match=message):
        Int8Options(calibration="mean")


def test_load_session_refuses_what_no_runtime_offers(tmp_path):
    artifact = Artifact(tmp_path / "m.pt", "torch", "bf16", SHAPE, "0" * 64, 1)
    with pytest.raises(ValueError, match="precision of the torch runtime 'bf16'"):
        load_session(artifact)


def test_a_missing_extra_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "executorch.exir", None)
    with pytest.raises(RuntimeUnavailable, match=r"pip install edgeopt\[executorch\]"):
        export(trained_cnn(), tmp_path / "m", runtime="executorch")
