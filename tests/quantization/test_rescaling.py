"""Rescaling, inserted scales and absorbed offsets: fp32 stays, the ranges move."""

import copy
import pickle

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from edgeopt.model.canonical import fold_batch_norm
from edgeopt.model.channel_groups import channel_groups
from edgeopt.model.networks import SmallCNN, set_deterministic
from edgeopt.model.same_function import RewriteError, require_same_function
from edgeopt.model.tracing import with_readers
from edgeopt.quantization.inserted import (
    ScaledActivation,
    float_modules,
    inserted_multiplications,
)
from edgeopt.quantization.offsets import OffsetMap, absorb_offsets
from edgeopt.quantization.planting import plant_collapse, plant_specimen
from edgeopt.quantization.rescaling import (
    channel_ranges,
    equalize,
    outlier_ratios,
)
from edgeopt.system.torchvision import models
from tests.networks import Block, assert_same_function, lived_in, small_convnext

GREY = torch.rand(16, 1, 28, 28, generator=torch.Generator().manual_seed(0))
COLOUR = torch.rand(8, 3, 32, 32, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def small() -> SmallCNN:
    torch.manual_seed(0)
    return SmallCNN(6, 8, 4).eval()


@pytest.fixture
def block() -> Block:
    torch.manual_seed(0)
    return Block().eval()


def worst_ratio(model: nn.Module, images: torch.Tensor) -> float:
    groups = channel_groups(model, example=images[:1])
    return float(
        outlier_ratios(groups, channel_ranges(model, groups, images=images).values()).max()
    )


def test_planting_multiplies_the_filter_and_divides_what_reads_it(small) -> None:
    planted = plant_collapse(small, "conv1", 2, 1000.0, example=GREY[:1])
    torch.testing.assert_close(planted.conv1.weight[2], small.conv1.weight[2] * 1000)
    torch.testing.assert_close(planted.conv1.bias[2], small.conv1.bias[2] * 1000)
    torch.testing.assert_close(planted.conv2.weight[:, 2], small.conv2.weight[:, 2] / 1000)
    others = [0, 1, 3, 4, 5]
    assert torch.equal(planted.conv1.weight[others], small.conv1.weight[others])
    assert torch.equal(planted.conv2.weight[:, others], small.conv2.weight[:, others])


def test_planting_before_the_classifier_divides_the_whole_7x7_block(small) -> None:
    planted = plant_collapse(small, "conv2", [1], 8.0, example=GREY[:1])
    assert torch.equal(planted.classifier.weight[:, 49:98], small.classifier.weight[:, 49:98] / 8)
    assert torch.equal(planted.classifier.weight[:, :49], small.classifier.weight[:, :49])


def test_planting_in_a_residual_stream_scales_all_that_write_it(block) -> None:
    planted = plant_collapse(block, "second", 3, 300.0, example=COLOUR[:1])
    assert_same_function(planted, block, COLOUR)
    for name in ("stem", "second"):
        own, before = (getattr(m, name).weight[3] for m in (planted, block))
        torch.testing.assert_close(own, 300 * before)


@settings(max_examples=8)
@given(
    layer=st.sampled_from(["stem", "first", "second", "left", "right", "after"]),
    channels=st.sets(st.integers(0, 3), min_size=1),
    exponent=st.floats(-3, 4),
)
def test_equalizing_takes_a_planted_channel_back(layer, channels, exponent) -> None:
    torch.manual_seed(0)
    model = Block().eval()
    planted = plant_collapse(model, layer, sorted(channels), 10**exponent, example=COLOUR[:1])
    changed = equalize(planted, images=COLOUR)
    assert_same_function(changed, model, COLOUR)
    # the planted factor leaves no trace beside the other channels
    sound = worst_ratio(equalize(model, images=COLOUR), COLOUR)
    assert worst_ratio(changed, COLOUR) == pytest.approx(sound, rel=0.05)


@pytest.mark.parametrize("layer", ["features.1.0.block.2", "features.2.0"])
def test_a_channel_behind_a_layer_norm_is_rescaled_by_its_weights(layer) -> None:
    model = small_convnext()
    planted = plant_collapse(model, layer, 3, 1e3, example=COLOUR[:1])
    assert_same_function(planted, model, COLOUR)
    changed = equalize(planted, images=COLOUR)
    assert_same_function(changed, model, COLOUR)
    sound = worst_ratio(equalize(model, images=COLOUR), COLOUR)
    assert worst_ratio(changed, COLOUR) == pytest.approx(sound, rel=0.05)


def test_a_channel_behind_hardswish_gets_an_inserted_scale(block) -> None:
    with torch.no_grad():
        block.late.bias += 1  # every channel has something behind Hardswish
    planted = plant_collapse(block, "late", 2, 1000.0, example=COLOUR[:1])
    without = equalize(planted, images=COLOUR)
    changed = equalize(planted, images=COLOUR, inserted=True)
    assert_same_function(changed, planted, COLOUR)
    assert_same_function(pickle.loads(pickle.dumps(changed)), planted, COLOUR)
    assert not any(isinstance(m, ScaledActivation) for m in without.modules())
    [scaled] = [m for m in changed.modules() if isinstance(m, ScaledActivation)]
    # only the outlier is scaled, before and behind
    for scale in (scaled.before, scaled.after):
        assert (scale.flatten() != 1).nonzero().flatten().tolist() == [2]
    assert float(scaled.after.flatten()[2]) < 1 / 100
    # 7 channels of 30 x 30 places, divided before and multiplied behind
    assert inserted_multiplications(changed, example=COLOUR[:1]) == 2 * 7 * 30 * 30
    assert inserted_multiplications(without, example=COLOUR[:1]) == 0


def test_no_scale_is_inserted_where_no_channel_is_an_outlier(block) -> None:
    changed = equalize(block, images=COLOUR, inserted=True)
    assert type(changed) is Block
    assert not any(isinstance(m, ScaledActivation) for m in changed.modules())


def test_an_outlier_of_the_input_gets_a_scale_behind_it() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 900, 5)).eval()
    images = COLOUR * torch.tensor([1.0, 500.0, 1.0]).view(3, 1, 1)
    changed = equalize(model, images=images, inserted=True)
    assert_same_function(changed, model, images)
    [scaled] = [m for m in changed.modules() if isinstance(m, ScaledActivation)]
    assert (scaled.after.flatten() != 1).tolist() == [False, True, False]


