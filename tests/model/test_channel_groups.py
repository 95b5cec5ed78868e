"""Channel groups: which layers write and read a channel, found by moving numbers with the data."""

import copy
from collections.abc import Callable
from functools import partial

import pytest
import torch
from torch import nn
from torch.nn import functional

from edgeopt.model.canonical import fold_batch_norm
from edgeopt.model.channel_groups import FIXED, channel_groups
from edgeopt.model.networks import SmallCNN
from edgeopt.quantization.rescaling import barrier_groups, rescale
from edgeopt.system.torchvision import models
from tests.networks import Block, assert_same_function, lived_in, small_convnext

COLOUR = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))


def groups_of(model: nn.Module, images: torch.Tensor = COLOUR):
    folded = fold_batch_norm(model)
    return folded, channel_groups(folded, example=images[:1])


def test_a_chain_has_one_group_a_channel_and_the_ends_are_fixed():
    model = SmallCNN(6, 8, 4)
    _, groups = groups_of(model, torch.zeros(1, 1, 28, 28))
    conv1, conv2, head = (groups.layers[name] for name in ("conv1", "conv2", "classifier"))
    assert torch.equal(conv1.outputs, conv2.inputs)
    assert len(set(conv1.outputs.tolist())) == 6
    # flatten lays the 7 x 7 places of a channel side by side
    assert torch.equal(head.inputs, conv2.outputs.repeat_interleave(49))
    assert (head.outputs == FIXED).all()


def test_an_addition_ties_its_writers_and_a_shortcut_reads_them():
    _, groups = groups_of(Block().eval())
    writers = [groups.layers[name].outputs for name in ("stem", "second")]
    assert torch.equal(*writers)
    assert torch.equal(groups.layers["first"].inputs, writers[0])
    assert not set(groups.layers["first"].outputs.tolist()) & set(writers[0].tolist())


def test_a_concatenation_keeps_the_order_of_its_parts():
    _, groups = groups_of(Block().eval())
    parts = [groups.layers[name].outputs for name in ("left", "right")]
    assert torch.equal(groups.layers["after"].inputs, torch.cat(parts))


def test_a_depthwise_layer_ends_one_group_and_begins_another():
    _, groups = groups_of(models.mobilenet_v2().eval())
    depthwise = groups.layers["features.3.conv.1.0"]
    assert not set(depthwise.inputs.tolist()) & set(depthwise.outputs.tolist())


def test_a_layer_norm_begins_a_group_and_reads_none():
    _, groups = groups_of(small_convnext())
    norm, linear = (groups.layers[f"features.1.0.block.{place}"] for place in (2, 3))
    assert (norm.inputs == FIXED).all()
    assert torch.equal(norm.outputs, linear.inputs)
    assert len(set(norm.outputs.tolist())) == 8
    between = groups.layers["features.2.0"].outputs  # its channels are the second axis
    assert torch.equal(between, groups.layers["features.2.1"].inputs)


def test_squeeze_and_excitation_reads_what_it_gates():
    _, groups = groups_of(models.mobilenet_v3_small().eval())
    block = "features.1.block"
    gated = groups.layers[f"{block}.0.0"].outputs
    assert torch.equal(groups.layers[f"{block}.1.fc1"].inputs, gated)
    assert torch.equal(groups.layers[f"{block}.2.0"].inputs, gated)
    assert barrier_groups(groups)[groups.layers[f"{block}.1.fc2"].outputs].all()


@pytest.mark.filterwarnings("ignore:The default weight initialization:FutureWarning")
@pytest.mark.parametrize(
    "name",
    [
        "resnet18",
        "mobilenet_v2",
        "mobilenet_v3_small",
        "shufflenet_v2_x0_5",
        "squeezenet1_1",
        "mnasnet0_5",
        "regnet_y_400mf",
        pytest.param("efficientnet_b0", marks=pytest.mark.slow),
        pytest.param("densenet121", marks=pytest.mark.slow),
        pytest.param("googlenet", marks=pytest.mark.slow),
        pytest.param("vgg11_bn", marks=pytest.mark.slow),
    ],
)
def test_any_scale_of_the_free_groups_keeps_the_function(name):
    model = lived_in(name)
    folded, groups = groups_of(model)
    free = ~barrier_groups(groups)
    free[FIXED] = False
    assert free.any()
    generator = torch.Generator().manual_seed(1)
    factors = 10 ** (4 * torch.rand(groups.count, generator=generator) - 2)
    scaled = rescale(folded, groups, torch.where(free, factors, 1.0))
    assert_same_function(scaled, model, COLOUR)


class Between(nn.Module):
    """Two convolutions and what lies between them."""

    def __init__(self, between: Callable[[torch.Tensor], torch.Tensor]) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 6, 3), nn.Conv2d(6, 4, 3)
        self.between = between

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.second(self.between(self.first(images))).mean((2, 3))


