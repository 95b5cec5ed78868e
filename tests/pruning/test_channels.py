"""Pruning: which channels stay, what the smaller model computes, what is refused."""

import copy
from decimal import ROUND_HALF_EVEN, Decimal
from functools import partial
from itertools import pairwise, starmap

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from edgeopt.model.networks import SmallCNN, build_model
from edgeopt.pruning.channels import (
    count_macs,
    prune_channels,
    prune_to_widths,
    structured_channel_prune,
)
from edgeopt.pruning.groups import channel_widths, checked_choices, width_steps
from edgeopt.schema import CRITERIA
from tests.networks import Block

IMAGES = torch.rand(4, 1, 28, 28, generator=torch.Generator().manual_seed(0))
LABELLED = [(IMAGES, torch.arange(4))]
COLOUR = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def small() -> SmallCNN:
    torch.manual_seed(0)
    return SmallCNN(conv1_channels=8, conv2_channels=12).eval()


@pytest.fixture(scope="module")
def mobilenet() -> nn.Module:
    torch.manual_seed(0)
    return build_model("mobilenet_v3_small").eval()


def with_norms(conv: nn.Conv2d, norms: list[float]) -> None:
    """Give each filter a known L1 norm, in one tap of alternating sign."""
    with torch.no_grad():
        conv.weight.zero_()
        for index, norm in enumerate(norms):
            conv.weight[index, 0, 1, 1] = norm * (-1) ** index


def test_keeps_the_filters_with_the_largest_l1_norm_in_their_order() -> None:
    model = SmallCNN(conv1_channels=4, conv2_channels=3)
    with_norms(model.conv1, [3.0, 1.0, 4.0, 2.0])
    with_norms(model.conv2, [1.0, 5.0, 9.0])
    pruned = structured_channel_prune(model, 0.5)
    assert pruned.conv1.weight[:, 0, 1, 1].tolist() == [3.0, 4.0]
    assert pruned.conv2.weight[:, 0, 1, 1].tolist() == [-5.0, 9.0]
    assert torch.equal(pruned.conv1.bias, model.conv1.bias[[0, 2]])


def test_l1_is_not_l2() -> None:
    model = SmallCNN(conv1_channels=2, conv2_channels=2)
    with torch.no_grad():
        model.conv1.weight[0] = 0.5  # L1 4.5, L2 1.5
        model.conv1.weight[1] = 0.0
        model.conv1.weight[1, 0, 0, 0] = 4.0  # L1 4.0, L2 4.0
    pruned = structured_channel_prune(model, 0.5)
    assert torch.equal(pruned.conv1.weight[0], model.conv1.weight[0])


def test_equal_norms_keep_the_first_filters() -> None:
    model = SmallCNN(conv1_channels=4, conv2_channels=2)
    with_norms(model.conv1, [1.0, 1.0, 1.0, 1.0])
    assert torch.equal(structured_channel_prune(model, 0.5).conv1.bias, model.conv1.bias[:2])


def test_classifier_keeps_the_7x7_block_of_each_kept_channel() -> None:
    model = SmallCNN(conv1_channels=1, conv2_channels=3)
    with_norms(model.conv2, [5.0, 1.0, 7.0])
    pruned = structured_channel_prune(model, 0.4)
    columns = [*range(49), *range(98, 147)]
    assert torch.equal(pruned.classifier.weight, model.classifier.weight[:, columns])
    assert torch.equal(pruned.classifier.bias, model.classifier.bias)


@settings(max_examples=25, deadline=None)
@given(
    level=st.floats(0, 1, exclude_max=True),
    channels=st.tuples(st.integers(1, 20), st.integers(1, 20)),
    seed=st.integers(0, 100),
)
def test_equals_the_original_with_the_dropped_channels_silenced(
    level: float, channels: tuple[int, int], seed: int
) -> None:
    torch.manual_seed(seed)
    model = SmallCNN(*channels).eval()
    pruned = structured_channel_prune(model, level)
    sizes = [pruned.conv1.out_channels, pruned.conv2.out_channels]
    assert sizes == [max(1, round(count * (1 - level))) for count in channels]
    silenced = copy.deepcopy(model)
    for conv, keep in zip((silenced.conv1, silenced.conv2), sizes, strict=True):
        norms = conv.weight.detach().abs().sum((1, 2, 3)).tolist()
        weakest = sorted(range(len(norms)), key=lambda index: (-norms[index], index))[keep:]
        with torch.no_grad():
            conv.weight[weakest] = 0
            conv.bias[weakest] = 0
    torch.testing.assert_close(pruned(IMAGES), silenced(IMAGES), rtol=1e-4, atol=1e-5)


