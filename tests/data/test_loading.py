"""Data sets by name: four disjoint roles, seeded draws, loaders, and what is refused."""

import hashlib
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from edgeopt.data import loading as data
from edgeopt.data.loading import build_loaders, class_count, load_splits
from edgeopt.data.preprocessing import Preprocessing
from edgeopt.data.sets.embedded import EMBEDDED_SHA256
from edgeopt.data.sets.sources import FULL_SETS, IDX_FILES
from edgeopt.data.splits import OFFICIAL_TEST, shared_images
from edgeopt.schema import DATASETS

EMBEDDED = "fashion-mnist-20k"
ROLES = ("train", "calibration", "validation", "test")


@pytest.fixture(scope="module")
def splits():
    return load_splits(EMBEDDED)


def sizes(splits) -> list[int]:
    return [len(getattr(splits, role)) for role in ROLES]


def same_images(one, other) -> bool:
    return one.take(len(one)).equal(other.take(len(other)))


def labels_of(loader) -> list[list[int]]:
    return [labels.tolist() for _, labels in loader]


def idx_bytes(array: np.ndarray) -> bytes:
    head = bytes([0, 0, 8, array.ndim])
    return head + b"".join(size.to_bytes(4, "big") for size in array.shape) + array.tobytes()


@pytest.fixture
def tiny_mnist(tmp_path, monkeypatch):
    """An MNIST of 40 + 8 images whose official splits share two images, already on disk."""
    train = np.arange(40, dtype=np.uint8).repeat(28 * 28).reshape(40, 28, 28)
    train[39] = train[38]
    test = np.arange(100, 108, dtype=np.uint8).repeat(28 * 28).reshape(8, 28, 28)
    test[:2] = train[:2]
    labels = np.array([0, 1] * 20, dtype=np.uint8)
    arrays = (train, labels, test, labels[:8])
    contents = dict(zip(IDX_FILES, map(idx_bytes, arrays), strict=True))
    digests = {name: hashlib.sha256(content).hexdigest() for name, content in contents.items()}
    tiny = replace(FULL_SETS["mnist"], sha256=digests)
    monkeypatch.setitem(FULL_SETS, "mnist", tiny)
    monkeypatch.setattr(data, "FULL_VALIDATION_IMAGES", 10)
    tiny.raw_folder(tmp_path).mkdir(parents=True)
    for name, content in contents.items():
        (tiny.raw_folder(tmp_path) / name).write_bytes(content)
    return tmp_path


