"""Bytes derived by hand, shape by shape; the graphs are those that the runtimes execute."""

import copy

import numpy as np
import pytest
import torch
from torch import nn

from edgeopt.metrics.activations import artifact_activation_bytes, peak_activation_bytes
from edgeopt.model.networks import SmallCNN, build_model
from edgeopt.runtimes.export import export_artifact
from edgeopt.runtimes.integer_share import executed_graph
from edgeopt.runtimes.registry import RUNTIMES
from tests.artifacts import artifact_of, calibration_loader, require_runtime, trained_cnn

IMAGE = (1, 1, 28, 28)


def test_peak_activation_bytes_of_small_cnn():
    # conv1 reads 784 and makes 16*28*28, relu1 works in place, pool1 makes 16*14*14 of it: the
    # largest moment; conv2 then reads 16*14*14 and makes 32*14*14
    elements = 16 * 28 * 28 + 16 * 14 * 14
    assert peak_activation_bytes(SmallCNN(), input_shape=IMAGE) == 4 * elements == 62_720
    assert peak_activation_bytes(SmallCNN(), input_shape=(3, *IMAGE[1:])) == 3 * 4 * elements
    assert peak_activation_bytes(SmallCNN().half(), input_shape=IMAGE) == 2 * elements


@pytest.mark.parametrize(
    ("name", "moment", "mebibytes"),
    [
        ("mobilenet_v3_small", 3 * 224**2 + 16 * 112**2, 1.34),  # the first convolution
        ("mobilenet_v3_large", 16 * 112**2 + 64 * 112**2, 3.83),  # the first expansion
        ("efficientnet_b0", 96 * 112**2 + 96 * 56**2, 5.74),  # the first strided depthwise
        ("resnet18", 64 * 112**2 + 64 * 56**2, 3.83),  # the pooling
    ],
)
def test_peak_activation_bytes_of_backbones(name, moment, mebibytes):
    found = peak_activation_bytes(build_model(name), input_shape=(1, 3, 224, 224))
    assert found == 4 * moment
    assert round(found / 2**20, 2) == mebibytes


ACTIVATIONS = [
    *(nn.ReLU, nn.ReLU6, nn.Hardswish, nn.SiLU, nn.Sigmoid, nn.Hardsigmoid, nn.GELU, nn.ELU),
    *(
        nn.LeakyReLU,
        nn.PReLU,
        nn.Tanh,
        nn.Mish,
        nn.Softplus,
        nn.BatchNorm2d,
        nn.Dropout,
        nn.Identity,
    ),
]


@pytest.mark.parametrize("kind", ACTIVATIONS, ids=lambda kind: kind.__name__)
def test_peak_activation_bytes_take_a_convolution_and_its_activation_for_one_tensor(kind):
    activation = kind(6) if kind is nn.BatchNorm2d else kind()
    model = nn.Sequential(nn.Conv2d(1, 6, 3, padding=1, bias=False), activation, nn.MaxPool2d(2))
    assert peak_activation_bytes(model, input_shape=IMAGE) == 4 * (6 * 28 * 28 + 6 * 14 * 14)


class Block(nn.Module):
    """A residual block with a gate, written in place or not."""

    def __init__(self, *, inplace):
        super().__init__()
        self.inplace = inplace
        self.first = nn.Sequential(
            nn.Conv2d(1, 6, 3, padding=1), nn.BatchNorm2d(6), nn.ReLU6(inplace)
        )
        self.second = nn.Sequential(nn.Conv2d(6, 6, 3, padding=1), nn.Hardswish(inplace))
        self.gate = nn.Sequential(
            nn.AdaptiveAvgPool2d(1), nn.Conv2d(6, 6, 1), nn.SiLU(inplace), nn.Hardsigmoid(inplace)
        )

    def forward(self, images):
        skipped = self.first(images)
        hidden = self.second(skipped)
        if self.inplace:
            hidden *= self.gate(hidden)
            hidden += skipped
            return hidden
        return self.gate(hidden) * hidden + skipped


@pytest.mark.parametrize("inplace", [False, True])
def test_peak_activation_bytes_are_the_same_in_place_and_not(inplace):
    # two tensors of 6x28x28 while the gate's two vectors of 6 are made and read; the product and
    # the sum are written over the operand that ends there
    found = peak_activation_bytes(Block(inplace=inplace), input_shape=IMAGE)
    assert found == 4 * (2 * 6 * 28 * 28 + 2 * 6)