def test_level_0_is_the_identity_and_a_copy(small: SmallCNN) -> None:
    pruned = structured_channel_prune(small, 0)
    assert torch.equal(pruned(IMAGES), small(IMAGES))
    assert all(
        a.data_ptr() != b.data_ptr()
        for a, b in zip(pruned.parameters(), small.parameters(), strict=True)
    )


@pytest.mark.parametrize(
    "prune",
    [
        lambda model: structured_channel_prune(model, 0.5),
        lambda model: prune_channels(model, 0.5, example_input=IMAGES, round_to=1),
    ],
)
def test_never_changes_its_input(small: SmallCNN, prune) -> None:
    before = copy.deepcopy(small.train().state_dict())
    pruned = prune(small)
    assert pruned.training
    assert small.training
    assert all(torch.equal(value, before[name]) for name, value in small.state_dict().items())
    assert all(p.grad is None for p in (*small.parameters(), *pruned.parameters()))


def test_almost_everything_pruned_leaves_one_channel(small: SmallCNN) -> None:
    pruned = structured_channel_prune(small, 0.999)
    assert (pruned.conv1.out_channels, pruned.conv2.out_channels) == (1, 1)
    assert pruned(IMAGES).shape == (4, 10)


@pytest.mark.parametrize(
    "level", [1.0, 1, -0.1, 1.5, float("nan"), float("inf"), True, "0.5", None]
)
@pytest.mark.parametrize(
    "prune", [structured_channel_prune, partial(prune_channels, example_input=IMAGES)]
)
def test_refuses_a_level_outside_the_range(small: SmallCNN, level, prune) -> None:
    with pytest.raises(ValueError, match=r"pruning_level is .*\[0, 1\)"):
        prune(small, level)


def test_structured_pruning_takes_small_cnn_only(mobilenet: nn.Module) -> None:
    with pytest.raises(TypeError, match="not MobileNetV3; prune_channels takes any model"):
        structured_channel_prune(mobilenet, 0.5)


def test_macs_of_small_cnn_by_hand(small: SmallCNN) -> None:
    by_hand = 28 * 28 * 8 * 9 + 14 * 14 * 12 * 8 * 9 + 12 * 49 * 10
    assert count_macs(small, example_input=IMAGES) == by_hand


@pytest.mark.parametrize("criterion", CRITERIA)
def test_every_criterion_prunes_a_backbone_to_multiples_of_8(
    mobilenet: nn.Module, criterion: str
) -> None:
    loader = [(COLOUR, torch.tensor([0, 1]))]
    pruned = prune_channels(
        mobilenet, 0.4, example_input=COLOUR, criterion=criterion, loader=loader
    )
    convs = [m for m in pruned.modules() if isinstance(m, nn.Conv2d)]
    assert all(conv.out_channels % 8 == 0 for conv in convs)
    assert all(conv.groups in (1, conv.in_channels) for conv in convs)
    assert pruned(COLOUR).shape == (2, 10)
    macs = [count_macs(model, example_input=COLOUR) for model in (mobilenet, pruned)]
    assert 0.2 < macs[1] / macs[0] < 0.6


def test_criteria_choose_by_what_they_say() -> None:
    model = SmallCNN(conv1_channels=2, conv2_channels=2)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(0.1)
        model.conv1.weight[0] = 0.5  # larger by L1
        model.conv1.weight[1] = 0.0
        model.conv1.weight[1, 0, 0, 0] = 4.0  # larger by L2
    kept = {
        criterion: prune_channels(
            model, 0.5, example_input=IMAGES, criterion=criterion, round_to=1
        ).conv1.weight[0]
        for criterion in ("l1", "l2")
    }
    assert torch.equal(kept["l1"], model.conv1.weight[0])
    assert torch.equal(kept["l2"], model.conv1.weight[1])


