"""A run of any networks: what it refuses, how it sees images, and all six notebooks of one."""

import logging
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from edgeopt.config import ExperimentConfig
from edgeopt.devices import DeviceError
from edgeopt.experiments.trainings.recipes import pruned_recipes
from edgeopt.study import images, study
from edgeopt.study.study import Study, open_study
from tests.own_network import CLASSES, COLOUR, GREY, SIDE, write_pictures


@pytest.fixture
def config_of(pictures, tmp_path, monkeypatch):
    monkeypatch.setenv("EDGEOPT_REPORTS", str(tmp_path / "reports"))
    everything = {f"{role}_subset": None for role in ("train", "val", "test")}
    given = {"dataset": f"folder:{pictures}", "data_dir": str(tmp_path / "data"), **everything}

    def make(**values):
        return ExperimentConfig(**{**given, "epochs": 1, "finetune_epochs": 1, **values})

    return make


def test_every_network_gets_the_images_that_it_takes(config_of):
    opened = open_study(config_of(models=[COLOUR, "small_cnn", GREY]))
    shapes = {model: splits.train.shape for model, splits in opened.splits.items()}
    own = {COLOUR: (3, SIDE, SIDE), GREY: (1, SIDE, SIDE)}
    assert shapes == {**own, "small_cnn": (1, 28, 28)}
    labels = {m: split.labels.tolist() for m, split in opened.role("validation").items()}
    assert labels[COLOUR] == labels["small_cnn"] == labels[GREY]
    assert opened.class_names == CLASSES
    assert opened.image_counts()["images"].to_dict() == {
        "train": 60,
        "calibration": 60,
        "validation": 60,
        "test": 60,
    }
    assert opened.test_warning == ""


def test_mean_and_std_are_applied_and_told(config_of):
    opened = open_study(config_of(models=[COLOUR], mean="imagenet", std=0.5))
    seen = opened.seen_images().iloc[0]
    assert (seen["height"], seen["width"], seen["channels"]) == (SIDE, SIDE, 3)
    plain = open_study(config_of(models=[COLOUR])).splits[COLOUR].train.take(1)
    mean = torch.tensor([0.485, 0.456, 0.406]).reshape(3, 1, 1)
    found = opened.splits[COLOUR].train.take(1)
    torch.testing.assert_close(found, (plain - mean) / 0.5)
    assert opened.data_facts()["preprocessing"][COLOUR]["std"] == 0.5


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"models": ["tests.own_network:one_too_many"]}, r"gives \[1, 4\] for 1 images of 3"),
        ({"models": ["tests.own_network:failing"]}, "num_classes=3: RuntimeError: no licence"),
        ({"models": ["tests.own_network:not_a_network"]}, "returned int; allowed: nn.Module"),
        ({"models": [COLOUR], "mean": [0.1, 0.2]}, r"mean has 2 numbers .* for 3 channel"),
        ({"models": [COLOUR], "channels": 1}, r"its first convolution takes channels: 3"),
        ({"models": ["resnet999"]}, "unknown model 'resnet999'; allowed: small_cnn"),
        ({"dataset": "folder:nowhere"}, "folder:nowhere is not a directory"),
    ],
)
def test_what_does_not_fit_is_refused_before_any_image_is_read(
    config_of, monkeypatch, values, message
):
    monkeypatch.setattr(images, "load_splits", lambda *_, **__: pytest.fail("images were loaded"))
    with pytest.raises(ValueError, match=message):
        open_study(config_of(image_size=SIDE, **values))


# Halvings on the way to the last map: five in these networks, so that 32 pixels become one.
@pytest.mark.parametrize("name", ["mobilenet_v3_small", "efficientnet_b0", "resnet18"])
def test_images_smaller_than_the_stride_are_refused(config_of, name):
    message = f"^images of 31 pixels are smaller than the stride of {name}, 32; allowed: "
    with pytest.raises(ValueError, match=message):
        open_study(config_of(models=[name], image_size=31))
    open_study(config_of(models=[name], image_size=32))


def test_weights_that_do_not_fit_are_refused_before_any_image_is_read(config_of, tmp_path):
    text = tmp_path / "weights.pt"
    text.write_text("not weights")
    with pytest.raises(ValueError, match=r"weights.pt holds no weights: torch cannot read it"):
        open_study(config_of(models=[COLOUR], weights=str(text)))
    with pytest.raises(FileNotFoundError, match=r"a folder that holds tests-own_network-colour.pt"):
        open_study(config_of(models=[COLOUR], weights=str(tmp_path)))


