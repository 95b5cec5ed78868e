"""Equalization and the planted collapse: the fp32 function stays, the ranges move."""

import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from edgeopt.model.networks import SmallCNN, build_model
from edgeopt.quantization.equalization import equalize, plant_collapse
from edgeopt.quantization.links import Link, find_links, fold_batch_norm

GREY = torch.rand(8, 1, 28, 28, generator=torch.Generator().manual_seed(0))
COLOUR = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def small() -> SmallCNN:
    torch.manual_seed(0)
    return SmallCNN(conv1_channels=6, conv2_channels=8).eval()


def lived_in(name: str) -> nn.Module:
    """Build a backbone whose BatchNorms hold statistics, as after training."""
    torch.manual_seed(0)
    model = build_model(name).eval()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.2)
            module.running_var.uniform_(0.5, 2)
            nn.init.uniform_(module.weight, 0.5, 2)
            nn.init.normal_(module.bias, 0, 0.2)
    return model


@pytest.fixture(scope="module")
def mobilenet() -> nn.Module:
    return lived_in("mobilenet_v3_small")


def assert_same_function(changed: nn.Module, model: nn.Module, images: torch.Tensor) -> None:
    with torch.no_grad():
        expected, found = model(images), changed(images)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4 * float(expected.abs().max()))


def ranges_of(model: SmallCNN) -> tuple[torch.Tensor, torch.Tensor]:
    """Largest weight of each conv1 filter, and of each input channel of conv2."""
    weights = (model.conv1.weight.detach().abs(), model.conv2.weight.detach().abs())
    return weights[0].amax((1, 2, 3)), weights[1].amax((0, 2, 3))


def test_planting_multiplies_the_filter_and_divides_what_reads_it(small: SmallCNN) -> None:
    planted = plant_collapse(small, "conv1", 2, 1000.0)
    assert torch.equal(planted.conv1.weight[2], small.conv1.weight[2] * 1000)
    assert torch.equal(planted.conv1.bias[2], small.conv1.bias[2] * 1000)
    assert torch.equal(planted.conv2.weight[:, 2], small.conv2.weight[:, 2] / 1000)
    others = [0, 1, 3, 4, 5]
    assert torch.equal(planted.conv1.weight[others], small.conv1.weight[others])
    assert torch.equal(planted.conv2.weight[:, others], small.conv2.weight[:, others])


def test_planting_before_the_classifier_divides_the_whole_7x7_block(small: SmallCNN) -> None:
    planted = plant_collapse(small, "conv2", [1], 8.0)
    block = slice(49, 98)
    assert torch.equal(planted.classifier.weight[:, block], small.classifier.weight[:, block] / 8)
    assert torch.equal(planted.classifier.weight[:, :49], small.classifier.weight[:, :49])


@settings(max_examples=10, deadline=None)
@given(
    layer=st.sampled_from(["conv1", "conv2"]),
    channels=st.sets(st.integers(0, 5), min_size=1),
    exponent=st.floats(-4, 4),
)
def test_planting_and_equalizing_keep_the_function(
    layer: str, channels: set[int], exponent: float
) -> None:
    torch.manual_seed(0)
    model = SmallCNN(6, 8).eval()
    planted = plant_collapse(model, layer, sorted(channels), 10**exponent)
    assert_same_function(planted, model, GREY)
    assert_same_function(equalize(planted), model, GREY)
    assert_same_function(equalize(planted, images=GREY), model, GREY)


def test_equalized_ranges_meet_at_their_geometric_mean() -> None:
    model = SmallCNN(1, 1, 2)
    with torch.no_grad():
        model.conv1.weight.fill_(4.0)
        model.conv2.weight.fill_(1.0)
        model.classifier.weight.fill_(2.0)
    source, reader = ranges_of(equalize(model))
    # c1 * c2 * c3 = 4 * 1 * 2 = 8 whatever the scales, and all three are equal: the cube root of 8
    assert source.item() == pytest.approx(2, rel=1e-3)
    assert reader.item() == pytest.approx(2, rel=1e-3)


def test_equalizing_undoes_the_specimen(small: SmallCNN) -> None:
    planted = equalize(plant_collapse(small, "conv1", [1, 4], 1e4))
    for found, expected in zip(ranges_of(planted), ranges_of(equalize(small)), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-2, atol=0)
    source, reader = ranges_of(planted)
    torch.testing.assert_close(source, reader, rtol=1e-2, atol=0)


def test_equalizing_by_images_balances_activations_against_weights(small: SmallCNN) -> None:
    balanced = equalize(plant_collapse(small, "conv1", 3, 1e4), images=GREY)
    with torch.no_grad():
        pooled = balanced.pool1(balanced.relu1(balanced.conv1(GREY))).amax((0, 2, 3))
    alive = pooled > 0
    assert alive.any()
    torch.testing.assert_close(pooled[alive], ranges_of(balanced)[1][alive], rtol=1e-3, atol=0)