def test_random_follows_its_seed_and_leaves_the_global_one_alone(small: SmallCNN) -> None:
    torch.manual_seed(7)
    expected = torch.rand(1)
    torch.manual_seed(7)
    options = {"example_input": IMAGES, "criterion": "random", "round_to": 1}
    first, again, other = (
        prune_channels(small, 0.5, seed=seed, **options).conv2.bias.tolist() for seed in (1, 1, 2)
    )
    assert first == again != other
    assert torch.equal(torch.rand(1), expected)


def test_taylor_keeps_the_channel_that_the_loss_depends_on() -> None:
    torch.manual_seed(0)
    model = SmallCNN(conv1_channels=2, conv2_channels=4).eval()
    with torch.no_grad():
        model.conv2.weight[:, 0] = 0  # nothing downstream sees channel 0, however large it is
        model.conv1.weight[0] = 9.0
    pruned = prune_channels(
        model,
        0.5,
        example_input=IMAGES,
        criterion="taylor",
        round_to=1,
        loader=LABELLED,
    )
    assert torch.equal(pruned.conv1.weight[0], model.conv1.weight[1])


WIDTHS = [(1, 1), (1, 3), (3, 5), (5, 10), (10, 16), (16, 33), (33, 3)]
LEVELS = [0.1, 0.25, 0.3, 0.5, 0.6, 0.7, 0.75, 0.9, 0.95]


def rule(channels: int, level: float) -> int:
    """Round as the documents do: the nearest whole number, of two the even one, at least one."""
    share = Decimal(channels * (1 - level))
    return max(1, int(share.quantize(Decimal(1), rounding=ROUND_HALF_EVEN)))


@pytest.mark.parametrize("criterion", CRITERIA)
@pytest.mark.parametrize("widths", WIDTHS)
def test_every_criterion_leaves_the_widths_and_macs_of_the_rule(
    widths: tuple[int, int], criterion: str
) -> None:
    model = SmallCNN(*widths).eval()
    options = {"criterion": criterion, "loader": LABELLED, "example_input": IMAGES[:1]}
    for level in LEVELS:
        pruned = prune_channels(model, level, round_to=1, **options)
        first, second = (rule(channels, level) for channels in widths)
        assert (pruned.conv1.out_channels, pruned.conv2.out_channels) == (first, second)
        by_hand = 28 * 28 * first * 9 + 14 * 14 * second * first * 9 + second * 49 * 10
        assert count_macs(pruned, example_input=IMAGES) == by_hand


@pytest.mark.parametrize("criterion", CRITERIA)
def test_at_level_7_every_criterion_leaves_5_and_10_of_16_and_32(criterion: str) -> None:
    pruned = prune_channels(
        SmallCNN(16, 32),
        0.7,
        example_input=IMAGES[:1],
        criterion=criterion,
        round_to=1,
        loader=LABELLED,
    )
    assert (pruned.conv1.out_channels, pruned.conv2.out_channels) == (5, 10)
    assert count_macs(pruned, example_input=IMAGES) == 35_280 + 88_200 + 4_900