def test_a_network_of_another_size_is_refused_once_the_size_of_the_images_is_known(config_of):
    opened = open_study(config_of(models=["tests.own_network:one_too_many"]))
    with pytest.raises(ValueError, match=r"gives \[1, 4\] for 1 images of 3 classes"):
        _ = opened.splits


def test_networks_of_two_sizes_share_their_pictures(config_of, tmp_path):
    # two pictures that differ by one pixel, which 28x28 in grey does not show
    root = write_pictures(tmp_path / "mine", {"": 12})
    for name in CLASSES:
        folder = root / name
        pixels = np.full((64, 64, 3), 90, np.uint8)
        for number in (1, 2):
            pixels[0, number] += 1
            Image.fromarray(pixels).save(folder / f"twin{number}.png")
    values = {"dataset": f"folder:{root}", "image_size": 32}
    opened = open_study(config_of(models=["small_cnn", COLOUR], **values))
    for role in ("train", "calibration", "validation", "test"):
        small, large = opened.role(role).values()
        assert small.labels.tolist() == large.labels.tolist()
        assert small.positions.tolist() == large.positions.tolist()


def test_a_network_at_chance_is_asked_about(config_of):
    opened = open_study(config_of(models=[COLOUR], epochs=0))
    opened.require_better_than_chance({COLOUR: 60}, images=60)
    # of 60 images in 3 classes, 30 and more come by chance in 0.6%, 29 and more in 1.1%
    opened.require_better_than_chance({COLOUR: 30}, images=60)
    with pytest.raises(ValueError, match=r"colour is right on 29 of 60 .*class_names.*mean and"):
        opened.require_better_than_chance({COLOUR: 29}, images=60)
    allowed = open_study(config_of(models=[COLOUR], epochs=0, allow_chance=True))
    allowed.require_better_than_chance({COLOUR: 1}, images=60)


def test_test_images_of_given_weights_are_doubted_unless_the_folder_says(
    config_of, tmp_path, caplog
):
    plain = write_pictures(tmp_path / "plain", {"": 12})
    values = {"dataset": f"folder:{plain}", "models": [COLOUR], "epochs": 0}
    with caplog.at_level(logging.WARNING):
        warned = open_study(config_of(**values)).data_facts()["test_warning"]
    assert "may have been trained on some of the test images" in warned
    assert warned in caplog.text
    assert open_study(config_of(models=[COLOUR], epochs=0)).test_warning == ""
    assert open_study(config_of(**{**values, "epochs": 1})).test_warning == ""


def test_networks_are_trained_once_kept_and_found_again(config_of, monkeypatch):
    opened = open_study(config_of(models=[COLOUR], pruning_levels=[0.0, 0.5]))
    recipes = [*opened.baselines(), *pruned_recipes([COLOUR], [0.5], [0], kinds=["fine-tuned"])]
    networks = opened.networks(opened.train(recipes))
    opened.keep(networks)
    found = opened.kept(recipes)
    images = opened.splits[COLOUR].validation.take(8)
    for recipe in recipes:
        torch.testing.assert_close(found[recipe](images), networks[recipe](images))
    widths = [networks[r][0].conv1.out_channels for r in recipes]
    assert widths == [8, 8]  # half of 8 is 4, the nearest multiple of 8 is 8
    monkeypatch.setattr(
        "edgeopt.experiments.trainings.plan.fit", lambda *_, **__: pytest.fail("trained again")
    )
    assert [*opened.train(recipes)] == recipes


def test_an_emulated_device_is_measured_but_does_not_decide(monkeypatch):
    def made(name, **_):
        return SimpleNamespace(facts=lambda: {"emulated": name != "host"})

    monkeypatch.setattr(study, "device_named", made)
    opened, refused = (
        Study(ExperimentConfig(devices=["host", "ssh://board"], decide_on=name), None, {})
        for name in ("host", "ssh://board")
    )
    assert opened.device_facts["ssh://board"]["emulated"]
    with pytest.raises(DeviceError, match=r"ssh://board, which is emulated: .* of \['host'\]$"):
        _ = refused.device_facts
