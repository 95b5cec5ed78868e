import pytest
import torch

from edgeopt.model import SmallCNN, load_small_cnn
from edgeopt.pruning import structured_channel_prune
from edgeopt.recipes import (
    Recipe,
    Schedule,
    accuracy_table,
    process_pool,
    reinitialised,
    study_recipes,
    train_baselines,
    train_recipes,
)
from edgeopt.training import fit

SCHEDULE = Schedule(epochs=2, finetune_epochs=1, learning_rate=0.01, batch_size=32)


@pytest.fixture(scope="module")
def baselines(striped):
    model = SmallCNN(6, 8, 4)
    runs = train_baselines(model, striped, validation=striped, seeds=[0, 1], schedule=SCHEDULE)
    return {seed: run.model for seed, run in runs.items()}


def test_a_baseline_per_seed_each_its_own(baselines):
    assert list(baselines) == [0, 1]
    assert not torch.equal(baselines[0].conv1.weight, baselines[1].conv1.weight)


def test_a_pool_trains_the_same_weights(striped):
    torch.set_num_threads(1)
    model = SmallCNN(2, 2, 4)
    options = {"validation": striped, "seeds": [3], "schedule": SCHEDULE}
    alone = train_baselines(model, striped, **options)[3].model
    with process_pool(1) as pool:
        pooled = train_baselines(model, striped, executor=pool, **options)[3].model
    assert torch.equal(alone.classifier.weight, pooled.classifier.weight)


def test_every_kind_at_every_level_above_zero():
    recipes = study_recipes([0.0, 0.5], [0, 1])
    assert [(r.seed, r.kind) for r in recipes] == [
        (seed, kind) for seed in (0, 1) for kind in ("one-shot", "fine-tuned", "scratch")
    ]
    assert {r.pruning_level for r in recipes} == {0.5}


def test_one_shot_is_the_pruned_baseline_and_the_others_train_on(baselines, striped):
    recipes = study_recipes([0.5], [0])
    networks = train_recipes(recipes, baselines, striped, schedule=SCHEDULE)
    expected = structured_channel_prune(baselines[0], 0.5)
    shot, tuned, scratch = (networks[r] for r in recipes)
    assert torch.equal(shot.conv2.weight, expected.conv2.weight)
    loader = striped.loader(32, shuffle=True, seed=0)
    options = {"epochs": 1, "learning_rate": 0.01, "cosine": True, "progress": False}
    by_hand = fit(expected, loader, **options).model
    assert torch.equal(tuned.conv2.weight, by_hand.conv2.weight)
    assert scratch.conv2.weight.shape == expected.conv2.weight.shape
    assert not torch.equal(scratch.conv2.weight, tuned.conv2.weight)


def test_train_recipes_leaves_every_criterion_the_same_width(baselines, striped):
    recipes = [Recipe(0.7, "one-shot", 0, name) for name in ("l1", "l2", "taylor", "random")]
    networks = train_recipes(recipes, baselines, striped, schedule=SCHEDULE)
    assert all(isinstance(network, SmallCNN) for network in networks.values())
    table = accuracy_table(networks, striped)
    assert set(table["channels"]) == {"2/2"}  # of 6 and 8, 1.8 and 2.4
    assert set(table["macs"]) == {28 * 28 * 2 * 9 + 14 * 14 * 2 * 2 * 9 + 2 * 49 * 4}


def test_reinitialised_keeps_the_architecture_and_the_original(baselines):
    before = baselines[0].conv1.weight.clone()
    fresh = reinitialised(baselines[0], seed=9)
    assert fresh.conv1.weight.shape == before.shape
    assert not torch.equal(fresh.conv1.weight, before)
    assert torch.equal(baselines[0].conv1.weight, before)


def test_accuracy_table_of_no_network_has_its_columns(striped):
    table = accuracy_table({}, striped)
    assert table.empty
    assert {"accuracy", "channels", "macs"} <= set(table)


def test_accuracy_table_counts_hits(baselines, striped):
    recipe = Recipe(0.0, "baseline", 1)
    row = accuracy_table({recipe: baselines[1]}, striped).iloc[0]
    with torch.no_grad():
        hits = (baselines[1](striped.images).argmax(1) == striped.labels).sum().item()
    assert row["accuracy"] == pytest.approx(hits / len(striped))
    assert row["parameters"] == (6 * 9 + 6) + (8 * 6 * 9 + 8) + (8 * 49 * 4 + 4)
    assert row["channels"] == "6/8"
    assert row["macs"] == 28 * 28 * 6 * 9 + 14 * 14 * 8 * 6 * 9 + 8 * 49 * 4


def test_pruned_weights_are_found_again(tmp_path, baselines):
    from edgeopt.model import dump_weights

    pruned = structured_channel_prune(baselines[0], 0.5)
    path = tmp_path / "weights.pt"
    path.write_bytes(dump_weights(pruned))
    again = load_small_cnn(path)
    assert torch.equal(again.classifier.weight, pruned.classifier.weight)
    torch.save({"other": torch.zeros(1)}, path)
    with pytest.raises(ValueError, match=r"weights.pt are no SmallCNN's: 'conv1.bias' is missing"):
        load_small_cnn(path)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((0.5, "magic"), "unknown recipe 'magic'; allowed: baseline, one-shot"),
        ((0.5, "one-shot", 0, "luck"), "unknown criterion 'luck'; allowed: l1"),
        ((0.0, "one-shot"), "recipe 'one-shot' at pruning level 0.0; allowed: baseline at level 0"),
        ((0.5, "baseline"), "recipe 'baseline' at pruning level 0.5"),
    ],
)
def test_impossible_recipes_are_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        Recipe(*arguments)