def by_the_documents(model: SmallCNN, level: float) -> dict[str, torch.Tensor]:
    """Prune by hand, in plain torch: the strongest filters by L1, and what reads them."""
    kept = []
    for conv in (model.conv1, model.conv2):
        norms = conv.weight.detach().double().abs().sum((1, 2, 3)).tolist()
        ranked = sorted(range(len(norms)), key=lambda index: (-norms[index], index))
        kept.append(sorted(ranked[: rule(len(norms), level)]))
    columns = [49 * channel + pixel for channel in kept[1] for pixel in range(49)]
    return {
        "conv1.weight": model.conv1.weight[kept[0]],
        "conv1.bias": model.conv1.bias[kept[0]],
        "conv2.weight": model.conv2.weight[kept[1]][:, kept[0]],
        "conv2.bias": model.conv2.bias[kept[1]],
        "classifier.weight": model.classifier.weight[:, columns],
        "classifier.bias": model.classifier.bias,
    }


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("widths", WIDTHS)
def test_l1_keeps_the_weights_that_the_documents_rule_keeps(
    widths: tuple[int, int], tied: bool
) -> None:
    torch.manual_seed(sum(widths))
    model = SmallCNN(*widths).eval()
    if tied:  # whole numbers, whose sums are exact and often equal
        for conv in (model.conv1, model.conv2):
            conv.weight.data = (conv.weight.data * 5).round()
    for level in LEVELS:
        expected = by_the_documents(model, level)
        graph = prune_channels(model, level, example_input=IMAGES[:1], round_to=1).state_dict()
        small = structured_channel_prune(model, level).state_dict()
        assert all(torch.equal(graph[name], value) for name, value in expected.items())
        assert all(torch.equal(small[name], value) for name, value in expected.items())


class Residual(nn.Module):
    """Two convolutions write the channels that are added up; the head reads them."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 3, padding=1, bias=False)
        self.branch = nn.Conv2d(4, 4, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(4)
        self.head = nn.Linear(4, 10)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        stem = self.stem(images)
        return self.head((stem + self.norm(self.branch(stem))).mean((2, 3)))


def with_sums(weight: torch.Tensor, sums: list[float]) -> None:
    """Give the filters these L1 norms, each in one tap."""
    with torch.no_grad():
        weight.zero_()
        weight.flatten(1)[:, 0] = torch.tensor(sums)


@pytest.mark.parametrize("criterion", ["l1", "l2"])
def test_importance_is_the_mean_over_the_layers_that_write(criterion: str) -> None:
    model = Residual().eval()
    with_sums(model.stem.weight, [9.0, 1.0, 5.0, 2.0])
    with_sums(model.branch.weight, [0.5, 8.0, 2.0, 6.0])  # means 4.75, 4.5, 3.5, 4
    with torch.no_grad():
        model.head.weight[:, 2:] = 100.0  # readers and scales, which have no say
        model.norm.weight.copy_(torch.tensor([1.0, 1.0, 50.0, 50.0]))
    pruned = prune_channels(model, 0.5, example_input=COLOUR, criterion=criterion, round_to=1)
    assert torch.equal(pruned.stem.weight, model.stem.weight[:2])
    assert torch.equal(pruned.branch.weight, model.branch.weight[:2, :2])
    assert torch.equal(pruned.head.weight, model.head.weight[:, :2])


def test_a_depthwise_layer_writes_its_channels() -> None:
    model = nn.Sequential(
        nn.Conv2d(3, 3, 1),
        nn.Conv2d(3, 3, 3, groups=3),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(3, 10),
    )
    with_sums(model[0].weight, [3.0, 2.0, 1.0])
    with_sums(model[1].weight, [1.0, 1.0, 9.0])  # means 2, 1.5, 5
    pruned = prune_channels(model, 0.4, example_input=COLOUR, round_to=1)
    assert torch.equal(pruned[1].weight, model[1].weight[[0, 2]])
    assert pruned[1].groups == 2


def test_a_transposed_convolution_is_ranked_by_its_outputs() -> None:
    model = nn.Sequential(
        nn.Conv2d(3, 2, 3),
        nn.ConvTranspose2d(2, 3, 2),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(3, 10),
    )
    with_sums(model[0].weight, [2.0, 1.0])
    with torch.no_grad():
        model[1].weight.zero_()
        model[1].weight[0, :, 0, 0] = torch.tensor([1.0, 3.0, 2.0])
    pruned = prune_channels(model, 0.4, example_input=COLOUR, round_to=1)
    assert torch.equal(pruned[1].weight, model[1].weight[:1, 1:])


@pytest.mark.parametrize(
    ("level", "round_to", "width"),
    [(0.5, 1, 8), (0.1, 1, 16), (0.8, 1, 4), (0.8, 8, 8), (0.6, 3, 12)],  # 12: of 4 and of 3
)
def test_every_group_of_a_grouped_convolution_keeps_as_many(
    level: float, round_to: int, width: int
) -> None:
    model = nn.Sequential(
        nn.Conv2d(3, 16, 3),
        nn.Conv2d(16, 16, 3, groups=4),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(16, 10),
    )
    pruned = prune_channels(model, level, example_input=COLOUR, round_to=round_to)
    assert (pruned[0].out_channels, pruned[1].out_channels) == (width, width)
    assert pruned(COLOUR).shape == (2, 10)


def test_a_level_below_half_a_channel_changes_nothing(small: SmallCNN) -> None:
    pruned = prune_channels(small, 0.04, example_input=IMAGES, round_to=1)  # 7.68 and 11.52
    assert torch.equal(pruned(IMAGES), small(IMAGES))


def test_a_frozen_network_is_pruned_as_any_other(small: SmallCNN) -> None:
    expected = structured_channel_prune(small, 0.5)
    pruned = structured_channel_prune(small.requires_grad_(False), 0.5)
    assert torch.equal(pruned.conv2.weight, expected.conv2.weight)
    assert all(parameter.requires_grad for parameter in pruned.parameters())


@pytest.mark.parametrize(
    ("level", "widths"),
    [(0.9, (8, 8)), (0.6, (8, 16)), (0.3, (8, 24))],  # of 2 and 3, 6 and 13, 11 and 22
)
def test_channels_are_rounded_to_the_nearest_multiple_and_at_least_one(level, widths) -> None:
    model = SmallCNN(conv1_channels=16, conv2_channels=32)
    pruned = prune_channels(model, level, example_input=IMAGES)
    assert (pruned.conv1.out_channels, pruned.conv2.out_channels) == widths


@pytest.mark.parametrize("name", ["resnet18", "efficientnet_b0", "mobilenet_v3_large"])
def test_other_backbones_stay_consistent(name: str) -> None:
    model = build_model(name, num_classes=7).eval()
    pruned = prune_channels(model, 0.5, example_input=COLOUR)
    assert pruned(COLOUR).shape == (2, 7)
    assert count_macs(pruned, example_input=COLOUR) < count_macs(model, example_input=COLOUR) / 2


class FixedChannels(nn.Module):
    """Insists on 16 channels, which no dependency graph can see."""

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        return features[:, torch.arange(16)]


class Loose(nn.Module):
    """Holds a parameter outside any layer."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 16, 3)
        self.scale = nn.Parameter(torch.ones(16, 1, 1))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return (self.conv(images) * self.scale).mean((2, 3))