@pytest.mark.parametrize(
    "between",
    [
        nn.PReLU(6),
        torch.abs,
        nn.ZeroPad2d(2),
        nn.ReflectionPad2d((0, 1, 2, 3)),
        partial(functional.pad, pad=(1, 0, 0, 1)),
        nn.Upsample(scale_factor=2, mode="bilinear"),
        partial(functional.interpolate, size=20),
        lambda hidden: functional.adaptive_avg_pool2d(hidden, 7),
    ],
)
def test_what_works_inside_a_channel_lets_a_factor_pass(between):
    model = Between(between).eval()
    folded, groups = groups_of(model)
    assert torch.equal(groups.layers["first"].outputs, groups.layers["second"].inputs)
    assert (groups.layers["first"].outputs != FIXED).all()
    scale = torch.logspace(-2, 2, groups.count)
    scale[barrier_groups(groups)] = scale[FIXED] = 1
    assert_same_function(rescale(folded, groups, scale), model, COLOUR)


@pytest.mark.parametrize("between", [nn.Softplus(), nn.SELU(), partial(torch.clamp, min=0, max=2)])
def test_other_activations_are_barriers(between):
    _, groups = groups_of(Between(between).eval())
    assert barrier_groups(groups)[groups.layers["first"].outputs].all()
    assert barrier_groups(groups)[groups.layers["second"].inputs].all()


@pytest.mark.parametrize(
    "between",
    [
        partial(functional.pad, pad=(1, 1, 1, 1), value=0.5),
        lambda hidden: functional.pad(hidden, (0, 0, 0, 0, 1, 1))[:, 1:7],
        nn.ConstantPad2d(1, -3.0),
        lambda hidden: torch.clamp(hidden, max=hidden.mean((2, 3), keepdim=True)),
    ],
)
def test_what_depends_on_more_than_the_channel_fixes_it(between):
    _, groups = groups_of(Between(between).eval())
    assert (groups.layers["first"].outputs == FIXED).all()


class Shared(nn.Module):
    """A layer called twice, one whose weight is read elsewhere, and two with tied weights."""

    def __init__(self) -> None:
        super().__init__()
        self.twice = nn.Conv2d(3, 3, 1)
        self.read = nn.Conv2d(3, 3, 1)
        self.first, self.second = nn.Conv2d(3, 3, 1), nn.Conv2d(3, 3, 1)
        self.second.weight = self.first.weight
        self.free, self.head = nn.Conv2d(3, 4, 1), nn.Linear(4, 5)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        hidden = torch.relu(self.twice(torch.relu(self.twice(images))))
        hidden = torch.relu(self.read(hidden)) * self.read.weight.sum()
        hidden = torch.relu(self.second(torch.relu(self.first(hidden))))
        return self.head(torch.relu(self.free(hidden)).mean((2, 3)))


def test_layers_whose_weights_serve_twice_are_left_alone():
    model = Shared().eval()
    _, groups = groups_of(model)
    for name in ("twice", "read", "first", "second"):
        assert (groups.layers[name].inputs == FIXED).all()
        assert (groups.layers[name].outputs == FIXED).all()
    assert (groups.layers["free"].outputs != FIXED).all()


def test_reading_a_size_fixes_no_channel():
    class Sized(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = nn.Conv2d(3, 6, 3), nn.Conv2d(6, 8, 3)
            self.pool, self.head = nn.AdaptiveAvgPool2d(2), nn.Linear(8 * 2 * 2, 5)

        def forward(self, images: torch.Tensor) -> torch.Tensor:
            hidden = torch.relu(self.first(images))
            count, channels, height, width = hidden.size()
            halves = hidden.view(count, 2, channels // 2, height, width).transpose(1, 2)
            hidden = torch.relu(self.second(halves.reshape(count, channels, height, width)))
            return self.head(self.pool(hidden).view(hidden.shape[0], -1))

    _, groups = groups_of(Sized().eval())
    written = groups.layers["first"].outputs
    shuffled = written[[0, 3, 1, 4, 2, 5]]  # of two halves, one channel each in turn
    assert torch.equal(groups.layers["second"].inputs, shuffled)
    assert len(set(written.tolist()) - {FIXED}) == 6
    assert (groups.layers["second"].outputs != FIXED).all()


def test_the_stream_of_a_shufflenet_is_free():
    _, groups = groups_of(models.shufflenet_v2_x0_5().eval())
    for name, ports in groups.layers.items():
        assert (ports.outputs != FIXED).all() or name == "fc", name


def test_an_unknown_operation_fixes_what_it_reads():
    class Odd(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer, self.head = nn.Conv2d(3, 4, 1), nn.Linear(4, 5)

        def forward(self, images: torch.Tensor) -> torch.Tensor:
            return self.head(torch.cumsum(self.layer(images), 1).mean((2, 3)))

    _, groups = groups_of(Odd().eval())
    assert (groups.layers["layer"].outputs == FIXED).all()


def test_finding_groups_changes_nothing():
    model = lived_in("resnet18")
    before = copy.deepcopy(model.state_dict())
    groups_of(model)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_untraceable_networks_are_refused():
    class Branching(nn.Module):
        def forward(self, images: torch.Tensor) -> torch.Tensor:
            return images if images.sum() > 0 else -images

    with pytest.raises(ValueError, match=r"torch\.fx cannot trace Branching"):
        channel_groups(Branching(), example=COLOUR[:1])
