import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from edgeopt.hardware.layers import layerwise_breakdown, measure_layers
from edgeopt.model.networks import SmallCNN
from edgeopt.system.torchvision import models

SHAPE = (1, 1, 28, 28)


def by_layer(table):
    return table.set_index("layer")


def test_small_cnn_by_hand():
    table = by_layer(layerwise_breakdown(SmallCNN(), input_shape=SHAPE))
    macs = table["macs"]
    assert macs["conv1"] == 28 * 28 * 16 * 9 * 1 == 112_896
    assert macs["conv2"] == 14 * 14 * 32 * 9 * 16 == 903_168
    assert macs["classifier"] == 1568 * 10
    assert macs.sum() == 1_031_744
    assert set(macs[macs == 0].index) == {"relu1", "pool1", "relu2", "pool2"}
    conv1 = table.loc["conv1"]
    assert conv1["output_shape"] == (1, 16, 28, 28)
    assert conv1["parameters"] == 16 * 9 + 16
    assert conv1["parameter_bytes"] == 4 * 160
    assert conv1["input_activation_bytes"] == 4 * 784
    assert conv1["output_activation_bytes"] == 4 * 784 * 16
    assert conv1["arithmetic_intensity"] == 112_896 / (640 + 3136 + 50_176)


def test_parameters_agree_with_the_model():
    model = models.mobilenet_v3_small(weights=None)
    table = layerwise_breakdown(model, input_shape=(1, 3, 32, 32))
    assert table["parameters"].sum() == sum(p.numel() for p in model.parameters())


def test_mobilenet_v3_small_has_its_published_macs():
    model = models.mobilenet_v3_small(weights=None)
    table = layerwise_breakdown(model, input_shape=(1, 3, 224, 224))
    assert table["macs"].sum() / 1e6 == pytest.approx(56.5, abs=0.05)
    assert table["layer"].is_unique


def test_elements_are_counted_at_the_width_of_the_precision():
    def bytes_of(precision):
        table = layerwise_breakdown(SmallCNN(), input_shape=SHAPE, precision=precision)
        row = by_layer(table).loc["conv1"]
        return row["parameter_bytes"], row["input_activation_bytes"]

    assert bytes_of("fp16") == (2 * 160, 2 * 784)
    assert bytes_of("int8") == (144 + 4 * 16, 784)
    assert bytes_of("int8-dynamic") == (144 + 4 * 16, 4 * 784)


@settings(max_examples=20, deadline=None)
@given(groups=st.sampled_from([1, 2, 4, 8]), stride=st.integers(1, 2), batch=st.integers(1, 3))
def test_convolution_macs_are_the_taps_of_every_output(groups, stride, batch):
    model = nn.Conv2d(8, 16, 3, stride=stride, groups=groups)
    row = layerwise_breakdown(model, input_shape=(batch, 8, 9, 9)).iloc[0]
    side = (9 - 3) // stride + 1
    assert row["macs"] == batch * side * side * 16 * 9 * (8 // groups)
    expected = {1: "Conv2d", 8: "Conv2d (depthwise)"}.get(groups, "Conv2d (grouped)")
    assert row["kind"] == expected


def test_a_module_called_twice_has_two_rows():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.relu = nn.ReLU()

        def forward(self, images):
            return self.relu(-self.relu(images))

    assert list(layerwise_breakdown(Twice(), input_shape=SHAPE)["layer"]) == ["relu", "relu#2"]


def test_the_model_is_left_as_it_was():
    model = SmallCNN().train()
    before = copy.deepcopy(model.state_dict())
    measure_layers(model, input_shape=SHAPE)
    assert model.training
    assert not any(module._forward_hooks for module in model.modules())
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())


def test_an_attention_layer_is_refused_by_name():
    model = nn.Sequential(nn.MultiheadAttention(4, 1))
    with pytest.raises(ValueError, match=r"MACs of '0' \(MultiheadAttention\); allowed: Conv2d"):
        layerwise_breakdown(model, input_shape=(1, 4, 4))


def test_an_unknown_precision_is_refused():
    with pytest.raises(ValueError, match="unknown precision 'int4'; allowed: fp32"):
        layerwise_breakdown(SmallCNN(), input_shape=SHAPE, precision="int4")


def test_measured_times_stand_beside_the_estimate():
    table = measure_layers(SmallCNN(), input_shape=SHAPE)
    estimate = layerwise_breakdown(SmallCNN(), input_shape=SHAPE)
    assert table[estimate.columns].equals(estimate)
    assert table["measured_share"].sum() == pytest.approx(1)
    assert table["hook_overhead_ms"].nunique() == 1


def test_the_thread_count_is_put_back():
    before = torch.get_num_threads()
    measure_layers(SmallCNN(), input_shape=SHAPE, threads=before + 1)
    assert torch.get_num_threads() == before


def test_a_layer_that_waits_is_the_slow_one(monkeypatch):
    ticks = iter(range(10**9))
    monkeypatch.setattr(
        "edgeopt.hardware.layers.time.perf_counter_ns", lambda: next(ticks) * 1_000_000
    )
    model = SmallCNN()
    relu = model.relu2
    relu.forward = lambda images: (next(ticks), torch.relu(images))[1]
    table = by_layer(measure_layers(model, input_shape=SHAPE))
    assert table["measured_ms"]["relu2"] == 2
    assert table["measured_ms"].drop("relu2").eq(1).all()
    assert table["measured_share"]["relu2"] == 2 / 8
