import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from edgeopt.data.splits import Split
from edgeopt.experiments.trainings import plan as training_plan
from edgeopt.experiments.trainings.networks import train_networks
from edgeopt.experiments.trainings.plan import (
    Schedule,
    Training,
    TrainingPlan,
    reinitialized,
    train_recipe,
)
from edgeopt.experiments.trainings.recipes import Recipe, pruned_recipes
from edgeopt.model import networks as model
from edgeopt.model.networks import SmallCNN, build_model, set_deterministic
from edgeopt.model.training import fit, predict_logits
from edgeopt.model.weights import dump_weights
from edgeopt.system.parallel.workers import process_pool
from edgeopt.system.store import Store
from tests.conftest import striped_split

OWN = "tests.experiments.trainings.test_networks:with_norm"
SCHEDULE = Schedule(epochs=2, finetune_epochs=1, learning_rate=0.01, batch_size=32)
FIT = {"learning_rate": 0.01, "cosine": True, "progress": False}
PRETRAINED, BASELINE = (Recipe("small_cnn", 0.0, kind) for kind in ("pretrained", "baseline"))


def with_norm(num_classes: int) -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 16, 3, stride=2, padding=1),
        nn.BatchNorm2d(16, momentum=0.01),
        nn.ReLU(),
        nn.Conv2d(16, 32, 3, stride=2, padding=1),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(7),
        nn.Flatten(),
        nn.Linear(32 * 49, num_classes),
    )


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def plan(striped) -> TrainingPlan:
    return TrainingPlan(
        "small_cnn", striped, striped, 4, SCHEDULE, conv1_channels=6, conv2_channels=8
    )


@pytest.fixture(scope="module")
def own() -> TrainingPlan:
    grey = striped_split(100, seed=1)
    colour = Split(grey.pixels.repeat(1, 3, 1, 1), grey.labels)
    return TrainingPlan(OWN, colour, colour, 4, SCHEDULE, channel_multiple=8)


@pytest.fixture
def store(tmp_path) -> Store:
    return Store(tmp_path, Training)


def state_equal(first: dict, second: dict) -> bool:
    return first.keys() == second.keys() and all(torch.equal(first[k], second[k]) for k in first)


def test_train_recipe_of_a_pretrained_network_is_fit_from_the_seed(plan, striped):
    set_deterministic(3)
    model = build_model("small_cnn", num_classes=4, conv1_channels=6, conv2_channels=8)
    set_deterministic(3)
    by_hand = fit(model, striped.loader(32, shuffle=True, seed=3), epochs=2, **FIT)
    found = train_recipe(replace(PRETRAINED, seed=3), plan)
    assert state_equal(found.state, by_hand.model.state_dict())
    assert found.history["train_loss"].tolist() == by_hand.history["train_loss"].tolist()
    assert found.history["val_accuracy"].notna().all()


def pruned_by_hand(network: SmallCNN, first: int, second: int) -> SmallCNN:
    """Keep so many filters of each layer, those with the largest L1 norm, in their order."""
    state = network.state_dict()
    kept = []
    for name, count in (("conv1", first), ("conv2", second)):
        norms = np.abs(state[f"{name}.weight"].numpy()).sum(axis=(1, 2, 3))
        kept.append(np.sort(np.argsort(-norms)[:count]))
    one, two = kept
    small = SmallCNN(first, second, 4)
    classes = state["classifier.weight"].reshape(4, -1, 7 * 7)
    small.load_state_dict(
        {
            "conv1.weight": state["conv1.weight"][one],
            "conv1.bias": state["conv1.bias"][one],
            "conv2.weight": state["conv2.weight"][two][:, one],
            "conv2.bias": state["conv2.bias"][two],
            "classifier.weight": classes[:, two].reshape(4, -1),
            "classifier.bias": state["classifier.bias"],
        }
    )
    return small.eval()


# of 6 and 8 filters: 4.2 and 5.6, 3 and 4, 1.8 and 2.4, 0.6 and 0.8
@pytest.mark.parametrize(
    ("level", "first", "second"), [(0.3, 4, 6), (0.5, 3, 4), (0.7, 2, 2), (0.9, 1, 1)]
)
def test_train_recipe_of_a_one_shot_network_keeps_the_largest_filters(level, first, second, plan):
    whole = plan.first_network(5)
    recipe = Recipe("small_cnn", level, "one-shot")
    found = train_recipe(recipe, plan, parent=whole.state_dict())
    assert state_equal(found.state, pruned_by_hand(whole, first, second).state_dict())


