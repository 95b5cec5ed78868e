"""Untrained networks side by side on the host: ratios, and a row for what fails."""

from dataclasses import replace
from types import SimpleNamespace

import pandas as pd
import pytest
import torch
from torch import nn

from edgeopt import devices
from edgeopt.data import Split
from edgeopt.devices import device_named
from edgeopt.metrics import Measurement
from edgeopt.search.bits import faster_in_float
from edgeopt.search.timing import Bench, Timed, _until_quiet, time_networks

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


@pytest.mark.parametrize(("busy", "times"), [(0, 1), (1, 2), (9, 3)])
def test_what_a_busy_machine_slowed_is_timed_again_and_all_rounds_count(monkeypatch, busy, times):
    measured = []

    def measure_on(device, plan):
        slow = len(measured) < busy
        results = devices.measure_on(device, plan)
        reference = [1.0, 1.0, 1.0, 2.0] if slow else [1.0] * 4
        calm = {"reference_ms": reference, "other_cores": 0.0, "steal_share": 0.0}
        rounds = results.measured.conditions[["round"]].assign(**calm)
        measured.append(replace(results, measured=replace(results.measured, conditions=rounds)))
        return measured[-1]

    monkeypatch.setattr("edgeopt.search.timing.measure_on", measure_on)
    table = time_networks({"small": Timed(network(4), IMAGES)}, bench(), to="small")
    assert len(measured) == times
    every = pd.concat(own.measured.samples for own in measured)["latency_ms"]
    assert table["latency_p10_ms"].item() == pytest.approx(every.quantile(0.1))


def test_rounds_of_later_measurements_are_rounds_of_their_own(monkeypatch):
    samples, errors = pd.DataFrame({"round": [0, 1], "latency_ms": [1.0, 2.0]}), {"a": "died"}
    busy = pd.DataFrame({"reference_ms": [1.0, 1.0], "other_cores": 2.0, "steal_share": 0.0})
    results = SimpleNamespace(measured=Measurement(samples, busy), errors=errors)
    monkeypatch.setattr("edgeopt.search.timing.measure_on", lambda *_: results)
    together, failed = _until_quiet(device_named("host"), None)
    assert together["round"].tolist() == [0, 1, 2, 3, 4, 5]
    assert failed == errors


def test_int8_with_a_layer_in_float_is_another_file_and_named_layers_are_the_networks() -> None:
    calibration = [*IMAGES.loader(8)]
    networks = {
        "int8": Timed(network(8), IMAGES, calibration),
        "mixed": Timed(network(8), IMAGES, calibration, ("0",)),
    }
    table = time_networks(networks, bench("int8"), to="int8")
    assert (table["error"] == "").all()
    found = faster_in_float([network(8)], bench("int8"), images=IMAGES, calibration=calibration)
    assert {*found.names} <= {"0"}  # the linear layer has the longest dot products, and stays int8
