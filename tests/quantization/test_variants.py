import copy
import sys

import pytest
import torch
from torch import nn

from edgeopt.model.networks import set_deterministic
from edgeopt.quantization.variants import (
    DEFAULT_ENGINE,
    ENGINES,
    QuantizationError,
    calibration_images,
    first_batches,
    precision_variant,
    quantization_aware_train,
    to_fp16,
    to_int8,
)
from edgeopt.system import host_facts, int8_scheme
from edgeopt.system.int8 import U8S8
from edgeopt.system.upstream import RuntimeUnavailable
from tests.artifacts import calibration_loader, require_runtime, trained_cnn
from tests.conftest import striped_split


def same_weights(first, second):
    pairs = zip(first.state_dict().values(), second.state_dict().values(), strict=True)
    return all(torch.equal(a, b) for a, b in pairs)


@pytest.fixture
def images():
    return striped_split(64, seed=3).take(64)


def test_fp16_halves_every_weight_and_leaves_the_parent_alone(images):
    parent = trained_cnn()
    before = copy.deepcopy(parent)
    half = to_fp16(parent)
    assert {p.dtype for p in half.parameters()} == {torch.float16}
    assert same_weights(parent, before)
    assert torch.equal(half(images.half()).argmax(1), parent(images).argmax(1))


@pytest.mark.parametrize("engine", ENGINES)
def test_int8_agrees_with_its_parent_on_every_engine(images, engine):
    if engine == "onednn" and int8_scheme(host_facts()["isa"]) != U8S8:
        pytest.skip("torch warns that onednn's sums saturate on a CPU without VNNI")
    parent = trained_cnn()
    before, active = copy.deepcopy(parent), torch.backends.quantized.engine
    quantized = to_int8(parent, calibration_loader(), backend=engine)
    agreement = (quantized(images).argmax(1) == parent(images).argmax(1)).float().mean()
    assert agreement >= 0.97
    assert same_weights(parent, before)
    assert torch.backends.quantized.engine == active


@pytest.mark.skipif(DEFAULT_ENGINE != "x86", reason="other engines have no 7-bit activations")
def test_int8_activations_of_full_range_have_a_bit_more(images):
    reduced = to_int8(trained_cnn(), calibration_loader())
    full = to_int8(trained_cnn(), calibration_loader(), reduce_range=False)
    ratio = full.conv1.scale / reduced.conv1.scale
    assert ratio == pytest.approx(127 / 255, rel=0.1)  # a histogram's ranges differ a little
    if int8_scheme(host_facts()["isa"]) == U8S8:  # elsewhere sums of the full range saturate
        logits = trained_cnn()(images)
        errors = [(variant(images) - logits).square().mean() for variant in (full, reduced)]
        assert errors[0] < errors[1]


def test_int8_weights_are_within_half_a_step_of_the_channel(images):
    parent = trained_cnn()
    weight = parent.conv2.weight.detach()
    quantized = to_int8(parent, calibration_loader()).conv2.weight()
    step = weight.abs().amax(dim=(1, 2, 3)) / 127.5
    error = (quantized.dequantize() - weight).abs().amax(dim=(1, 2, 3))
    assert quantized.dtype == torch.qint8
    assert (error <= step / 2 * 1.001).all()


def test_int8_converts_in_deterministic_mode_and_leaves_it_on():
    torch.use_deterministic_algorithms(True)
    try:
        to_int8(trained_cnn(), calibration_loader())
        assert torch.are_deterministic_algorithms_enabled()
    finally:
        torch.use_deterministic_algorithms(False)


def test_unknown_engine_lists_those_of_this_build():
    with pytest.raises(ValueError, match=f"backend 'tensorrt'; allowed: {', '.join(ENGINES)}"):
        to_int8(trained_cnn(), calibration_loader(), backend="tensorrt")


class AttentionHead(nn.Module):
    """torch's attention keeps its projection in float under FX quantization."""

    def __init__(self):
        super().__init__()
        self.features = nn.Conv2d(1, 4, 7, stride=7)
        self.attention = nn.MultiheadAttention(4, 1, batch_first=True)

    def forward(self, images):
        tokens = self.features(images).flatten(2).transpose(1, 2)
        return self.attention(tokens, tokens, tokens)[0].mean(1)


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (AttentionHead(), r"of 2 .* stayed in float: attention\.out_proj"),
        (nn.Sequential(nn.MaxPool2d(7), nn.Flatten()), "of 0 .* in float: none exist"),
    ],
)
def test_a_model_with_float_layers_is_not_called_int8(model, message):
    with pytest.raises(QuantizationError, match=message):
        to_int8(model, calibration_loader())


def pairs(labels):
    return [(torch.rand(len(labels), 1, 28, 28), torch.tensor(labels, dtype=torch.long))]