class PartlyAdded(nn.Module):
    """Adds the channels of each layer to the first ones of the next, as ReXNet does."""

    def __init__(self) -> None:
        super().__init__()
        widths = [3, *range(8, 80, 8)]
        self.layers = nn.ModuleList(starmap(conv_norm, pairwise(widths)))
        self.classifier = nn.Linear(widths[-1], 5)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        for layer in self.layers:
            wider, count = layer(images), images.shape[1]
            images = torch.cat([wider[:, :count] + images, wider[:, count:]], 1)
        return self.classifier(images.mean((2, 3)))


def conv_norm(before: int, after: int) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(before, after, 1), nn.BatchNorm2d(after))


def test_a_group_without_end_is_given_up_and_named() -> None:
    with pytest.raises(ValueError, match="PartlyAdded: its channels are tied to parts"):
        prune_channels(PartlyAdded(), 0.5, example_input=COLOUR)


def fixed_at(layer: int) -> nn.Sequential:
    """Two convolutions, of which this one's 16 channels are counted behind it."""
    layers = [nn.Conv2d(3, 16, 3), nn.ReLU(), nn.Conv2d(16, 16, 3), nn.Flatten(), nn.LazyLinear(10)]
    layers.insert(layer + 1, FixedChannels())
    model = nn.Sequential(*layers)
    model(COLOUR)
    return model


