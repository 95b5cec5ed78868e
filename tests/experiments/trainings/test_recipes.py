"""Recipes: what a network is made from, and the names it is known by."""

import pytest

from edgeopt.experiments.candidates.candidate import CandidateSpec
from edgeopt.experiments.trainings.recipes import Recipe, searched_recipe

WHOLE = {"conv1": 16, "conv2": 32}


def test_a_searched_network_is_fine_tuned_from_the_pretrained_one() -> None:
    recipe = searched_recipe("small_cnn", {"conv1": 8, "conv2": 32}, whole=WHOLE, kind="fine-tuned")
    assert recipe.pruning_level == pytest.approx(8 / 48)
    assert recipe.parent == Recipe("small_cnn", 0.0, "pretrained")
    assert recipe.network == ("small_cnn", 0, "8x32")
    assert recipe.name == "small_cnn-fine-tuned-w8x32-seed0"


def test_all_channels_are_the_baseline() -> None:
    recipe = searched_recipe("small_cnn", WHOLE, whole=WHOLE, kind="one-epoch", seed=3)
    assert recipe == Recipe("small_cnn", 0.0, "baseline", 3)


def test_widths_tell_networks_of_one_level_apart() -> None:
    pair = [
        searched_recipe("small_cnn", {"conv1": a, "conv2": b}, whole=WHOLE, kind="one-epoch")
        for a, b in ((8, 32), (16, 24))
    ]
    assert pair[0].pruning_level == pair[1].pruning_level
    assert pair[0].network != pair[1].network
    assert pair[0].name != pair[1].name


def test_a_candidate_is_named_by_its_widths_and_its_layers_in_float() -> None:
    spec = CandidateSpec(
        1 / 6, "int8", "onnxruntime", "fine-tuned", widths="8x32", float_layers=("conv1",)
    )
    assert spec.name == "small_cnn-w8x32-onnxruntime-int8-float-conv1"
    assert spec.network == ("small_cnn", 0, "8x32")
    assert CandidateSpec(0.5, "int8").network == ("small_cnn", 0, 0.5)