@pytest.mark.parametrize("name", ["mobilenet_v3_small", "shufflenet_v2_x0_5", "resnet18"])
def test_torchvision_networks_keep_their_function(name) -> None:
    model = lived_in(name)
    assert_same_function(equalize(model, images=COLOUR, inserted=True), model, COLOUR)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:The default weight initialization:FutureWarning")
@pytest.mark.parametrize("name", models.list_models(module=models))
def test_every_torchvision_network_keeps_its_function_at_its_own_size(name) -> None:
    size = 299 if name == "inception_v3" else 224
    images = torch.rand(2, 3, size, size, generator=torch.Generator().manual_seed(0))
    model = lived_in(name)
    assert_same_function(equalize(model, images=images, inserted=True), model, images)


def with_offset(model: nn.Module, layer: str, channel: int, offset: float) -> nn.Module:
    changed = copy.deepcopy(model)
    with torch.no_grad():
        changed.get_submodule(layer).bias[channel] += offset
    return changed


def test_an_offset_before_a_relu_moves_into_the_biases_behind(small) -> None:
    planted = with_offset(small, "conv2", 3, 200.0)
    changed = absorb_offsets(planted, images=GREY)
    assert_same_function(changed, planted, GREY)
    assert float(changed.conv2.bias[3].detach()) < 20
    assert torch.equal(changed.conv2.weight, small.conv2.weight)


def test_an_offset_read_through_padding_leaves_a_map_of_the_borders(small) -> None:
    planted = with_offset(small, "conv1", 2, 200.0)
    changed = absorb_offsets(planted, images=GREY)
    assert_same_function(changed, planted, GREY)
    [offset] = [m.offset for m in changed.modules() if isinstance(m, OffsetMap)]
    assert offset.shape == (1, 8, 14, 14)
    assert not offset[..., 1:-1, 1:-1].any()  # inside it is the bias
    assert offset[..., 0, 0].any()
    assert worst_ratio(equalize(planted, images=GREY), GREY) < 20


def test_an_offset_times_huge_weights_is_given_back_exactly(block) -> None:
    small = plant_collapse(block, "left", 1, 1e-3, example=COLOUR[:1])
    planted = with_offset(small, "left", 1, 200.0)
    changed = absorb_offsets(planted, images=COLOUR)
    with torch.no_grad():
        expected, found = (m.double()(COLOUR.double()) for m in (copy.deepcopy(planted), changed))
    assert float((found - expected).abs().max() / expected.abs().max()) < 1e-6


def test_a_channel_is_rescaled_through_the_map_of_an_absorbed_offset(small) -> None:
    offset = with_offset(small, "conv1", 2, 200.0)
    planted = plant_collapse(offset, "conv2", 3, 1e4, example=GREY[:1])
    changed = equalize(planted, images=GREY)
    assert isinstance(changed.conv2[1], OffsetMap)
    written = []
    changed.conv2.register_forward_hook(lambda _, __, output: written.append(output))
    with torch.no_grad():
        changed(GREY)
    widths = written[0].abs().amax((0, 2, 3))
    assert widths.max() < 10 * widths.median()
    assert_same_function(changed, planted, GREY)


