"""Untrained networks side by side on the host: ratios, and a row for what fails."""

import pytest
import torch
from torch import nn

from edgeopt.data import Split
from edgeopt.devices import device_named
from edgeopt.search.bits import faster_in_float
from edgeopt.search.timing import Bench, Timed, time_networks

IMAGES = Split(torch.randint(0, 256, (8, 1, 12, 12), dtype=torch.uint8), torch.arange(8) % 2)


def network(channels: int) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, channels, 3), nn.ReLU(), nn.Flatten(), nn.Linear(channels * 100, 2)
    ).eval()


class Untraceable(nn.Module):
    def forward(self, images):
        raise RuntimeError("no such operator")


def bench(precision: str = "fp32") -> Bench:
    return Bench("onnxruntime", precision, device_named("host"), rounds=4, calls_per_round=10)


def test_networks_are_compared_and_what_fails_is_a_row() -> None:
    networks = {
        "small": Timed(network(4), IMAGES),
        "large": Timed(network(256), IMAGES),
        "broken": Timed(Untraceable(), IMAGES),
    }
    table = time_networks(networks, bench(), to="large").set_index("network")
    assert [*table.index] == [*networks]
    assert table.loc["large", "latency_ratio"] == 1
    assert table.loc["small", "latency_ratio_high"] < 0.9
    expected = table.loc["small", "latency_p10_ms"] / table.loc["large", "latency_p10_ms"]
    assert table.loc["small", "latency_ratio"] == pytest.approx(expected)
    assert "no such operator" in table.loc["broken", "error"]
    assert table.loc["broken"].isna()["latency_p10_ms"]


def test_nothing_to_compare_with_is_an_error() -> None:
    networks = {"broken": Timed(Untraceable(), IMAGES), "small": Timed(network(4), IMAGES)}
    with pytest.raises(ValueError, match=r"broken could not be timed: .*no such operator"):
        time_networks(networks, bench(), to="broken")
    with pytest.raises(ValueError, match="no network could be exported"):
        time_networks({"broken": Timed(Untraceable(), IMAGES)}, bench(), to="broken")


def test_int8_with_a_layer_in_float_is_another_file_and_named_layers_are_the_networks() -> None:
    calibration = [*IMAGES.loader(8)]
    networks = {
        "int8": Timed(network(8), IMAGES, calibration),
        "mixed": Timed(network(8), IMAGES, calibration, ("0",)),
    }
    table = time_networks(networks, bench("int8"), to="int8")
    assert (table["error"] == "").all()
    found = faster_in_float([network(8)], bench("int8"), images=IMAGES, calibration=calibration)
    assert {*found} <= {"0"}  # the linear layer has the longest dot products, and stays int8