def test_dead_filters_are_left_alone() -> None:
    torch.manual_seed(0)
    model = SmallCNN(3, 4)
    with torch.no_grad():
        model.conv1.weight[1] = 0
        model.conv1.bias[1] = 0
    balanced = equalize(model)
    assert torch.equal(balanced.conv2.weight[0, 1] != 0, model.conv2.weight[0, 1] != 0)
    assert all(torch.isfinite(p).all() for p in balanced.parameters())


@pytest.mark.parametrize(
    "change",
    [
        equalize,
        fold_batch_norm,
        lambda model: equalize(model, images=GREY),
        lambda model: plant_collapse(model, "conv1", 0, 100.0),
    ],
)
def test_never_changes_its_input(small: SmallCNN, change) -> None:
    before = copy.deepcopy(small.state_dict())
    changed = change(small)
    assert all(torch.equal(value, before[name]) for name, value in small.state_dict().items())
    assert type(changed) is SmallCNN
    assert not changed.training


def test_batch_norm_is_folded_everywhere(mobilenet: nn.Module) -> None:
    folded = fold_batch_norm(mobilenet)
    assert not any(isinstance(m, nn.BatchNorm2d) for m in folded.modules())
    assert_same_function(folded, mobilenet, COLOUR)


def test_links_of_small_cnn(small: SmallCNN) -> None:
    assert find_links(small) == [Link("conv1", ("conv2",)), Link("conv2", ("classifier",))]


def test_links_of_mobilenet_stop_at_hardswish_and_follow_squeeze_and_excitation(
    mobilenet: nn.Module,
) -> None:
    links = {link.source: link.readers for link in find_links(fold_batch_norm(mobilenet))}
    assert links["features.2.block.0.0"] == ("features.2.block.1.0",)  # ReLU, then depthwise
    assert links["features.1.block.0.0"] == ("features.1.block.1.fc1", "features.1.block.2.0")
    assert "features.0.0" not in links  # Hardswish follows
    assert "features.2.block.2.0" not in links  # a residual addition reads it


@pytest.mark.parametrize(
    "name", ["mobilenet_v3_small", "efficientnet_b0", "squeezenet1_1", "mnasnet0_5"]
)
def test_other_networks_keep_their_function(name: str) -> None:
    model = lived_in(name)
    assert_same_function(equalize(model), model, COLOUR)
    assert_same_function(equalize(model, images=COLOUR), model, COLOUR)
    for link in find_links(fold_batch_norm(model))[1:3]:
        assert_same_function(plant_collapse(model, link.source, [0, 1], 1000.0), model, COLOUR)


class Grouped(nn.Module):
    """A grouped reader, a functional ReLU, a view and a residual that no scale may pass."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 8, 3)
        self.grouped = nn.Conv2d(8, 8, 3, groups=4)
        self.twice = nn.Conv2d(8, 8, 1)
        self.head = nn.Linear(8, 5)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        hidden = nn.functional.relu(self.grouped(torch.relu(self.first(images))))
        hidden = self.twice(hidden) + self.twice(hidden)
        hidden = nn.functional.adaptive_avg_pool2d(hidden, 1)
        return self.head(hidden.view(hidden.size(0), -1))


def test_grouped_readers_are_scaled_and_shared_layers_left() -> None:
    torch.manual_seed(0)
    model = Grouped().eval()
    assert find_links(model) == [Link("first", ("grouped",))]
    planted = plant_collapse(model, "first", [1, 6], 100.0)
    assert_same_function(planted, model, COLOUR)
    source = planted.first.weight.detach().abs().amax((1, 2, 3))
    assert source.max() / source.median() > 20
    assert_same_function(equalize(planted), model, COLOUR)


def test_untraceable_models_are_refused() -> None:
    class Branching(nn.Module):
        def forward(self, images: torch.Tensor) -> torch.Tensor:
            return images if images.sum() > 0 else -images

    with pytest.raises(ValueError, match=r"torch\.fx cannot trace Branching"):
        equalize(Branching())


@pytest.mark.parametrize(
    ("layer", "channels", "factor", "message"),
    [
        ("conv9", 0, 10.0, "layer 'conv9' cannot be rescaled; allowed: conv1, conv2"),
        ("classifier", 0, 10.0, "layer 'classifier' cannot be rescaled"),
        ("conv1", 6, 10.0, "channels of conv1 are 6; allowed: 0 to 5"),
        ("conv1", -1, 10.0, "channels of conv1 are -1"),
        ("conv1", [], 10.0, r"channels of conv1 are \[\]"),
        ("conv1", 0, 0.0, "factor is 0.0; allowed: a positive number"),
        ("conv1", 0, -2.0, "factor is -2.0"),
        ("conv1", 0, float("nan"), "factor is nan"),
        ("conv1", 0, float("inf"), "factor is inf"),
    ],
)
def test_refuses_a_specimen_that_cannot_be(
    small: SmallCNN, layer: str, channels, factor: float, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        plant_collapse(small, layer, channels, factor)
