"""Bytes derived by hand, shape by shape."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import nn

from edgeopt.model.networks import SmallCNN
from edgeopt.quantization.variants import to_int8
from edgeopt.runtimes.export import export_artifact
from edgeopt.runtimes.registry import runtime_named
from edgeopt.runtimes.torch import module_weight_bytes
from edgeopt.system.upstream import known_noise_silenced

WEIGHTS = 16 * 1 * 9 + 32 * 16 * 9 + 10 * 32 * 7 * 7  # conv1, conv2, classifier: 20,432
BIASES = CHANNELS = 16 + 32 + 10
IMAGE = (1, 1, 28, 28)


@dataclass(frozen=True)
class FakeArtifact:
    path: Path
    runtime: str
    input_shape: tuple[int, ...] = IMAGE


def int8_small_cnn() -> nn.Module:
    images = torch.rand(4, *IMAGE[1:], generator=torch.Generator().manual_seed(0))
    return to_int8(SmallCNN().eval(), [(images, torch.arange(4))])


def saved_torchscript(model: nn.Module, path: Path, *, frozen: bool) -> FakeArtifact:
    with known_noise_silenced():
        traced = torch.jit.trace(model.eval(), torch.zeros(IMAGE)).eval()
        traced = torch.jit.freeze(traced) if frozen else traced
        traced.save(path)
    return FakeArtifact(path, "torch")


def int8_bytes() -> int:
    # per channel a double scale and an int64 zero point; float32 bias; the buffers are the scale
    # (float32) and zero point (int64) with which the input is quantized
    return WEIGHTS + 4 * BIASES + (8 + 8) * CHANNELS + (4 + 8)


def test_float_weights_are_four_or_two_bytes_each():
    assert module_weight_bytes(SmallCNN()) == 4 * (WEIGHTS + BIASES)
    assert module_weight_bytes(SmallCNN().half()) == 2 * (WEIGHTS + BIASES)


def test_packed_int8_weights_are_counted():
    counted = module_weight_bytes(int8_small_cnn())
    assert counted == int8_bytes()
    assert counted / 2**20 == pytest.approx(0.0206, abs=5e-5)


def test_per_tensor_packed_weights_hold_one_scale_and_zero_point():
    layer = torch.ao.nn.quantized.Linear(8, 3, bias_=False)
    with known_noise_silenced():
        weight = torch.quantize_per_tensor(torch.rand(3, 8), 0.1, 0, torch.qint8)
    layer.set_weight_bias(weight, None)
    assert module_weight_bytes(layer) == 3 * 8 + 8 + 8


def test_shared_tensors_count_once():
    first, second = nn.Linear(5, 5, bias=False), nn.Linear(5, 5, bias=False)
    second.weight = first.weight
    third = nn.Linear(5, 5, bias=False)
    third.weight = nn.Parameter(first.weight.detach())
    assert module_weight_bytes(nn.Sequential(first, second, third)) == 4 * 25


def test_buffers_count():
    assert module_weight_bytes(nn.BatchNorm2d(6)) == 4 * 4 * 6 + 8  # and one int64 batch counter


@pytest.mark.parametrize("frozen", [False, True])
def test_torchscript_artifact_counts_like_its_model(tmp_path, frozen):
    float_artifact = saved_torchscript(SmallCNN(), tmp_path / "float.pt", frozen=frozen)
    int8_artifact = saved_torchscript(int8_small_cnn(), tmp_path / "int8.pt", frozen=frozen)
    assert runtime_named(float_artifact.runtime).weight_bytes(float_artifact) == 4 * (
        WEIGHTS + BIASES
    )
    assert runtime_named(int8_artifact.runtime).weight_bytes(int8_artifact) == int8_bytes()


def test_onnx_artifact_counts_initializers_and_constants_as_stored(tmp_path):
    tensors = {
        "weight": np.ones((10, 4), np.int8),
        "scale": np.ones(10, np.float32),
        "zero_point": np.zeros(10, np.int8),
        "bias": np.zeros(10, np.int32),
    }
    constant = helper.make_node(
        "Constant", [], ["shape"], value=numpy_helper.from_array(np.array([1, 4], np.int64))
    )
    reshape = helper.make_node("Reshape", ["x", "shape"], ["y"])
    infos = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, 4]) for name in "xy"]
    initializers = [numpy_helper.from_array(array, name) for name, array in tensors.items()]
    graph = helper.make_graph([constant, reshape], "g", infos[:1], infos[1:], initializers)
    onnx.save(helper.make_model(graph), tmp_path / "model.onnx")
    for runtime in ("onnxruntime", "openvino"):
        artifact = FakeArtifact(tmp_path / "model.onnx", runtime)
        assert runtime_named(artifact.runtime).weight_bytes(artifact) == 40 + 40 + 10 + 40 + 2 * 8


def test_executorch_artifact_counts_the_delegates_weights(tmp_path):
    pytest.importorskip("executorch")
    artifact = export_artifact(
        SmallCNN().eval(),
        tmp_path / "model.pte",
        runtime="executorch",
        precision="fp32",
        input_shape=IMAGE,
    )
    assert runtime_named(artifact.runtime).weight_bytes(artifact) == 4 * (WEIGHTS + BIASES)
