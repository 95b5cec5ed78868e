"""What a run will take: counted by hand here, and refused where the machine has not got it."""

import pytest
import torch
from torch import nn

from edgeopt.config import ConfigError, ExperimentConfig
from edgeopt.study import open_study
from edgeopt.study import resources as module
from edgeopt.study.resources import (
    GIB,
    ImageCost,
    Resources,
    estimate,
    image_cost,
    require_resources,
    subset_sizes,
)

MODEST = Resources(training_hours=1, timing_hours=0.5, memory_bytes=GIB, disk_bytes=GIB)


@pytest.fixture(autouse=True)
def reports(tmp_path, monkeypatch):
    monkeypatch.setenv("EDGEOPT_REPORTS", str(tmp_path / "reports"))


def test_the_images_of_a_run_are_those_asked_for_or_all():
    config = ExperimentConfig(train_subset=100, val_subset=None, test_subset=10)
    sizes = {"train": 100, "validation": 3000, "test": 10, "calibration": 640}
    assert subset_sizes(config) == sizes


@pytest.mark.parametrize("name", ["train_subset", "val_subset", "test_subset"])
@pytest.mark.parametrize("size", [1, 9, 10**9])
def test_a_subset_that_cannot_be_is_named(name, size):
    with pytest.raises(ConfigError, match=rf"{name} is {size}; allowed: 10, one a class, to \d+,"):
        subset_sizes(ExperimentConfig(**{name: size}))


def test_more_calibration_images_than_half_of_those_to_train_on_are_named():
    asked = ExperimentConfig(calibration_images=7000)
    with pytest.raises(ConfigError, match="from 1 to 6000, got 7000"):
        subset_sizes(asked)


def test_what_a_training_keeps_for_an_image_is_counted_in_bytes():
    # Flattening is a view of the images, which the linear layer keeps; the softmax keeps 5 floats.
    # What autograd keeps of a few scalars and the labels is beside it.
    network = nn.Sequential(nn.Flatten(), nn.Linear(3 * 32 * 32, 5))
    cost = image_cost(network, (3, 32, 32))
    assert cost.weight_bytes == 4 * (3 * 32 * 32 * 5 + 5)
    assert 4 * (3 * 32 * 32 + 5) <= cost.activation_bytes <= 4 * (3 * 32 * 32 + 5) + 32
    assert cost.train_seconds > 0


def test_a_network_is_tried_on_one_thread_and_not_changed(small_cnn):
    before = {name: value.clone() for name, value in small_cnn.state_dict().items()}
    threads = torch.get_num_threads()
    image_cost(small_cnn, (1, 28, 28))
    assert torch.get_num_threads() == threads
    assert all(torch.equal(before[n], value) for n, value in small_cnn.state_dict().items())


def test_a_run_is_added_up(monkeypatch):
    cost = ImageCost(train_seconds=2, call_seconds=3, activation_bytes=1000, weight_bytes=50)
    monkeypatch.setattr(module, "image_cost", lambda *_: cost)
    monkeypatch.setattr(module, "usable_cores", lambda: 4)
    monkeypatch.setattr(module, "status_bytes", lambda _: 7)
    config = ExperimentConfig(
        pruning_levels=[0.0, 0.5],
        pruning_criteria=["l1", "l2"],
        seeds=[0, 1],
        epochs=5,
        finetune_epochs=3,
        batch_size=64,
        runtimes=["torch"],
        precisions=["fp32", "int8"],
        rounds=2,
        calls_per_round=10,
    )
    sizes = {"train": 100, "validation": 10, "test": 10, "calibration": 10}
    found = estimate(open_study(config), sizes=sizes)
    # Whole: 5 and 3 epochs; half as wide: 3 fine-tuned and 8 from scratch; of both seeds. The
    # contest of two criteria trains half networks for an epoch, of the first seed.
    epochs = 2 * (5 + 3 + 0.5 * (3 + 8)) + 0.5 * 2
    assert found.training_hours == pytest.approx(epochs * 100 * 2 / 4 / 3600)
    assert found.timing_hours == pytest.approx(4 * 2 * 10 * 3 / 3600)  # 4 candidates
    assert found.memory_bytes == 7 + 4 * (4 * 50 + 64 * 1000)
    # Of each seed 2 whole networks, 3 recipes at each of two levels and 4 candidates, twice.
    assert found.disk_bytes == 2 * 2 * (2 + 6 + 4) * 50 + 130 * 28 * 28


def test_all_that_a_machine_has_is_enough_and_a_byte_more_is_not(monkeypatch, tmp_path):
    config = ExperimentConfig(data_dir=str(tmp_path / "data"))
    monkeypatch.setattr(module, "available_bytes", lambda: MODEST.memory_bytes)
    assert require_resources(config, MODEST) is None
    monkeypatch.setattr(module, "available_bytes", lambda: MODEST.memory_bytes - 1)
    with pytest.raises(ConfigError, match="of memory"):
        require_resources(config, MODEST)


@pytest.mark.parametrize(
    ("needs", "message"),
    [
        ({"training_hours": 2.0}, r"2\.5 hours with .*epochs 6.*, as max_hours allows 2 hours"),
        ({"timing_hours": 1.5}, r"2\.5 hours with .*calls_per_round 30.*max_hours allows 2 hours"),
        ({"memory_bytes": 3 * GIB}, r"3 GiB of memory with .*batch_size 64.* has 2 GiB of memory"),
        ({"disk_bytes": 10**18}, r"of disk with .*dataset fashion-mnist-20k.*there is room"),
    ],
)
def test_what_a_machine_has_not_got_is_named_and_can_be_overridden(
    monkeypatch, tmp_path, needs, message
):
    monkeypatch.setattr(module, "available_bytes", lambda: 2 * GIB)
    own, needed = {"data_dir": str(tmp_path), "max_hours": 2.0}, Resources(**vars(MODEST) | needs)
    with pytest.raises(ConfigError, match=message):
        require_resources(ExperimentConfig(**own), needed)
    require_resources(ExperimentConfig(**own, ignore_estimates=True), needed)


def test_what_the_folders_of_a_run_hold_counts_as_free(monkeypatch, tmp_path):
    monkeypatch.setattr(module, "available_bytes", lambda: 2 * GIB)
    monkeypatch.setattr(module.shutil, "disk_usage", lambda _: type("Usage", (), {"free": 100}))
    config = ExperimentConfig(data_dir=str(tmp_path / "data"))
    for folder in ("data/trained", "reports/quick"):
        (tmp_path / folder).mkdir(parents=True)
        (tmp_path / folder / "file").write_bytes(b"x" * 50)
    require_resources(config, Resources(1, 1, 1, 150))
    with pytest.raises(ConfigError, match="room for"):
        require_resources(config, Resources(1, 1, 1, 151))
