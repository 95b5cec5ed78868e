"""Diagnosis: the worst channel and its group are named, and the numbers are what they say."""

import numpy as np
import pytest
import torch
from torch import nn

from edgeopt.data.splits import Split
from edgeopt.experiments.recovery.diagnosis import JUDGED, REACHES, diagnose
from edgeopt.model.networks import SmallCNN
from edgeopt.quantization.planting import plant_collapse
from tests.networks import Block
from tests.specimens import CLASSES, in_colour, splits, trained_cnn, trained_mobilenet

COLUMNS = {
    *("layer", "worst_channel", "minimum", "maximum", "outlier_ratio", "sqnr_db"),
    *("accuracy_alone", "tied_to", "reach"),
}


@pytest.fixture(scope="module")
def healthy():
    return diagnose(trained_cnn(), splits()[1].first(64))


def colour(count: int) -> Split:
    some = splits()[1].first(count)
    return Split(in_colour(some.take(count)), some.labels)


def test_table_is_complete_and_noisiest_first(healthy) -> None:
    assert set(healthy.columns) == COLUMNS
    assert {"conv1", "relu1", "conv2", "classifier"} <= set(healthy["layer"])
    assert healthy["sqnr_db"].is_monotonic_increasing
    assert healthy["accuracy_alone"].notna().sum() == min(JUDGED, len(healthy))


def test_ranges_and_ratios_are_those_of_the_activations(healthy) -> None:
    with torch.no_grad():
        hidden = trained_cnn().relu1(trained_cnn().conv1(splits()[1].take(64)))
    row = healthy.set_index("layer").loc["relu1"]
    peaks = hidden.amax((0, 2, 3))
    assert row["maximum"] == pytest.approx(float(hidden.max()), rel=1e-4)
    assert (row["minimum"], row["worst_channel"]) == (0, int(peaks.argmax()))
    live = peaks[peaks > 0]
    assert row["outlier_ratio"] == pytest.approx(float(peaks.max() / live.median()), rel=1e-4)


def test_noise_is_that_of_255_steps(healthy) -> None:
    with torch.no_grad():
        logits = trained_cnn()(splits()[1].take(64)).numpy()
    step = (logits.max() - logits.min()) / 255
    noise = ((np.round(logits / step) * step - logits) ** 2).mean(axis=0)
    expected = np.sort(10 * np.log10((logits**2).mean(axis=0) / noise))
    row = healthy.set_index("layer").loc["classifier"]
    assert row["sqnr_db"] == pytest.approx(expected[(len(expected) - 1) // 2], abs=0.01)


@pytest.mark.parametrize(("layer", "channel", "factor"), [("conv1", 3, 1e4), ("conv2", 7, 1e5)])
def test_the_planted_channel_is_first(layer, channel, factor) -> None:
    example = splits()[1].take(1)
    planted = plant_collapse(trained_cnn(), layer, channel, factor, example=example)
    table = diagnose(planted, splits()[1].first(128))
    worst = table.iloc[0]
    assert (worst["layer"], worst["worst_channel"]) == (layer, channel)
    assert worst["outlier_ratio"] > 1000
    assert worst["sqnr_db"] < 5  # half of the channels are lost, whatever the accuracy says
    assert worst["reach"] == REACHES[0]


def test_a_residual_stream_names_all_that_write_it() -> None:
    torch.manual_seed(0)
    images = colour(64)
    planted = plant_collapse(Block(CLASSES).eval(), "second", 2, 1e4, example=images.take(1))
    table = diagnose(planted, images).set_index("layer")
    assert table.loc["second", "worst_channel"] == 2
    assert table.loc["second", "tied_to"] == "stem"
    assert table.loc["stem", "tied_to"] == "second"


def test_behind_hardswish_only_an_inserted_scale_reaches_a_channel() -> None:
    images = colour(64)
    table = diagnose(trained_mobilenet(), images).set_index("layer")
    assert table.loc["features.0.0", "reach"] == REACHES[1]
    assert table.loc["features.1.block.0.0", "reach"] == REACHES[0]


def test_a_network_that_cannot_be_traced_is_diagnosed_without_groups() -> None:
    class Branching(SmallCNN):
        def forward(self, images: torch.Tensor) -> torch.Tensor:
            return super().forward(images if images.sum() > -1 else -images)

    branching = Branching(8, 12, CLASSES).eval()
    branching.load_state_dict(trained_cnn().state_dict())
    table = diagnose(branching, splits()[1].first(64))
    assert set(table["reach"]) == {""}
    assert table["sqnr_db"].notna().all()


def test_refuses_no_images_and_what_is_not_finite() -> None:
    images = splits()[1].first(8)
    with pytest.raises(ValueError, match="no images to diagnose; allowed: 1 or more"):
        diagnose(trained_cnn(), images.first(0))
    broken = nn.Sequential(nn.Conv2d(1, 2, 1), nn.Flatten(), nn.Linear(1568, CLASSES)).eval()
    nn.init.constant_(broken[0].weight, float("inf"))
    with pytest.raises(ValueError, match="not finite"):
        diagnose(broken, images)


class Halves(nn.Module):
    def forward(self, hidden: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return hidden.chunk(2, 1)


class InHalves(nn.Module):
    """A module without weights that gives two tensors, and an addition in place."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.halves, self.head = nn.Conv2d(1, 8, 3), Halves(), nn.Linear(4, 4)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        hidden = self.conv(images)
        first, second = self.halves(hidden)
        hidden += 100
        return self.head((first + second).mean((2, 3)))


def test_a_module_that_gives_several_tensors_is_left_out_and_nothing_is_read_too_late() -> None:
    model, some = InHalves().eval(), splits()[1].first(16)
    table = diagnose(model, some).set_index("layer")
    assert set(table.index) == {"conv", "head"}
    with torch.no_grad():
        assert table.loc["conv", "maximum"] == pytest.approx(float(model.conv(some.take(16)).max()))


def test_a_network_without_layers_gives_an_empty_table() -> None:
    class Functional(nn.Module):
        def forward(self, images: torch.Tensor) -> torch.Tensor:
            return images.flatten(1)[:, :4] * (2 if images.sum() > 0 else 1)

    table = diagnose(Functional(), splits()[1].first(16))
    assert table.empty
    assert {"outlier_ratio", "reach"} <= {*table}