def test_train_networks_gives_all_kinds_the_epochs_of_the_baseline(plan, striped, store):
    recipes = [PRETRAINED, BASELINE, *pruned_recipes(["small_cnn"], [0.3], [0])]
    found = train_networks(recipes, {"small_cnn": plan}, store=store)
    pretrained, baseline, shot, tuned, scratch = (
        plan.network(recipe, found[recipe].state) for recipe in recipes
    )
    set_deterministic(0)
    loader = striped.loader(32, shuffle=True, seed=0)
    longer = fit(pretrained, loader, epochs=1, **FIT).model
    assert state_equal(baseline.state_dict(), longer.state_dict())
    expected = pruned_by_hand(baseline, 4, 6)
    assert state_equal(shot.state_dict(), expected.state_dict())
    set_deterministic(0)
    loader = striped.loader(32, shuffle=True, seed=0)
    by_hand = fit(pruned_by_hand(pretrained, 4, 6), loader, epochs=1, **FIT).model
    assert state_equal(tuned.state_dict(), by_hand.state_dict())
    set_deterministic(0)
    fresh = reinitialized(expected, seed=0)
    set_deterministic(0)
    loader = striped.loader(32, shuffle=True, seed=0)
    control = fit(fresh, loader, epochs=3, **FIT).model
    assert state_equal(scratch.state_dict(), control.state_dict())


def test_with_a_patience_no_network_has_more_epochs_behind_it_than_the_baseline(plan, store):
    patient = replace(SCHEDULE, epochs=1, finetune_epochs=9, finetune_patience=2)
    recipes = [PRETRAINED, BASELINE, *pruned_recipes(["small_cnn"], [0.3, 0.7], [0])]
    plans = {"small_cnn": replace(plan, schedule=patient, validation=plan.validation.first(40))}
    found = train_networks(recipes, plans, store=store)
    epochs = {r: len(found[r].history) for r in recipes}
    assert (epochs[PRETRAINED], epochs[BASELINE]) == (1, 9)
    for recipe in (r for r in recipes if r.kind == "fine-tuned"):
        accuracies = found[recipe].history["val_accuracy"].tolist()
        best = accuracies.index(max(accuracies)) + 1
        assert epochs[recipe] == min(9, best + 2)
        scratch = replace(recipe, kind="scratch")
        assert found[scratch].history["epoch"].tolist() == [*range(1, 2 + epochs[recipe])]
        served = plans["small_cnn"].network(recipe, found[recipe].state)
        answers = predict_logits(served, plan.validation.first(40)).argmax(1)
        assert (answers == plan.validation.labels[:40]).double().mean() == max(accuracies)
    impatient = replace(patient, finetune_patience=1)
    again = {"small_cnn": replace(plans["small_cnn"], schedule=impatient)}
    before = len([*store.folder.iterdir()])
    train_networks(recipes, again, store=store)
    assert len([*store.folder.iterdir()]) == before + 4  # fine-tuned, and scratch by their pace


def test_train_networks_with_no_epochs_takes_the_weights_as_they_are(own, store, tmp_path):
    set_deterministic(7)
    given = with_norm(4)
    path = tmp_path / "given.pt"
    path.write_bytes(dump_weights(given))
    untrained = replace(own, schedule=replace(SCHEDULE, epochs=0), weights=str(path))
    recipe = Recipe(OWN, 0.0, "baseline")
    found = train_networks([recipe], {OWN: untrained}, store=store)[recipe]
    assert state_equal(found.state, given.state_dict())


def test_train_networks_trains_the_same_weights_in_a_pool(plan, tmp_path):
    alone = train_networks([BASELINE], {"small_cnn": plan}, store=Store(tmp_path / "a", Training))
    with process_pool(1) as pool:
        pooled = train_networks(
            [BASELINE], {"small_cnn": plan}, store=Store(tmp_path / "b", Training), executor=pool
        )
    assert state_equal(alone[BASELINE].state, pooled[BASELINE].state)


def test_train_networks_trains_nothing_the_second_time(plan, store, monkeypatch):
    recipes = [BASELINE, *pruned_recipes(["small_cnn"], [0.5], [0])]
    first = train_networks(recipes, {"small_cnn": plan}, store=store)
    monkeypatch.delattr(training_plan, "fit")
    second = train_networks(recipes, {"small_cnn": plan}, store=store)
    assert all(state_equal(first[r].state, second[r].state) for r in recipes)