@pytest.mark.parametrize(("layer", "widths"), [(0, [16, 8]), (2, [8, 16])])
def test_layers_whose_channels_the_code_counts_are_left_whole_and_named(
    layer: int, widths: list[int], caplog: pytest.LogCaptureFixture
) -> None:
    model = fixed_at(layer).train()
    pruned = prune_channels(model, 0.5, example_input=COLOUR)
    convolutions = [own for own in pruned if isinstance(own, nn.Conv2d)]
    assert [own.out_channels for own in convolutions] == widths
    assert pruned(COLOUR).shape == (2, 10)
    assert pruned.training
    [told] = caplog.messages
    name = [n for n, own in model.named_children() if isinstance(own, nn.Conv2d)][layer // 2]
    assert told == f"Sequential: left whole, because its code counts their channels: {name}"
    others = {"0", "2", "3"} - {name}
    assert {*channel_widths(model, example_input=COLOUR)} <= others


def test_names_the_module_that_breaks_when_its_input_shrinks() -> None:
    model = nn.Sequential(nn.Conv2d(3, 16, 3), FixedChannels(), nn.Flatten(), nn.LazyLinear(10))
    model(COLOUR)
    with pytest.raises(ValueError, match=r"module '1' \(FixedChannels\) fails"):
        prune_channels(model, 0.5, example_input=COLOUR)


def test_names_the_parameters_that_the_graph_cannot_take() -> None:
    model = nn.Sequential(Loose(), nn.Linear(16, 10))
    with pytest.raises(ValueError, match=r"parameters outside a known layer.*0\.scale"):
        prune_channels(model, 0.5, example_input=COLOUR)


def test_names_the_module_whose_graph_cannot_be_built() -> None:
    model = build_model("shufflenet_v2_x0_5")
    with pytest.raises(ValueError, match=r"cannot take module 'stage2' \(Sequential\)"):
        prune_channels(model, 0.5, example_input=COLOUR)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"criterion": "l3"}, "unknown criterion 'l3'; allowed: l1, l2, taylor, random"),
        ({"criterion": "taylor"}, "give it a loader of batches"),
        ({"criterion": "taylor", "loader": []}, "give it a loader of batches"),
        ({"round_to": 0}, "round_to is 0; allowed"),
        ({"round_to": 64}, "no channel can be removed: round_to is 64, and no .* than 12"),
        ({"example_input": COLOUR}, r"module 'conv1' \(Conv2d\) fails on an input of shape"),
    ],
)
def test_refuses_bad_options(small: SmallCNN, options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        prune_channels(small, 0.5, **{"example_input": IMAGES, **options})


def test_names_what_has_no_channels_to_lose() -> None:
    only_the_head = nn.Sequential(nn.Flatten(), nn.Linear(784, 10))
    with pytest.raises(ValueError, match="no channel can be removed: all layers make the logits"):
        prune_channels(only_the_head, 0.5, example_input=IMAGES)
    with pytest.raises(ValueError, match="Flatten has no convolution or linear layer to prune"):
        prune_channels(nn.Flatten(), 0.5, example_input=IMAGES)


def test_groups_are_named_by_their_first_writer_in_the_networks_order() -> None:
    torch.manual_seed(0)
    widths = channel_widths(Block().eval(), example_input=torch.zeros(1, 3, 8, 8))
    assert widths == {"stem": 8, "first": 6, "left": 4, "right": 6, "after": 8, "late": 7}
    assert [*widths] == ["stem", "first", "left", "right", "after", "late"]


def test_widths_of_their_own_keep_the_filters_that_the_rule_keeps(small: SmallCNN) -> None:
    image = torch.zeros(1, 1, 28, 28)
    level = prune_channels(small, 0.5, example_input=image, round_to=1)
    both = prune_to_widths(small, {"conv1": 4, "conv2": 6}, example_input=image)
    torch.testing.assert_close(both.state_dict(), level.state_dict(), rtol=0, atol=0)
    one = prune_to_widths(small, {"conv1": 4}, example_input=image)
    assert (one.conv1.out_channels, one.conv2.out_channels) == (4, 12)
    torch.testing.assert_close(one.conv1.weight, level.conv1.weight, rtol=0, atol=0)


def test_a_group_keeps_the_same_channels_in_all_that_write_it() -> None:
    torch.manual_seed(0)
    image = torch.rand(2, 3, 8, 8)
    pruned = prune_to_widths(Block().eval(), {"stem": 5, "right": 4}, example_input=image)
    assert (pruned.stem.out_channels, pruned.second.out_channels) == (5, 5)
    assert (pruned.first.in_channels, pruned.right.in_channels) == (5, 5)
    assert pruned.after.in_channels == 4 + 4
    assert pruned(image).shape == (2, 5)


@pytest.mark.parametrize(
    ("widths", "message"),
    [
        ({"conv9": 3}, "unknown channel group 'conv9'; allowed: conv1, conv2"),
        ({"conv1": 0}, "conv1 is to keep 0 channels; allowed: 1 to 8"),
        ({"conv1": 17}, "conv1 is to keep 17 channels; allowed: 1 to 8"),
    ],
)
def test_refuses_widths_that_there_are_not(small: SmallCNN, widths: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        prune_to_widths(small, widths, example_input=torch.zeros(1, 1, 28, 28))


def test_a_group_with_parts_keeps_as_many_in_each() -> None:
    grouped = nn.Sequential(
        nn.Conv2d(1, 8, 3), nn.Conv2d(8, 12, 3, groups=2), nn.Flatten(), nn.Linear(12 * 16, 3)
    )
    image = torch.zeros(1, 1, 8, 8)
    assert channel_widths(grouped, example_input=image) == {"0": 8, "1": 12}
    assert prune_to_widths(grouped, {"1": 6}, example_input=image)[1].out_channels == 6
    with pytest.raises(ValueError, match="1 is to keep 7 channels; allowed: 1 to 12, multiples"):
        prune_to_widths(grouped, {"1": 7}, example_input=image)


@pytest.mark.parametrize(
    ("choices", "message"),
    [
        ({"conv1": [4]}, r"widths are given for \['conv1'\]; allowed: conv1, conv2"),
        ({"conv1": [2], "conv2": [4]}, r"conv1 is to have \[2\] .* unpruned network's 4 among"),
        ({"conv1": [4, 5], "conv2": [4]}, "conv1 is to have .*; allowed: 1 to 4"),
        ({"conv1": [4], "conv2": [3, 4]}, "conv2 is to have .*; allowed: multiples of 2 up to 4"),
    ],
)
def test_choices_without_the_unpruned_network_are_refused(choices, message) -> None:
    with pytest.raises(ValueError, match=message):
        checked_choices(choices, {"conv1": 4, "conv2": 4}, steps={"conv1": 1, "conv2": 2})


def test_choices_come_back_in_the_network_s_order() -> None:
    own = checked_choices({"conv2": [4, 2, 4], "conv1": [4]}, {"conv1": 4, "conv2": 4})
    assert [*own.items()] == [("conv1", [4]), ("conv2", [2, 4])]
    with pytest.raises(ValueError, match="no channel of the network can be removed"):
        checked_choices({}, {})


def test_a_width_is_a_multiple_of_the_parts_that_grouped_convolutions_make() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(1, 12, 3), nn.Conv2d(12, 6, 3, groups=3), nn.Flatten(), nn.Linear(96, 2)
    ).eval()
    image = torch.zeros(1, 1, 8, 8)
    assert width_steps(model, example_input=image) == {"0": 3, "1": 3}


def test_a_network_with_a_head_for_training_only_is_refused_before_it_is_trained():
    class WithHead(nn.Module):
        def __init__(self):
            super().__init__()
            self.trunk, self.last = nn.Conv2d(1, 8, 3), nn.Conv2d(8, 8, 3)
            self.head, self.aux = nn.Linear(8, 4), nn.Linear(8, 4)

        def forward(self, images):
            hidden = self.trunk(images).relu()
            logits = self.head(self.last(hidden).mean((2, 3)))
            return logits + self.aux(hidden.mean((2, 3))) if self.training else logits

    model, images = WithHead(), torch.rand(1, 1, 12, 12)
    before = torch.get_rng_state()
    with pytest.raises(ValueError, match="WithHead has parts that run in training only"):
        prune_channels(model, 0.5, example_input=images, criterion="l1", round_to=1)
    assert torch.equal(torch.get_rng_state(), before)
