"""What a scheduler's workers make is what this process makes, bit for bit."""

import numpy as np
import pandas as pd
import pytest
import torch

from edgeopt.data.decoded import resize_once
from edgeopt.data.preprocessing import Preprocessing
from edgeopt.data.splits import Split
from edgeopt.experiments.candidates.candidate import grid
from edgeopt.experiments.candidates.preparing import prepare_candidates
from edgeopt.experiments.candidates.seeds import score
from edgeopt.experiments.recovery.repairs import recover_collapsed
from edgeopt.experiments.trainings.networks import train_networks
from edgeopt.experiments.trainings.plan import Schedule, Training, TrainingPlan
from edgeopt.experiments.trainings.recipes import Recipe
from edgeopt.model.weights import dump_weights
from edgeopt.quantization.planting import plant_collapse
from edgeopt.system import Store, open_scheduler


@pytest.fixture(scope="module")
def cluster():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    with open_scheduler("local") as opened:
        yield opened
    torch.set_num_threads(before)


def test_trainings_from_a_file_of_weights_on_images_in_a_file(
    cluster, trained, striped, tmp_path
) -> None:
    (tmp_path / "own.pt").write_bytes(dump_weights(trained))
    images = (striped.pixels.clamp(0, 1) * 255).to(torch.uint8)
    pixels = resize_once(images, Preprocessing(image_size=28), path=tmp_path / "images" / "a.npy")
    split = Split(pixels, striped.labels)
    plan = TrainingPlan(
        "small_cnn",
        split,
        split.first(64),
        4,
        Schedule(epochs=1, finetune_epochs=1, batch_size=32),
        weights=str(tmp_path / "own.pt"),
        conv1_channels=6,
        conv2_channels=8,
    )
    recipes = [Recipe("small_cnn", 0.5, "fine-tuned", seed) for seed in (0, 1)]
    plans = {"small_cnn": plan}
    here = train_networks(recipes, plans, store=Store(tmp_path / "here", Training))
    there = Store(tmp_path / "there", Training)
    made = train_networks(recipes, plans, store=there, executor=cluster)
    assert len([*there.folder.iterdir()]) == 4  # the two recipes, and what they are made from
    for recipe in recipes:
        pd.testing.assert_frame_equal(made[recipe].history, here[recipe].history)
        for name, tensor in here[recipe].state.items():
            assert torch.equal(made[recipe].state[name], tensor)


def test_candidates_their_answers_and_their_repair(cluster, options, striped, tmp_path) -> None:
    whole, example = options["models"]["small_cnn", 0, 0.0], striped.take(1)
    planted = plant_collapse(whole, "conv1", [0, 1, 2], 1e4, example=example)
    options["models"] = {("small_cnn", 0, 0.0): planted}
    specs = grid([0.0], ["fp32", "int8"], ["torch", "onnxruntime"])
    limit = {"max_drop": 0.01}
    found = {}
    for name, executor in (("here", None), ("there", cluster)):
        how = {**options, "directory": tmp_path / name, "executor": executor}
        models = how.pop("models")
        made = prepare_candidates(specs, models=models, **how)
        repaired = recover_collapsed(made, models, **limit, **how)
        every = [*made, *(r.candidate for r in repaired)]
        answers = score(every, options["validation"], executor=executor)
        found[name] = (every, answers, [r.attempts for r in repaired])
    assert len(found["here"][0]) == 6
    for here, there in zip(found["here"][0], found["there"][0], strict=True):
        assert there.spec == here.spec
        assert there.facts == here.facts
        assert there.artifact.path.read_bytes() == here.artifact.path.read_bytes()
        assert there.artifact.path.relative_to(
            tmp_path / "there"
        ) == here.artifact.path.relative_to(tmp_path / "here")
        np.testing.assert_array_equal(there.logits, here.logits)
        np.testing.assert_array_equal(found["there"][1][there.name], found["here"][1][here.name])
    for here, there in zip(found["here"][2], found["there"][2], strict=True):
        pd.testing.assert_frame_equal(here, there)