def test_train_networks_trains_only_a_broken_file_again(plan, store):
    recipes = [PRETRAINED, BASELINE]
    first = train_networks(recipes, {"small_cnn": plan}, store=store)
    whole, broken = sorted(store.folder.iterdir(), key=lambda path: "baseline" in path.name)
    before = whole.stat().st_mtime_ns
    broken.write_bytes(b"")
    second = train_networks(recipes, {"small_cnn": plan}, store=store)
    assert state_equal(first[BASELINE].state, second[BASELINE].state)
    assert whole.stat().st_mtime_ns == before
    assert broken.stat().st_size > 0


@pytest.mark.parametrize(
    "change", ["epochs", "rate", "batch", "seed", "data", "mean", "multiple", "torch"]
)
def test_train_networks_trains_anew_what_anything_that_decides_it_changes(
    change, plan, store, striped, monkeypatch
):
    train_networks([PRETRAINED], {"small_cnn": plan}, store=store)
    other, recipe = plan, replace(PRETRAINED, seed=int(change == "seed"))
    changed = {
        "epochs": {"schedule": replace(SCHEDULE, epochs=1)},
        "rate": {"schedule": replace(SCHEDULE, learning_rate=0.02)},
        "batch": {"schedule": replace(SCHEDULE, batch_size=16)},
        "data": {"train": Split(striped.pixels.flip(0), striped.labels.flip(0))},
        "mean": {"train": replace(striped, mean=0.5)},
    }
    if change in changed:
        other = replace(plan, **changed[change])
    if change == "multiple":
        recipe = Recipe("small_cnn", 0.5, "scratch")
        train_networks([recipe], {"small_cnn": plan}, store=store)
        other = replace(plan, channel_multiple=2)
    if change == "torch":
        monkeypatch.setattr(torch, "__version__", "0.0")
    before = len(list(store.folder.iterdir()))
    train_networks([recipe], {"small_cnn": other}, store=store)
    assert len(list(store.folder.iterdir())) == before + 1


def test_train_networks_keeps_a_baseline_when_only_later_stages_change(plan, store):
    train_networks([PRETRAINED], {"small_cnn": plan}, store=store)
    longer = replace(plan, schedule=replace(SCHEDULE, finetune_epochs=5))
    train_networks([PRETRAINED], {"small_cnn": longer}, store=store)
    assert len(list(store.folder.iterdir())) == 1


def test_norms_average_fast_enough_and_serve_what_they_saw(own):
    one_step = replace(own, schedule=replace(SCHEDULE, epochs=1, batch_size=100))
    trained = train_recipe(Recipe(OWN, 0.0, "pretrained"), one_step)
    first = one_step.first_network(0)[0]
    mean = first(own.train.take(100)).mean(dim=(0, 2, 3))
    # From zero, one step at a momentum of 0.1 goes a tenth of the way.
    torch.testing.assert_close(trained.state["1.running_mean"], 0.1 * mean.detach())


@pytest.mark.parametrize(("batch", "steps"), [(32, 6), (512, 2)])  # 3 whole batches, or 1, twice
def test_a_last_batch_that_is_not_full_stays_out_under_batch_norm(own, batch, steps):
    plan = replace(own, schedule=replace(SCHEDULE, batch_size=batch))
    trained = train_recipe(Recipe(OWN, 0.0, "pretrained"), plan)
    assert trained.state["1.num_batches_tracked"] == steps


def test_first_network_starts_its_head_near_zero_where_weights_are_random(own):
    plan = replace(
        own, model="mobilenet_v3_small", train=Split(torch.rand(4, 3, 32, 32), torch.arange(4))
    )
    head = plan.first_network(0).classifier[-1]
    assert head.weight.std().item() == pytest.approx(0.01, rel=0.1)


def test_network_of_a_pruned_recipe_has_its_widths_on_the_grid(own, store):
    recipes = [Recipe(OWN, 0.5, kind) for kind in ("one-shot", "fine-tuned", "scratch")]
    found = train_networks(recipes, {OWN: own}, store=store)
    for recipe in recipes:
        network = own.network(recipe, found[recipe].state)
        assert (network[0].out_channels, network[3].out_channels) == (8, 16)
        assert predict_logits(network, own.validation).shape == (100, 4)


def test_norms_of_a_pruned_network_have_its_own_statistics(own):
    baseline = train_recipe(
        Recipe(OWN, 0.0, "baseline"), own, parent=own.first_network(0).state_dict()
    )
    recipe = Recipe(OWN, 0.5, "one-shot")
    state = train_recipe(recipe, own, parent=baseline.state).state
    layer = nn.Conv2d(3, 8, 3, stride=2, padding=1)
    layer.load_state_dict({name: state[f"0.{name}"] for name in ("weight", "bias")})
    with torch.no_grad():
        seen = layer(own.train.take(len(own.train))).mean((0, 2, 3))
    # the batches are drawn, and one of 96 of the 100 images at most is left out of them
    torch.testing.assert_close(state["1.running_mean"], seen, rtol=0.02, atol=0.01)