def test_embedded_roles_have_their_sizes_and_classes(splits):
    assert sizes(splits) == [11_360, 640, 3_000, 5_000]
    for role in ROLES:
        counts = getattr(splits, role).labels.bincount()
        assert counts.tolist() == [len(getattr(splits, role)) // 10] * 10
    assert splits.train.shape == (1, 28, 28)
    assert splits.checksum == EMBEDDED_SHA256
    assert splits.name == EMBEDDED


def test_no_two_roles_share_an_image(splits):
    assert shared_images(splits)["shared_images"].tolist() == [0] * 6


def test_first_calibration_images_hold_every_class(splits):
    assert splits.calibration.labels[:10].unique().tolist() == list(range(10))


def test_seed_draws_training_and_leaves_evaluation_alone():
    options = {"train_subset": 200, "calibration_images": 50, "val_subset": 100, "test_subset": 60}
    one, same, other = (load_splits(EMBEDDED, **options, seed=seed) for seed in (1, 1, 2))
    assert sizes(one) == [200, 50, 100, 60]
    for role in ROLES:
        assert same_images(getattr(one, role), getattr(same, role))
    for role in ("train", "calibration"):
        assert not same_images(getattr(one, role), getattr(other, role))
    for role in ("validation", "test"):
        assert same_images(getattr(one, role), getattr(other, role))


def test_load_splits_scales_as_pillow_does_and_keeps_the_images_in_one_file(tmp_path):
    options = {"train_subset": 20, "calibration_images": 5, "val_subset": 5, "test_subset": 5}
    own, large = (
        load_splits(EMBEDDED, **options, data_dir=tmp_path, preprocessing=how)
        for how in (Preprocessing(), Preprocessing(image_size=33, channels=3))
    )
    assert {getattr(large, role).shape for role in ROLES} == {(3, 33, 33)}
    assert len({getattr(large, role).pixels.path for role in ROLES}) == 1
    for role in ROLES:
        source, scaled = getattr(own, role), getattr(large, role)
        assert scaled.labels.equal(source.labels)
        grey = (source.take(1)[0, 0] * 255).round().byte().numpy()
        by_pillow = Image.fromarray(grey).resize((33, 33), Image.Resampling.BILINEAR)
        for channel in (scaled.take(1)[0] * 255).round().byte().numpy():
            assert (channel == np.asarray(by_pillow)).all()


def test_load_splits_normalizes_every_role_alike():
    how = Preprocessing(channels=3, mean="imagenet", std=(0.2, 0.4, 0.5))
    plain, splits = load_splits(EMBEDDED), load_splits(EMBEDDED, preprocessing=how)
    for role in ROLES:
        grey, seen = (getattr(found, role).take(2) for found in (plain, splits))
        for channel, (mean, std) in enumerate([(0.485, 0.2), (0.456, 0.4), (0.406, 0.5)]):
            torch.testing.assert_close(seen[:, channel], (grey[:, 0] - mean) / std)


def test_load_splits_refuses_a_number_for_a_channel_that_is_not_there():
    with pytest.raises(ValueError, match=r"mean has 3 numbers \(0.485, 0.456, 0.406\) for 1 chann"):
        load_splits(EMBEDDED, preprocessing=Preprocessing(mean="imagenet"))


def test_load_splits_puts_the_classes_in_the_order_given():
    names = load_splits(EMBEDDED).class_names
    plain, turned = load_splits(EMBEDDED), load_splits(EMBEDDED, class_names=names[::-1])
    assert turned.class_names == names[::-1]
    for role in ROLES:
        assert (getattr(turned, role).labels == 9 - getattr(plain, role).labels).all()
    assert same_images(plain.train, turned.train)


def test_load_splits_names_the_classes_that_do_not_exist(tiny_mnist):
    names = ["one", *"023456789"]
    with pytest.raises(ValueError, match=r"unknown: \['one'\], missing: \['1'\]; allowed: each of"):
        load_splits("mnist", data_dir=tiny_mnist, class_names=names)


def test_load_splits_says_that_the_test_images_are_the_official_ones(splits):
    assert splits.origin == OFFICIAL_TEST


def test_full_set_is_read_and_its_copies_are_left_out_of_training(tiny_mnist, caplog):
    splits = load_splits("mnist", data_dir=tiny_mnist, calibration_images=5)
    # 40 images less the 2 that test holds and the 1 that training holds twice.
    assert splits.duplicates_dropped == 3
    assert sizes(splits) == [37 - 10 - 5, 5, 10, 8]
    assert shared_images(splits)["shared_images"].sum() == 0
    assert "3 duplicate images left out" in caplog.text
    assert splits.class_names == tuple("0123456789")
    values = (splits.test.take(8)[:, 0, 0, 0] * 255).round().long()
    assert sorted(values.tolist()) == [0, 1, *range(102, 108)]


def test_full_set_with_a_truncated_file_is_not_loaded(tiny_mnist):
    path = FULL_SETS["mnist"].raw_folder(tiny_mnist) / IDX_FILES[2]
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(ValueError, match=rf"{IDX_FILES[2]} is truncated or corrupt"):
        load_splits("mnist", data_dir=tiny_mnist, calibration_images=5)


def test_loaders_serve_all_twelve_thousand_images_once():
    train, validation = build_loaders(EMBEDDED, 500, 12_000, 3_000, 0, 0)
    contents = {image.numpy().tobytes() for images, _ in train for image in images}
    assert len(contents) == 12_000
    assert sum(len(labels) for _, labels in validation) == 3_000


def test_loaders_repeat_with_the_seed_and_only_with_it():
    one, same, other = (build_loaders(EMBEDDED, 32, 320, 64, seed, 0) for seed in (0, 0, 1))
    for (images, labels), (images_again, labels_again) in zip(one[0], same[0], strict=True):
        assert images.equal(images_again)
        assert labels.equal(labels_again)
    assert labels_of(one[0]) != labels_of(other[0])
    assert labels_of(one[1]) == labels_of(other[1])
    assert isinstance(one[0], torch.utils.data.DataLoader)


def test_worker_processes_serve_the_same_batches():
    alone, helped = (build_loaders(EMBEDDED, 32, 96, 32, 0, workers) for workers in (0, 2))
    assert labels_of(alone[0]) == labels_of(helped[0])


def test_other_seed_orders_the_same_images_otherwise():
    orders = []
    for seed in (0, 1):
        train, _ = build_loaders(EMBEDDED, 1000, 12_000, 100, seed, 0)
        orders.append([image.numpy().tobytes() for images, _ in train for image in images])
    assert orders[0] != orders[1]
    assert set(orders[0]) == set(orders[1])


@pytest.mark.parametrize("name", ["cifar10", "", "MNIST", "Folder:x"])
def test_unknown_data_set_lists_the_known_ones(name):
    with pytest.raises(ValueError, match=f"unknown data set {name!r}; allowed: ") as caught:
        load_splits(name)
    assert all(known in str(caught.value) for known in (*DATASETS, "folder:<path>"))


@pytest.mark.parametrize(
    ("option", "value", "highest"),
    [
        ("train_subset", 0, 11_360),
        ("train_subset", 11_361, 11_360),
        ("train_subset", 2.5, 11_360),
        ("train_subset", True, 11_360),
        ("calibration_images", 0, 6_000),
        ("calibration_images", 6_001, 6_000),
        ("val_subset", 3_001, 3_000),
        ("test_subset", -1, 5_000),
    ],
)
def test_sizes_out_of_range_name_the_range(option, value, highest):
    message = f"{option} must be a whole number from 1 to {highest}, got {value!r}"
    with pytest.raises(ValueError, match=message):
        load_splits(EMBEDDED, **{option: value})


def test_loaders_refuse_more_images_than_there_are():
    with pytest.raises(ValueError, match="train_subset must be a whole number from 1 to 12000"):
        build_loaders(EMBEDDED, 32, 12_001, 3_000, 0, 0)


def test_class_count_reads_no_image(tmp_path):
    assert [class_count(name) for name in ("fashion-mnist-20k", "mnist")] == [10, 10]
    for name in ("train/a", "train/b", "train/c", "val/a", "test/a", ".hidden"):
        (tmp_path / name).mkdir(parents=True)
    assert class_count(f"folder:{tmp_path}") == 3
    assert class_count(f"folder:{tmp_path / 'train'}") == 3
    with pytest.raises(ValueError, match="unknown data set 'cifar'; allowed"):
        class_count("cifar")
    with pytest.raises(ValueError, match="is not a directory"):
        class_count(f"folder:{tmp_path / 'nowhere'}")
