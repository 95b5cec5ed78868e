"""The map of whole networks: finer where latency steps, and one scale for all that was timed."""

import numpy as np
import pandas as pd
import torch
from torch import nn

from edgeopt.data import Split
from edgeopt.experiments import widths_label
from edgeopt.model import SmallCNN
from edgeopt.search import network_map
from edgeopt.search.network_map import LatencyMap, latency_map

IMAGES = Split(torch.zeros(4, 1, 28, 28, dtype=torch.uint8), torch.arange(4) % 2)


class GroupedCNN(SmallCNN):
    """Its second convolution reads the channels in two parts."""

    def __init__(self) -> None:
        super().__init__(4, 4, 2)
        self.conv2 = nn.Conv2d(4, 4, 3, padding=1, groups=2)


CHOICES = {"conv1": [2, 4], "conv2": [2, 4]}


def clock(monkeypatch, cost):
    """Let ``cost`` tell a network's milliseconds, on a machine twice as slow at each call."""
    asked = []

    def timed(networks, bench, *, to, executor):
        slow = 2.0 ** len(asked)
        asked.append([*networks])
        widths = {
            name: (own.network.conv1.out_channels, own.network.conv2.out_channels)
            for name, own in networks.items()
        }
        times = np.array([slow * cost(*own) for own in widths.values()])
        return pd.DataFrame(
            {
                "network": [*networks],
                "latency_p10_ms": times,
                "latency_ratio": times / times[[*networks].index(to)],
                "error": "",
            }
        )

    monkeypatch.setattr(network_map, "time_networks", timed)
    return asked


def test_flat_latency_is_timed_at_the_given_widths_only(monkeypatch) -> None:
    asked = clock(monkeypatch, lambda first, second: 1.0)
    made = latency_map(SmallCNN(4, 4, 2), CHOICES, None, images=IMAGES)
    assert asked == [["2x2", "2x4", "4x2", "4x4"]]
    assert made.choices == CHOICES
    assert made.ms({"conv1": 2, "conv2": 4}) == 1


def test_widths_in_another_order_are_the_network_s(monkeypatch) -> None:
    asked = clock(monkeypatch, lambda first, second: 1.0)
    own = {"conv2": [4], "conv1": [2, 4]}
    assert latency_map(SmallCNN(4, 4, 2), own, None, images=IMAGES).groups == ("conv1", "conv2")
    assert asked == [["2x4", "4x4"]]


def test_a_step_is_timed_in_its_middle_and_on_the_scale_of_the_first(monkeypatch) -> None:
    asked = clock(monkeypatch, lambda first, second: float(first))
    made = latency_map(SmallCNN(4, 4, 2), CHOICES, None, images=IMAGES)
    assert asked[1] == ["3x2", "3x4", "4x4"]  # the unpruned network is timed again
    assert made.choices == {"conv1": [2, 3, 4], "conv2": [2, 4]}
    assert [made.ms({"conv1": n, "conv2": 2}) for n in (2, 3, 4)] == [2, 3, 4]
    assert len(made.table) == 6


def test_steps_stop_at_the_grid_and_at_the_number_of_networks(monkeypatch) -> None:
    clock(monkeypatch, lambda first, second: float(first))
    own = latency_map(SmallCNN(4, 4, 2), CHOICES, None, images=IMAGES, grid=2)
    assert own.choices == CHOICES
    own = latency_map(SmallCNN(4, 4, 2), CHOICES, None, images=IMAGES, networks=5)
    assert own.choices == CHOICES


def test_widths_that_the_network_cannot_have_are_a_row_with_the_error(monkeypatch) -> None:
    clock(monkeypatch, lambda first, second: 1.0)
    grouped = GroupedCNN()
    made = latency_map(grouped, {"conv1": [3, 4], "conv2": [4]}, None, images=IMAGES)
    rows = made.table.set_index("network")
    assert (
        "conv1 is to keep 3 channels; allowed: 1 to 4, multiples of 2" in rows.loc["3x4", "error"]
    )
    assert np.isnan(made.ms({"conv1": 3, "conv2": 4}))
    assert made.ms({"conv1": 4, "conv2": 4}) == 1


def test_a_map_survives_its_store() -> None:
    table = pd.DataFrame(
        {"conv1": [2, 4], "network": ["2", "4"], "latency_p10_ms": [1.5, 2.0], "latency_ratio": 1.0}
    )
    kept = LatencyMap.from_dict(LatencyMap(table, ("conv1",)).to_dict())
    assert kept.ms({"conv1": 2}) == 1.5
    assert np.isnan(kept.ms({"conv1": 3}))
    pd.testing.assert_frame_equal(kept.numbers, table)


def test_widths_are_named_by_themselves_or_by_a_digest() -> None:
    assert widths_label({"a": 8, "b": 32}) == "8x32"
    many = {f"layer{n}": n for n in range(1, 6)}
    assert len(widths_label(many)) == 8
    assert widths_label(many) == widths_label(dict(reversed(many.items())))
    assert widths_label(many) != widths_label(many | {"layer1": 2})
