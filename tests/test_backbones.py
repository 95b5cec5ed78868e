import subprocess
import sys
from dataclasses import replace
from multiprocessing.reduction import ForkingPickler
from pathlib import Path
from urllib.error import URLError

import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn

from edgeopt import backbones
from edgeopt.backbones import (
    ByValue,
    Workshop,
    int8_cost,
    markdown_table,
    prune_backbone,
    start_backbone,
    train_backbones,
)
from edgeopt.data import Split, Splits
from edgeopt.model import build_model, dump_weights, set_deterministic
from edgeopt.pruning import count_macs
from edgeopt.recipes import Schedule
from edgeopt.training import fit, predict_logits
from tests.conftest import striped_split

TINY = "tests.test_backbones:tiny"
SCHEDULE = Schedule(epochs=2, finetune_epochs=1, learning_rate=0.01, batch_size=32)


def tiny(num_classes: int) -> nn.Module:
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


def coloured(count: int, *, seed: int) -> Split:
    grey = striped_split(count, seed=seed)
    return Split(grey.images.repeat(1, 3, 1, 1), grey.labels)


@pytest.fixture(scope="module")
def splits() -> Splits:
    roles = {"train": 100, "calibration": 64, "validation": 80, "test": 40}
    parts = {role: coloured(n, seed=i) for i, (role, n) in enumerate(roles.items())}
    return Splits("striped", ("a", "b", "c", "d"), "0" * 64, **parts)


@pytest.fixture
def workshop(splits, tmp_path) -> Workshop:
    torch.set_num_threads(1)
    return Workshop(lambda: splits, SCHEDULE, tmp_path / "trained")


def train_one(workshop: Workshop, *, seed: int = 0) -> nn.Module:
    return train_backbones([TINY], workshop, seeds=[seed])[TINY, seed]


def files(workshop: Workshop) -> list[str]:
    return sorted(path.name for path in Path(workshop.folder).iterdir())


def test_every_backbone_is_trained_once_per_seed_and_learns(workshop, splits):
    networks = train_backbones([TINY], workshop, seeds=[0, 1])
    assert list(networks) == [(TINY, 0), (TINY, 1)]
    assert not torch.equal(networks[TINY, 0][0].weight, networks[TINY, 1][0].weight)
    for network in networks.values():
        assert not network.training
        found = predict_logits(network, splits.validation.images).argmax(1)
        assert (found == splits.validation.labels).float().mean() > 0.8
    assert all(name.startswith("tests.test_backbones-tiny-seed") for name in files(workshop))


def test_the_same_training_is_loaded_and_not_done_again(workshop, monkeypatch):
    first = train_one(workshop)
    monkeypatch.delattr(backbones, "fit")
    second = train_one(workshop)
    pairs = zip(first.parameters(), second.parameters(), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)


@pytest.mark.parametrize("change", ["epochs", "rate", "batch", "seed", "data", "torch"])
def test_anything_that_decides_the_weights_trains_anew(change, workshop, splits, monkeypatch):
    train_one(workshop)
    other, seed = workshop, int(change == "seed")
    schedules = {
        "epochs": replace(SCHEDULE, epochs=1),
        "rate": replace(SCHEDULE, learning_rate=0.02),
        "batch": replace(SCHEDULE, batch_size=16),
    }
    if change in schedules:
        other = replace(workshop, schedule=schedules[change])
    if change == "data":
        train = Split(splits.train.images.flip(0), splits.train.labels.flip(0))
        other = replace(workshop, load=lambda: replace(splits, train=train))
    if change == "torch":
        monkeypatch.setattr(torch, "__version__", "0.0")
    train_one(other, seed=seed)
    assert len(files(workshop)) == 2


def test_norms_average_fast_enough_and_serve_what_they_saw(workshop, splits):
    one_step = replace(SCHEDULE, epochs=1, batch_size=100)
    trained = train_one(replace(workshop, schedule=one_step))
    first = start_backbone(TINY, splits)[0]
    mean = first(splits.train.images).mean(dim=(0, 2, 3))
    # From zero, one step at a momentum of 0.1 goes a tenth of the way.
    torch.testing.assert_close(trained[1].running_mean, 0.1 * mean.detach())


def test_a_last_batch_that_is_not_full_is_left_out(workshop):
    # 100 images make three batches of 32 in each of two epochs; the other four stay out.
    assert train_one(workshop)[1].num_batches_tracked == 6


def test_fewer_images_than_a_batch_are_one_batch(workshop):
    few = replace(workshop, schedule=replace(SCHEDULE, batch_size=512))
    assert train_one(few)[1].num_batches_tracked == 2