@pytest.mark.parametrize(
    ("loader", "count", "message"),
    [
        (None, 10, "holds no images"),
        ([], 10, "holds no images"),
        (pairs([]), 10, "holds no images"),
        (pairs([3, 3]), 10, "class 3 only; int8 needs at least two classes"),
        (pairs([0, 0]) + pairs([1, 1]), 1, "class 0 only"),
        (pairs([0, 1]), 0, "calibration_batches is 0; allowed: 1 or more"),
    ],
)
def test_a_calibration_set_that_shows_no_ranges_is_refused(loader, count, message):
    with pytest.raises(ValueError, match=message):
        calibration_images(first_batches(loader, count))


def test_calibration_takes_the_first_batches_only():
    loader = pairs([0, 1]) + pairs([1, 1]) + pairs([2, 2])
    taken = calibration_images(first_batches(loader, 2))
    assert [batch.shape[0] for batch in taken] == [2, 2]
    assert torch.equal(taken[1], loader[1][0])


@pytest.mark.parametrize(
    ("precision", "takes"), [("fp32", "fp32"), ("fp16", "fp16"), ("int8", "fp32")]
)
def test_precision_variant_says_which_input_it_takes(precision, takes):
    parent = trained_cnn()
    variant, input_precision = precision_variant(parent, precision, calibration_loader(), 4)
    assert input_precision == takes
    assert variant is not parent
    assert not variant.training


def test_unknown_precision_lists_the_known():
    with pytest.raises(ValueError, match="'int4'; allowed: fp32, fp16, int8"):
        precision_variant(trained_cnn(), "int4", calibration_loader(), 4)


def test_qat_trains_a_copy_whose_int8_agrees_with_it(images):
    require_runtime("executorch")
    parent = trained_cnn()
    before = copy.deepcopy(parent)
    loader = striped_split(64, seed=1).loader(32, shuffle=True)
    trained = quantization_aware_train(parent, loader, epochs=1, learning_rate=1e-3, progress=False)
    quantized = to_int8(trained, calibration_loader())
    assert same_weights(parent, before)
    assert not same_weights(trained, before)
    assert not trained.training
    assert (quantized(images).argmax(1) == trained(images).argmax(1)).float().mean() >= 0.97


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"epochs": 0, "learning_rate": 1e-3}, "epochs is 0; allowed: 1 or more"),
        ({"epochs": 1, "learning_rate": 0.0}, "learning_rate is 0.0; allowed: above 0"),
    ],
)
def test_qat_refuses_bad_options(options, message):
    with pytest.raises(ValueError, match=message):
        quantization_aware_train(trained_cnn(), calibration_loader(), **options)


def test_qat_without_executorch_says_what_to_install(monkeypatch):
    name = "executorch.backends.xnnpack.quantizer.xnnpack_quantizer"
    monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(RuntimeUnavailable, match=r"pip install edgeopt\[executorch\]"):
        quantization_aware_train(
            trained_cnn(), calibration_loader(), epochs=1, learning_rate=1e-3, progress=False
        )


class Viewing(nn.Module):
    """As in many tutorials: a view before the linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 4, 3)
        self.head = nn.Linear(4 * 26 * 26, 10)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.head(torch.relu(self.conv(images)).view(-1, 4 * 26 * 26))


def test_a_network_that_views_its_activations_becomes_int8() -> None:
    torch.manual_seed(0)
    model, images = Viewing().eval(), torch.rand(64, 1, 28, 28)
    quantized = to_int8(model, [(images, torch.arange(64) % 10)])
    with torch.no_grad():
        wanted, found = model(images), quantized(images)
    assert (wanted - found).abs().max() < 0.1 * wanted.abs().max()
    assert (wanted - found).abs().max() > 0


class Leftover(nn.Module):
    """Owns a head that it never uses, and draws when it is trained."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.drop, self.head = nn.Conv2d(1, 8, 3), nn.Dropout(0.5), nn.Linear(8, 4)
        self.old = nn.Linear(8, 7)
        self.register_buffer("spare", torch.ones(3))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.head(self.drop(nn.functional.relu(self.conv(images)).mean((2, 3))))


def test_a_layer_that_the_network_does_not_use_need_not_be_int8() -> None:
    images = torch.rand(8, 1, 8, 8)
    quantized = to_int8(Leftover().eval(), [(images, torch.arange(8) % 4)])
    assert quantized(images).shape == (8, 4)


@pytest.mark.parametrize("size", [1, 4])
def test_qat_gives_the_same_weights_whatever_was_drawn_before(size) -> None:
    set_deterministic(0)
    model, split = Leftover(), striped_split(24, seed=3)
    loader = split.loader(size, shuffle=True, seed=1)
    trained = []
    for drawn in (1, 5):
        torch.rand(drawn)
        own = quantization_aware_train(
            model, loader, epochs=1, learning_rate=1e-3, progress=False
        ).state_dict()
        trained.append(own)
    assert all(torch.equal(trained[0][name], trained[1][name]) for name in trained[0])
    assert not torch.equal(trained[0]["conv.weight"], model.conv.weight)
    assert torch.equal(trained[0]["old.weight"], model.old.weight)
