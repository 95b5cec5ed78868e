"""The map of layers: shapes by widths as pruning makes them, and sums that whole networks set."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn

from edgeopt.data import Split
from edgeopt.devices import device_named
from edgeopt.model import build_model
from edgeopt.pruning import LayerChannels, prune_to_widths
from edgeopt.search.layer_tables import (
    FITTED,
    Layer,
    LayerMap,
    LayerShape,
    _fitted,
    count_weights,
    layer_map,
    network_layers,
)
from edgeopt.search.timing import Bench

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
    assert sum(count_weights(layers, widths).values()) == weights


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


def test_a_layer_that_reads_many_groups_has_as_many_shapes_as_sums() -> None:
    whole = {f"g{number}": 32 for number in range(30)}
    reads = LayerChannels(dict.fromkeys(whole, 1), {"g29": 1})
    own = Layer(LayerShape("conv", 30 * 32, 32), reads, whole).shapes({n: [16, 32] for n in whole})
    # 0 to 29 of the other groups are halved, and g29 or not
    assert len(own) == 30 * 2
    assert {s.outputs for s in own} == {16, 32}


class Plain(nn.Sequential):
    """Three groups of channels, the last behind pooling."""

    def __init__(self) -> None:
        layers = [nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 3)]
        super().__init__(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2))


GREY = Split(torch.randint(0, 256, (4, 1, 12, 12), dtype=torch.uint8), torch.arange(4) % 2)


def bench(**options) -> Bench:
    counts = {"rounds": 2, "calls_per_round": 2}
    return Bench("onnxruntime", "fp32", device_named("host"), **counts, **options)


def test_a_network_with_few_widths_is_mapped_by_all_that_there_are() -> None:
    choices = {"4": [2, 4], "0": [2, 4], "2": [4]}
    made = layer_map(Plain().eval(), choices, bench(batch_size=3), images=GREY)
    assert sorted(made.checked["network"]) == ["2x4x2", "2x4x4", "4x4x2", "4x4x4"]
    assert made.checked["fitted"].tolist() == [True, True, False, False]
    assert made.checked["latency_p10_ms"].notna().all()
    assert [*made.choices] == ["0", "2", "4"]
    assert made.slower(2).ms({"0": 2, "2": 4, "4": 4}) == pytest.approx(
        2 * made.ms({"0": 2, "2": 4, "4": 4})
    )


def test_more_shapes_than_can_be_timed_are_refused_before_any_is(monkeypatch) -> None:
    monkeypatch.setattr("edgeopt.search.layer_tables.SHAPES", 5)
    with pytest.raises(ValueError, match="layers have 12 shapes by these widths; allowed: at most"):
        layer_map(Plain().eval(), {n: [2, 4] for n in "024"}, bench(), images=GREY)


def test_a_layer_that_cannot_be_timed_is_told_with_its_cause() -> None:
    own = known()
    table = own.table.assign(error="")
    table.loc[table["shape"] == own.layers["b"].shape.name, ["latency_ms", "error"]] = (
        np.nan,
        "WorkerDied: its exporter ended the process",
    )
    broken = replace(own, table=table)
    assert broken.died
    broken.require_whole({"a": 2, "b": 8})
    with pytest.raises(
        ValueError, match=r"conv-4-8-.* could not be timed: WorkerDied: its exporter"
    ):
        broken.require_whole({"a": 4, "b": 8})


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
