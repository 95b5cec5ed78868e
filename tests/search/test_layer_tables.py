"""The map of layers: shapes by widths as pruning makes them, and sums that whole networks set."""

import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn

from edgeopt.model import build_model
from edgeopt.pruning import LayerChannels, prune_to_widths
from edgeopt.search.layer_tables import (
    FITTED,
    Layer,
    LayerMap,
    LayerShape,
    _fitted,
    count_weights,
    network_layers,
)

IMAGE = torch.zeros(1, 3, 32, 32)


def shapes_of(model: nn.Module) -> dict[str, tuple[int, int, int]]:
    return {
        name: (layer.in_channels, layer.out_channels, layer.groups)
        if isinstance(layer, nn.Conv2d)
        else (layer.in_features, layer.out_features, 1)
        for name, layer in model.named_modules()
        if isinstance(layer, nn.Conv2d | nn.Linear)
    }


@pytest.mark.parametrize("name", ["mobilenet_v3_small", "resnet18", "squeezenet1_1"])
def test_shapes_are_those_that_pruning_leaves(name) -> None:
    torch.manual_seed(0)
    model = build_model(name, num_classes=5).eval()
    layers = network_layers(model, IMAGE)
    whole = next(iter(layers.values())).whole
    widths = {group: max(2, width // 2 // 2 * 2) for group, width in whole.items()}
    pruned = prune_to_widths(model, widths, example_input=IMAGE)
    found = {name: layer.with_widths(widths) for name, layer in layers.items()}
    assert {n: (s.inputs, s.outputs, s.groups) for n, s in found.items()} == shapes_of(pruned)
    weights = sum(
        layer.weight.numel() + layer.out_channels
        if isinstance(layer, nn.Conv2d)
        else layer.weight.numel() + layer.out_features
        for layer in pruned.modules()
        if isinstance(layer, nn.Conv2d | nn.Linear)
    )
    assert count_weights(layers, widths) == weights


def test_a_shape_builds_the_layer_that_it_describes() -> None:
    shape = LayerShape("conv", 4, 6, 2, (8, 8), (3, 3), (2, 2), (1, 1))
    assert shape.build()(torch.zeros(1, 4, 8, 8)).shape == (1, 6, 4, 4)
    assert shape.weights == 6 * (2 * 9 + 1)
    linear = LayerShape("linear", 8, 3)
    assert linear.build()(torch.zeros(1, 8, 1, 1)).shape == (1, 3)
    assert shape.name != linear.name


def chain() -> dict[str, Layer]:
    whole = {"a": 4, "b": 8}
    return {
        "a": Layer(LayerShape("conv", 3, 4), LayerChannels({}, {"a": 1}), whole),
        "b": Layer(LayerShape("conv", 4, 8), LayerChannels({"a": 1}, {"b": 1}), whole),
        "head": Layer(LayerShape("linear", 16, 2), LayerChannels({"b": 2}, {}), whole),
    }


def test_a_layer_has_every_shape_of_its_own_groups() -> None:
    own = chain()["b"]
    found = {(s.inputs, s.outputs) for s in own.shapes({"a": [2, 4], "b": [4, 8]})}
    assert found == {(2, 4), (2, 8), (4, 4), (4, 8)}
    [head] = chain()["head"].shapes({"a": [2], "b": [4]})
    assert (head.inputs, head.outputs) == (8, 2)


def known() -> LayerMap:
    layers, choices = chain(), {"a": [2, 4], "b": [4, 8]}
    shapes = {s.name: s for layer in layers.values() for s in layer.shapes(choices)}
    rows = [(name, s.inputs * s.outputs / 100) for name, s in shapes.items()]
    return LayerMap(layers, choices, pd.DataFrame(rows, columns=["shape", "latency_ms"]))


def test_whole_networks_set_the_terms_of_the_sum() -> None:
    added = known()
    rng = np.random.default_rng(0)
    drawn = [{n: int(rng.choice(own)) for n, own in added.choices.items()} for _ in range(30)]
    features = np.array([added.features(widths) for widths in drawn])
    truth = np.array([0.2, 1.5, 40.0])
    timed = pd.DataFrame({"network": range(30), "latency_p10_ms": features @ truth})
    timed.loc[FITTED:, "latency_p10_ms"] *= 1.1
    fitted = _fitted(added, timed, features)
    assert fitted.terms == pytest.approx(truth, rel=1e-6)
    assert fitted.ms(drawn[0]) == pytest.approx(timed["latency_p10_ms"][0])
    unseen = fitted.checked.loc[~fitted.checked["fitted"], "relative_error"].abs()
    assert len(unseen) == 30 - FITTED
    assert unseen.median() == pytest.approx(1 - 1 / 1.1)
    again = LayerMap.from_dict(fitted.to_dict())
    assert again.ms(drawn[1]) == fitted.ms(drawn[1])
    pd.testing.assert_frame_equal(again.checked, fitted.checked)


def test_the_sum_of_a_network_is_that_of_its_shapes() -> None:
    # 3x4, 4x8 and 16x2 entries of a hundredth each, and their weights with biases in MiB.
    assert known().features({"a": 4, "b": 8}) == pytest.approx(
        (1, 0.12 + 0.32 + 0.32, 4 * (4 * 4 + 8 * 5 + 2 * 17) / 2**20)
    )
    assert np.isnan(known().ms({"a": 3, "b": 8}))