def test_pruned_recipes_are_every_kind_at_every_level_above_zero():
    recipes = pruned_recipes(["a", "b"], [0.0, 0.5], [0, 1])
    assert [(r.model, r.seed, r.kind) for r in recipes] == [
        (model, seed, kind)
        for model in ("a", "b")
        for seed in (0, 1)
        for kind in ("one-shot", "fine-tuned", "scratch")
    ]
    assert {r.pruning_level for r in recipes} == {0.5}


def test_recipe_names_say_all_and_can_be_files():
    recipe = Recipe("pkg.mod:net", 0.25, "fine-tuned", 3, "l2")
    assert recipe.file_name == "weights/pkg-mod-net-fine-tuned-p25-l2-seed3.pt"
    assert recipe.parent == Recipe("pkg.mod:net", 0.0, "pretrained", 3)
    assert Recipe("a", 0.5, "scratch").parent is None
    assert PRETRAINED.parent is None


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("a", 0.5, "magic"), "unknown recipe 'magic'; allowed: pretrained, baseline, one-shot"),
        (("a", 0.5, "one-shot", 0, "luck"), "unknown criterion 'luck'; allowed: l1"),
        (("a", 0.0, "one-shot"), "recipe 'one-shot' at pruning level 0.0; allowed: pretrained and"),
        (("a", 0.5, "baseline"), "recipe 'baseline' at pruning level 0.5"),
    ],
)
def test_recipe_names_what_is_impossible(arguments, message):
    with pytest.raises(ValueError, match=message):
        Recipe(*arguments)


OWN_NETWORK = """
import own_ops
from torch import nn


class Own(nn.Module):
    def forward(self, images):
        return own_ops.scaled(images.mean(dim=(2, 3)))


def make(num_classes):
    return Own()
"""


def test_digests_know_what_a_users_network_computes_elsewhere(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "own_ops.py").write_text("def scaled(hidden):\n    return hidden * 7\n")
    (tmp_path / "own_network.py").write_text(OWN_NETWORK)
    own = build_model("own_network:make")
    before = model.network_digest(own), model.factory_digest("own_network:make")
    (tmp_path / "own_ops.py").write_text("def scaled(hidden):\n    return hidden * 8\n")
    after = model.network_digest(own), model.factory_digest("own_network:make")
    assert before[0] != after[0]
    assert before[1] != after[1]
    assert model._own_source(build_model("mobilenet_v3_small")) == ""
    assert model.factory_digest("mobilenet_v3_small") == ""


def test_what_a_factory_trained_keeps_its_head(plan, tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "own_ready.py").write_text(
        "import torch\nfrom torch import nn\n\n\ndef make(num_classes):\n"
        "    net = nn.Sequential(nn.Conv2d(1, 4, 3), nn.Flatten(), nn.Linear(4 * 26 * 26, 4))\n"
        "    nn.init.constant_(net[2].weight, 0.25)\n    return net\n"
    )
    own = replace(plan, model="own_ready:make").first_network(0)
    assert (own[2].weight == 0.25).all()


def test_a_killed_training_leaves_those_before_it(tmp_path):
    script = """
import os, sys
from edgeopt.experiments.trainings import networks
from edgeopt.experiments.trainings.recipes import Recipe
from edgeopt.experiments.trainings.plan import Training
from edgeopt.experiments.trainings.networks import train_networks
from edgeopt.system import Store
from tests.conftest import striped_split
from tests.experiments.trainings.test_networks import SCHEDULE, TrainingPlan
from pathlib import Path
split = striped_split(64, seed=1)
plan = TrainingPlan("small_cnn", split, split, 4, SCHEDULE)
train = networks.train_recipe
networks.train_recipe = lambda r, *a, **k: os._exit(9) if r.seed == 2 else train(r, *a, **k)
recipes = [Recipe("small_cnn", 0.0, "pretrained", seed) for seed in range(3)]
train_networks(recipes, {"small_cnn": plan}, store=Store(Path(sys.argv[1]), Training))
"""
    child = subprocess.run([sys.executable, "-c", script, str(tmp_path)], capture_output=True)
    assert child.returncode == 9, child.stderr
    assert len(list(tmp_path.iterdir())) == 2