class Sigmoids(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(1, 6, 3, padding=1)

    def forward(self, images):
        hidden = self.conv(images)
        return hidden * hidden.sigmoid()


def test_peak_activation_bytes_keep_a_tensor_that_is_read_again():
    assert peak_activation_bytes(Sigmoids(), input_shape=IMAGE) == 4 * 2 * 6 * 28 * 28


def test_peak_activation_bytes_do_not_overwrite_the_callers_input():
    assert peak_activation_bytes(nn.ReLU(), input_shape=IMAGE) == 4 * 2 * 28 * 28


class Residual(nn.Module):
    def forward(self, x):
        a = x + 1  # x, a
        b = a.view(-1).softmax(0)  # a and its view are one storage: a, b
        c = b.softmax(0)  # a, b, c
        return c.view_as(a) + a  # the sum takes the place of c or a


def test_peak_activation_bytes_of_views_are_their_sources():
    assert peak_activation_bytes(Residual(), input_shape=(1, 10)) == 3 * 40


class Transposed(nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(50, 10))

    def forward(self, x):
        return x @ self.weight.t()


def test_peak_activation_bytes_leave_views_of_weights_out():
    assert peak_activation_bytes(Transposed(), input_shape=(1, 10)) == 4 * (10 + 50)


class Branches(nn.Module):
    def forward(self, x):
        return x if x.sum() > 0 else -x


def test_peak_activation_bytes_of_a_network_with_control_flow():
    # executed, not traced: an input of zeros takes the second branch; the sum and its test are
    # gone by then
    assert peak_activation_bytes(Branches(), input_shape=(1, 2)) == 2 * 8


def test_peak_activation_bytes_leave_the_model_alone():
    model = nn.Sequential(nn.BatchNorm2d(1), nn.ReLU()).train()
    before = copy.deepcopy(model.state_dict())
    peak_activation_bytes(model, input_shape=(2, 1, 3, 3))
    assert model.training
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())


# The small network of the artifacts: 6 and 8 channels. Its largest moment is pool1.
POOLED = 6 * 28 * 28 + 6 * 14 * 14


@pytest.mark.parametrize("batch_size", [1, 4])
@pytest.mark.parametrize("runtime", RUNTIMES)
def test_artifact_activation_bytes_of_fp32_are_one_number(runtime, batch_size):
    artifact = artifact_of(runtime, "fp32", batch_size)
    found = artifact_activation_bytes(artifact, model=trained_cnn())
    assert found == 4 * batch_size * POOLED


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_artifact_activation_bytes_of_int8(runtime):
    # the float input of 4*784 is quantized to 784 first: 3,920; conv1 and its ReLU read 784 and
    # make 6*784: 5,488; pool1 reads 6*784 and makes 6*196: 5,880; the rest is smaller
    artifact = artifact_of(runtime, "int8")
    assert artifact_activation_bytes(artifact, model=trained_cnn()) == POOLED == 5_880


@pytest.mark.parametrize(("runtime", "precision"), [("torch", "fp16"), ("openvino", "bf16")])
def test_artifact_activation_bytes_of_16_bits(runtime, precision):
    artifact = artifact_of(runtime, precision)
    assert artifact_activation_bytes(artifact, model=trained_cnn()) == 2 * POOLED


def test_artifact_activation_bytes_of_dynamic_int8_hold_32_bit_sums():
    # ConvInteger makes int32, which is cast, scaled, shifted and rectified in place
    artifact = artifact_of("onnxruntime", "int8-dynamic")
    assert artifact_activation_bytes(artifact, model=trained_cnn()) == 4 * POOLED


def test_executed_graph_of_int8_in_onnx_runtime():
    graph = executed_graph(artifact_of("onnxruntime", "int8"))
    sizes = {operation.name: [size for _, size in operation.writes] for operation in graph}
    assert sizes["images"] == [4 * 784]
    assert sizes["QuantizeLinear"] == [784]
    convolutions = [op.writes[0][1] for op in graph if op.name == "QLinearConv"]
    assert convolutions == [6 * 28 * 28, 8 * 14 * 14]
    assert sizes["DequantizeLinear"] == [4 * 4]


@pytest.mark.parametrize(
    ("runtime", "floats", "integers"),
    [
        # x * HardSigmoid(x): the convolution's integers wait for the product, while the float
        # hard sigmoid, computed in place, is quantized.
        ("onnxruntime", 6 * 28 * 28, 2 * 6 * 28 * 28),
        # Converted to float, Hardswish in place, and converted back.
        ("executorch", 6 * 28 * 28, 6 * 28 * 28),
    ],
)
def test_artifact_activation_bytes_count_what_stays_in_float(runtime, floats, integers, tmp_path):
    require_runtime(runtime)
    model = nn.Sequential(
        nn.Conv2d(1, 6, 3, padding=1),
        nn.Hardswish(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(6 * 14 * 14, 4),
    )
    artifact = export_artifact(
        model.eval(),
        tmp_path / "hardswish",
        runtime=runtime,
        precision="int8",
        input_shape=IMAGE,
        calibration=calibration_loader(),
    )
    assert artifact_activation_bytes(artifact, model=model) == 4 * floats + integers


class Halves(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(1, 6, 3, padding=1)

    def forward(self, images):
        first, second = self.conv(images).chunk(2, dim=1)
        return torch.cat([second.relu(), first], dim=1).mean((2, 3))


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_executed_graph_follows_every_tensor_from_input_to_output(runtime, tmp_path):
    require_runtime(runtime)
    artifact = export_artifact(
        Halves().eval(), tmp_path / "halves", runtime=runtime, precision="fp32", input_shape=IMAGE
    )
    graph = executed_graph(artifact)
    written = {key for operation in graph for key, _ in operation.writes}
    sizes = [size for operation in graph for _, size in operation.writes]
    assert (graph[0].reads, [size for _, size in graph[0].writes]) == ((), [4 * 784])
    assert set(graph[-1].reads) <= written
    assert graph[-1].reads
    assert np.isin([4 * 6 * 784, 4 * 6], sizes).all()
