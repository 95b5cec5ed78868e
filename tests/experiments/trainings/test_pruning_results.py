"""What a level left of a network, by hand."""

import pytest
import torch

from edgeopt.experiments.trainings.pruning_results import accuracy_table, filter_norms, size_table
from edgeopt.experiments.trainings.recipes import Recipe
from edgeopt.model.networks import SmallCNN
from edgeopt.pruning.channels import prune_channels


@pytest.fixture
def networks(small_cnn, striped):
    options = {"example_input": striped.take(1), "round_to": 4}
    pruned = prune_channels(small_cnn, 0.25, **options)
    return {
        Recipe("net", 0.0, "baseline"): small_cnn,
        Recipe("net", 0.25, "one-shot"): pruned,
        Recipe("net", 0.25, "fine-tuned"): pruned,
    }


def test_size_table_sets_what_is_left_beside_the_level(networks, striped):
    table = size_table(networks, {"net": striped})
    assert table["pruning_level"].tolist() == [0.0, 0.25]  # recipes of a level have one size
    whole, pruned = table.itertuples()
    # of 6 and 8, 4.5 -> 4 and 6 -> 8 on a grid of 4 (6 lies between and goes up)
    assert (whole.channels, pruned.channels) == (14, 12)
    assert pruned.level_reached == pytest.approx(2 / 14)
    macs = [784 * 9 * a + 196 * 9 * a * b + 49 * b * 4 for a, b in ((6, 8), (4, 8))]
    assert [whole.macs, pruned.macs] == macs
    assert pruned.macs_kept == pytest.approx(macs[1] / macs[0])
    assert (whole.note, pruned.note) == ("", "reached 14%, with conv2 left whole")


def test_accuracy_table_counts_right_answers(networks, striped):
    table = accuracy_table(networks, {"net": striped})
    model = next(iter(networks.values())).eval()
    images, labels = striped[list(range(len(striped)))]
    with torch.no_grad():
        hits = (model(images).argmax(1) == labels).float().mean().item()
    row = table.iloc[0]
    assert row["accuracy"] == pytest.approx(hits)
    assert row["accuracy_low"] < row["accuracy"] < row["accuracy_high"]
    assert table["channels"].tolist() == ["6/8", "4/8", "4/8"]


def test_filter_norms_are_spread_over_the_network():
    model = SmallCNN(3, 5)
    with torch.no_grad():
        model.conv1.weight.fill_(-0.5)
    table = filter_norms(model, layers=6)
    assert table.groupby("layer").size().to_dict() == {"conv1": 3, "conv2": 5}
    assert table.loc[table["layer"] == "conv1", "l1_norm"].tolist() == [4.5] * 3
    assert filter_norms(model, layers=1)["layer"].unique().tolist() == ["conv1"]
