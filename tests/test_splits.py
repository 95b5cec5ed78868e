"""A role's images: what is accepted, how they are scaled, in which order they are served."""

import itertools

import numpy as np
import pytest
import torch
from PIL import Image

from edgeopt.pool import LabelledImages
from edgeopt.splits import Split, Splits, as_split, shared_images


def numbered_split(count: int, *, first: int = 0) -> Split:
    images = (torch.arange(first, first + count) / 255).reshape(-1, 1, 1, 1)
    return Split(images, torch.arange(count))


def grey(*values: int, size: int = 2) -> LabelledImages:
    images = torch.stack([torch.full((1, size, size), value) for value in values])
    return LabelledImages(images.to(torch.uint8), torch.zeros(len(values), dtype=torch.int64))


def labels_of(loader) -> list[list[int]]:
    return [labels.tolist() for _, labels in loader]


def test_unshuffled_batches_follow_the_images():
    loader = numbered_split(7).loader(3)
    assert labels_of(loader) == [[0, 1, 2], [3, 4, 5], [6]]
    assert len(loader) == 3


def test_images_stay_with_their_labels_when_shuffled():
    for images, labels in numbered_split(50).loader(8, shuffle=True, seed=5):
        assert (images.flatten() * 255).round().long().equal(labels)


def test_seed_is_the_order_and_epochs_differ():
    one, same = (numbered_split(50).loader(8, shuffle=True, seed=1) for _ in range(2))
    other = numbered_split(50).loader(8, shuffle=True, seed=2)
    first = labels_of(one)
    assert first == labels_of(same)
    assert first != labels_of(other)
    assert labels_of(one) != first
    assert sorted(itertools.chain.from_iterable(first)) == list(range(50))


def test_loader_leaves_the_global_generator_alone():
    before = torch.get_rng_state()
    labels_of(numbered_split(10).loader(4, shuffle=True))
    assert torch.get_rng_state().equal(before)


def test_batch_size_below_one_is_refused():
    with pytest.raises(ValueError, match="batch_size"):
        numbered_split(3).loader(0)


def test_bytes_become_floats_between_zero_and_one():
    split = as_split(grey(0, 51, 255), image_size=None, channels=None)
    assert split.images[:, 0, 0, 0].tolist() == pytest.approx([0.0, 0.2, 1.0])


def test_grey_is_repeated_to_three_channels():
    split = as_split(grey(0, 255), image_size=None, channels=3)
    assert split.images.shape == (2, 3, 2, 2)
    assert split.images[:, 0].equal(split.images[:, 2])
    assert split.images.is_contiguous()


@pytest.mark.parametrize("image_size", [14, 64])
def test_scaling_agrees_with_pillows_bilinear_filter(image_size):
    pixels = np.random.default_rng(0).integers(0, 256, (28, 28), dtype=np.uint8)
    source = LabelledImages(torch.from_numpy(pixels)[None, None], torch.tensor([0]))
    scaled = as_split(source, image_size=image_size, channels=None).images[0, 0]
    pillow = Image.fromarray(pixels).resize((image_size, image_size), Image.Resampling.BILINEAR)
    assert np.abs(scaled.numpy() * 255 - np.asarray(pillow)).max() <= 1.0


def test_scaling_in_chunks_keeps_the_order(monkeypatch):
    monkeypatch.setattr("edgeopt.splits.RESIZE_CHUNK", 2)
    split = as_split(grey(10, 20, 30, 40, 50), image_size=3, channels=None)
    assert (split.images[:, 0, 1, 1] * 255).round().tolist() == [10, 20, 30, 40, 50]


def test_shared_images_are_counted_per_pair_of_roles():
    splits = Splits(
        name="x",
        class_names=("a",),
        checksum="",
        train=numbered_split(5),
        calibration=numbered_split(3, first=10),
        validation=numbered_split(3, first=3),
        test=numbered_split(2, first=12),
    )
    table = shared_images(splits).set_index(["role_a", "role_b"])["shared_images"]
    assert len(table) == 6
    assert table["train", "validation"] == 2
    assert table["calibration", "test"] == 1
    assert table.sum() == 3


@pytest.mark.parametrize(
    ("images", "labels", "message"),
    [
        (torch.zeros(2, 1, 1), torch.zeros(2).long(), r"float32 \[N, C, H, W\]"),
        (torch.zeros(0, 1, 1, 1), torch.zeros(0).long(), "N >= 1"),
        (torch.zeros(2, 1, 1, 1).double(), torch.zeros(2).long(), "torch.float64"),
        (torch.zeros(2, 1, 1, 1), torch.zeros(3).long(), r"int64 \[2\]"),
        (torch.zeros(2, 1, 1, 1), torch.zeros(2), "torch.float32"),
        (torch.full((2, 1, 1, 1), 255.0), torch.zeros(2).long(), r"\[0, 1\], got \[255"),
        (torch.full((2, 1, 1, 1), torch.nan), torch.zeros(2).long(), "got .nan"),
    ],
)
def test_what_is_no_batch_of_images_is_refused(images, labels, message):
    with pytest.raises(ValueError, match=message):
        Split(images, labels)