def test_training_is_that_of_fit(workshop, splits):
    model = start_backbone(TINY, splits, seed=3)
    model[1].momentum = 0.1
    set_deterministic(3)
    whole = Split(splits.train.images[:96], splits.train.labels[:96])
    loader = whole.loader(32, shuffle=True, seed=3)
    options = {"epochs": 2, "learning_rate": 0.01, "cosine": True, "progress": False}
    by_hand = fit(model, loader, **options).model
    assert torch.equal(train_one(workshop, seed=3)[0].weight, by_hand[0].weight)


def test_the_head_starts_near_zero_where_weights_are_random(splits):
    head = start_backbone("mobilenet_v3_small", sized(splits, 32)).classifier[-1]
    assert head.weight.std().item() == pytest.approx(0.01, rel=0.1)


def test_given_weights_are_where_training_starts(workshop, splits, tmp_path):
    set_deterministic(7)
    given = tiny(4)
    path = tmp_path / "tests.test_backbones-tiny.pt"
    path.write_bytes(dump_weights(given))
    untrained = replace(SCHEDULE, epochs=0)
    for source in (path, tmp_path):
        started = train_one(replace(workshop, schedule=untrained, weights=str(source)))
        assert torch.equal(started[7].weight, given[7].weight)


@pytest.mark.parametrize("weights", ["nowhere.pt", "torchvision"])
def test_weights_that_are_not_there_are_named(weights, splits):
    with pytest.raises(FileNotFoundError, match=rf"no weights of {TINY} at {weights}; allowed: "):
        start_backbone(TINY, splits, weights=weights)


def test_weights_of_another_network_are_refused(splits, tmp_path):
    path = tmp_path / "other.pt"
    path.write_bytes(dump_weights(nn.Linear(2, 2)))
    with pytest.raises(ValueError, match=r"other\.pt do not fit Sequential"):
        start_backbone(TINY, splits, weights=str(path))


def test_weights_that_cannot_be_downloaded_say_what_else_there_is(splits, monkeypatch):
    def unreachable(*_, **__):
        raise URLError("no route to host")

    monkeypatch.setattr(backbones, "build_model", unreachable)
    with pytest.raises(OSError, match=r"v3_small cannot be downloaded \(no route to host"):
        start_backbone("mobilenet_v3_small", splits, weights="torchvision")


def test_an_unknown_backbone_is_refused_with_those_there_are(workshop):
    with pytest.raises(ValueError, match=r"unknown model 'mobilenet_v9'; allowed: .*mobilenet_v3_"):
        train_backbones(["mobilenet_v9"], workshop, seeds=[0])


def sized(splits: Splits, side: int) -> Splits:
    images = torch.rand(4, 3, side, side)
    return replace(splits, train=Split(images, torch.arange(4)))


# Halvings on the way to the last map: five in these networks, so that 32 pixels become one.
@pytest.mark.parametrize("name", ["mobilenet_v3_small", "efficientnet_b0", "resnet18"])
def test_images_smaller_than_the_stride_are_refused(name, splits):
    message = (
        f"^images of 31 pixels are smaller than the stride of {name}, 32; "
        "allowed: image_size 32 or more$"
    )
    with pytest.raises(ValueError, match=message):
        start_backbone(name, sized(splits, 31))
    enough = start_backbone(name, sized(splits, 32))
    assert predict_logits(enough, torch.rand(2, 3, 32, 32)).shape == (2, 4)


def test_a_stride_is_known_where_the_head_takes_one_size_only(splits):
    grey = replace(splits, train=Split(torch.rand(4, 1, 3, 3), torch.arange(4)))
    with pytest.raises(ValueError, match="smaller than the stride of small_cnn, 4; allowed"):
        start_backbone("small_cnn", grey)


def test_an_image_that_the_network_cannot_take_names_the_module(splits):
    with pytest.raises(ValueError, match=r"module 'features.*' \(MaxPool2d\) fails on an input"):
        start_backbone("alexnet", sized(splits, 40))


def test_a_network_for_one_image_size_is_named_too(splits):
    with pytest.raises(ValueError, match=r"VisionTransformer fails on an input of shape .*224"):
        start_backbone("vit_b_16", sized(splits, 40))


def test_networks_travel_by_value_and_not_through_shared_memory():
    network = tiny(4)
    arrived = ForkingPickler.loads(ForkingPickler.dumps(ByValue({(0, 0.0): network})))
    assert torch.equal(arrived[0, 0.0][0].weight, network[0].weight)
    assert not any(parameter.is_shared() for parameter in network.parameters())