def test_offsets_in_layers_that_follow_each_other_are_all_absorbed(small) -> None:
    planted = with_offset(with_offset(small, "conv1", 2, 200.0), "conv2", 5, 4000.0)
    changed = absorb_offsets(planted, images=GREY)
    assert_same_function(changed, planted, GREY)
    conv2 = changed.get_submodule("conv2.0")
    assert abs(float(conv2.bias[5].detach())) < 400


def test_an_offset_goes_through_an_addition(block) -> None:
    planted = with_offset(block, "second", 1, 300.0)
    changed = absorb_offsets(planted, images=COLOUR)
    assert_same_function(changed, planted, COLOUR)
    assert abs(float(changed.second.bias[1].detach())) < 60


def test_an_offset_before_an_activation_that_is_nowhere_linear_stays() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.Sigmoid(), nn.Flatten(), nn.Linear(4 * 1024, 5))
    planted = with_offset(model.eval(), "0", 1, 200.0)
    changed = absorb_offsets(planted, images=COLOUR)
    assert torch.equal(changed[0].bias, planted[0].bias)


def test_sound_networks_have_no_offset_to_absorb(small) -> None:
    state = absorb_offsets(small, images=GREY).state_dict()
    assert all(torch.equal(value, state[name]) for name, value in small.state_dict().items())


def test_dead_filters_are_left_alone(small) -> None:
    with torch.no_grad():
        small.conv1.weight[1] = 0
        small.conv1.bias[1] = 0
    balanced = equalize(small, images=GREY)
    # what reads the dead channel moves with its own filters alone
    filters = (balanced.conv2.bias / small.conv2.bias).view(-1, 1, 1)
    torch.testing.assert_close(balanced.conv2.weight[:, 1], small.conv2.weight[:, 1] * filters)
    assert all(torch.isfinite(p).all() for p in balanced.parameters())


def test_values_that_are_not_finite_are_named(small) -> None:
    with torch.no_grad():
        small.conv2.weight[0] = float("nan")
    with pytest.raises(ValueError, match="tensor 'conv2' holds values that are not finite"):
        equalize(small, images=GREY)


def test_a_rewrite_that_changes_the_function_is_refused(small) -> None:
    other = copy.deepcopy(small)
    with torch.no_grad():
        other.classifier.bias[0] += 1
    with pytest.raises(RewriteError, match=r"SmallCNN cannot be rewritten: its logits move by"):
        require_same_function(other, small, images=GREY)


@pytest.mark.parametrize(
    "change",
    [
        fold_batch_norm,
        lambda model: equalize(model, images=GREY),
        lambda model: equalize(model, images=GREY, inserted=True),
        lambda model: absorb_offsets(model, images=GREY),
        lambda model: plant_collapse(model, "conv1", 0, 100.0, example=GREY[:1]),
    ],
)
def test_never_changes_its_input(small, change) -> None:
    before = copy.deepcopy(small.state_dict())
    changed = change(small)
    assert all(torch.equal(value, before[name]) for name, value in small.state_dict().items())
    assert type(changed) is SmallCNN
    assert not changed.training


@pytest.mark.parametrize(
    ("layer", "channels", "factor", "message"),
    [
        ("conv9", 0, 10.0, "layer 'conv9' cannot be rescaled; allowed: conv1, conv2"),
        ("classifier", 0, 10.0, "layer 'classifier' cannot be rescaled"),
        ("conv1", 6, 10.0, "channels of conv1 are 6; allowed: 0 to 5"),
        ("conv1", -1, 10.0, "channels of conv1 are -1"),
        ("conv1", [], 10.0, r"channels of conv1 are \[\]"),
        ("conv1", 0, 0.0, "factor is 0.0; allowed: a positive number"),
        ("conv1", 0, float("nan"), "factor is nan"),
        ("conv1", 0, float("inf"), "factor is inf"),
    ],
)
def test_refuses_a_specimen_that_cannot_be(small, layer, channels, factor, message) -> None:
    with pytest.raises(ValueError, match=message):
        plant_collapse(small, layer, channels, factor, example=GREY[:1])


def test_plant_specimen_takes_the_first_layer_that_can_be_rescaled(small) -> None:
    specimen = plant_specimen(small, channel=30, factor=1e4, example=GREY[:1])
    assert (specimen.layer, specimen.channel) == ("conv1", 5)
    assert_same_function(specimen.model, small, GREY)