def test_a_process_without_torchvision_can_receive_its_networks(tmp_path):
    network = build_model("mobilenet_v3_small", num_classes=3)
    sent = tmp_path / "sent"
    sent.write_bytes(bytes(ForkingPickler.dumps(ByValue({"net": network}))))
    receive = (
        "import pathlib, pickle, sys; print(*pickle.loads(pathlib.Path(sys.argv[1]).read_bytes()))"
    )
    child = subprocess.run(
        [sys.executable, "-c", receive, str(sent)], capture_output=True, text=True
    )
    assert (child.stdout, child.returncode) == ("net\n", 0), child.stderr


def test_pruning_leaves_half_the_macs_by_every_criterion_and_a_control(workshop, splits):
    network, image = train_one(workshop), splits.train.images[:1]
    options = {"macs_ratio": 0.5, "criteria": ["l2", "taylor", "random"]}
    pruned = prune_backbone((TINY, 0), network, workshop, **options)
    tuned = [("fine-tuned", criterion) for criterion in options["criteria"]]
    assert list(pruned) == [("scratch", "l2"), *tuned]
    macs = {count_macs(small, example_input=image) for small in pruned.values()}
    assert len(macs) == 1
    assert max(macs) <= 0.5 * count_macs(network, example_input=image)
    # Three batches an epoch: the control goes through the epochs of training and fine-tuning.
    steps = {key: int(small[1].num_batches_tracked) for key, small in pruned.items()}
    assert steps["scratch", "l2"] == 3 * (2 + 1)
    assert steps["fine-tuned", "l2"] == 6 + 3
    assert not torch.equal(pruned["scratch", "l2"][0].weight, pruned["fine-tuned", "l2"][0].weight)


def test_pruned_networks_are_loaded_the_second_time(workshop, monkeypatch):
    network = train_one(workshop)
    options = {"macs_ratio": 0.5, "criteria": ["l1"]}
    first = prune_backbone((TINY, 0), network, workshop, **options)
    monkeypatch.delattr(backbones, "fit")
    second = prune_backbone((TINY, 0), network, workshop, **options)
    for key, small in first.items():
        assert torch.equal(small[3].weight, second[key][3].weight)


@pytest.fixture
def results() -> pd.DataFrame:
    rows = [
        ("a", "torch", "fp32", 0.90, 0.88, 400, 2.0),
        ("a", "torch", "int8", 0.85, 0.80, 100, 4.0),
        ("a", "onnxruntime", "fp32", 0.90, 0.88, 440, 1.0),
        ("a", "onnxruntime", "int8-dynamic", 0.91, 0.89, 110, 0.5),
        ("b", "onnxruntime", "int8", 0.70, 0.60, 50, 0.1),
    ]
    names = ["model", "runtime", "precision", "accuracy", "macro_f1", "artifact_bytes"]
    table = pd.DataFrame(rows, columns=[*names, "latency_p50_ms"])
    return table.assign(candidate=table["model"] + table["runtime"] + table["precision"])


def test_int8_is_set_beside_fp32_of_its_own_backbone_and_runtime(results):
    cost = int8_cost(results).set_index(["model", "runtime"])
    torch_int8 = cost.loc[("a", "torch")]
    assert torch_int8["accuracy_change"] == pytest.approx(-0.05)
    assert torch_int8["macro_f1_change"] == pytest.approx(-0.08)
    assert (torch_int8["file_ratio"], torch_int8["speedup"]) == (4.0, 0.5)
    dynamic = cost.loc[("a", "onnxruntime")]
    assert dynamic["accuracy_change"] == pytest.approx(0.01)
    assert (dynamic["file_ratio"], dynamic["speedup"]) == (4.0, 2.0)
    without_parent = cost.loc[("b", "onnxruntime")]
    assert without_parent[["accuracy_change", "file_ratio", "speedup"]].isna().all()


def test_int8_can_be_judged_before_it_is_timed(results):
    cost = int8_cost(results.drop(columns="latency_p50_ms"))
    assert "speedup" not in cost
    assert len(cost) == 3


def test_markdown_has_a_line_per_row_and_four_digits():
    table = pd.DataFrame({"name": ["a", "b"], "ms": [1.23456, np.nan], "bytes": [1234567, 8]})
    assert markdown_table(table).splitlines() == [
        "|name|ms|bytes|",
        "|---|---|---|",
        "|a|1.235|1234567|",
        "|b||8|",
    ]


class OwnNetwork(nn.Module):
    def forward(self, images):
        return images.mean(dim=(2, 3))


def test_what_a_users_network_computes_decides_its_trained_weights():
    assert "images.mean(dim=(2, 3))" in backbones._own_source(OwnNetwork)
    assert backbones._own_source(type(build_model("mobilenet_v3_small"))) == ""