@pytest.mark.parametrize(
    "norm",
    [
        nn.InstanceNorm2d(8),
        nn.BatchNorm2d(8, affine=False),
        nn.BatchNorm2d(8, track_running_stats=False),
        nn.GroupNorm(2, 8, affine=False),
    ],
    ids=["instance", "no weights", "no statistics", "groups"],
)
def test_a_normalization_without_weights_or_statistics_is_passed_by(norm) -> None:
    set_deterministic(0)
    first, second = nn.Conv2d(1, 8, 3), nn.Conv2d(8, 8, 3)
    model = nn.Sequential(first, norm, nn.ReLU(), second, nn.ReLU(), nn.Flatten(), nn.LazyLinear(4))
    model.eval()(torch.rand(2, 1, 8, 8))
    images = torch.rand(16, 1, 8, 8)
    with torch.no_grad():
        expected, found = model(images), equalize(model, images=images)(images)
    assert found.numpy() == pytest.approx(expected.numpy(), rel=1e-3, abs=1e-4)


class SharedActivation(nn.Module):
    """One SiLU behind two convolutions of other widths."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(1, 6, 3, padding=1), nn.Conv2d(6, 10, 3, padding=1)
        self.act, self.head = nn.SiLU(), nn.Linear(10, 4)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        hidden = self.act(self.second(self.act(self.first(images))))
        return self.head(hidden.mean((2, 3)))


def test_an_activation_that_serves_two_places_gets_the_scale_of_one() -> None:
    set_deterministic(0)
    model, images = SharedActivation().eval(), torch.rand(16, 1, 8, 8)
    with torch.no_grad():
        model.first.weight[2] *= 500
        model.second.weight[:, 2] /= 500
        expected = model(images)
        changed = equalize(model, images=images, inserted=True)
        assert changed(images).numpy() == pytest.approx(expected.numpy(), rel=1e-3, abs=1e-4)
    assert len(float_modules(changed)) == 1


class NormOverRows(nn.LayerNorm):
    """As networks of channels-last tensors bring their own; here rows are as many as channels."""

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        return nn.functional.layer_norm(hidden, self.normalized_shape, self.weight, self.bias)


@pytest.mark.parametrize("side", [8, 6])
def test_a_layer_norm_of_ones_own_on_channels_last_is_left_as_it_is(side) -> None:
    class Own(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.norm = nn.Conv2d(1, 8, 3, padding=1), NormOverRows(8)
            self.head = nn.Linear(8, 4)

        def forward(self, images: torch.Tensor) -> torch.Tensor:
            rows = self.norm(self.conv(images).permute(0, 2, 3, 1))  # [B, H, W, C]
            return self.head(rows.mean((1, 2)))

    set_deterministic(0)
    model, images = Own().eval(), torch.rand(16, 1, side, side)
    with torch.no_grad():
        expected, found = model(images), equalize(model, images=images)(images)
    assert found.numpy() == pytest.approx(expected.numpy(), rel=1e-3, abs=1e-4)


def test_an_offset_read_by_a_linear_layer_at_every_position_moves_into_its_bias() -> None:
    class ByPosition(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.head = nn.Conv2d(1, 6, 3, padding=1), nn.Linear(6, 4)

        def forward(self, images: torch.Tensor) -> torch.Tensor:
            hidden = nn.functional.relu(self.conv(images)).flatten(2).transpose(1, 2)
            return self.head(hidden).mean(1)

    set_deterministic(0)
    model, images = with_offset(ByPosition().eval(), "conv", 3, 200.0), torch.rand(8, 1, 7, 7)
    with torch.no_grad():
        changed = absorb_offsets(model, images=images)
        assert changed(images).numpy() == pytest.approx(model(images).numpy(), rel=1e-3, abs=1e-3)
    assert changed.conv.bias[3] < 100


def test_readers_are_found_behind_a_batch_norm_and_each_once() -> None:
    class Shuffling(nn.Module):
        """Half of the channels pass each block untouched: paths would multiply."""

        def __init__(self, blocks: int) -> None:
            super().__init__()
            self.first, self.norm = nn.Conv2d(1, 8, 1), nn.BatchNorm2d(8)
            self.blocks = nn.ModuleList(nn.Conv2d(4, 4, 1) for _ in range(blocks))

        def forward(self, images: torch.Tensor) -> torch.Tensor:
            hidden = self.norm(self.first(images))
            for block in self.blocks:
                kept, changed = hidden.chunk(2, 1)
                hidden = torch.cat([kept, block(changed)], 1)
                hidden = hidden.unflatten(1, (2, 4)).transpose(1, 2).flatten(1, 2)
            return hidden.mean((2, 3))

    model = Shuffling(24)  # 2 to the 24 paths and more
    found = with_readers(model, {"first"})
    assert found == {"first", "norm", *(f"blocks.{place}" for place in range(24))}
