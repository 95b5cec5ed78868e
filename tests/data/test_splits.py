"""A role's images: what is accepted, how they are converted, in which order they are served."""

import itertools
import pickle

import numpy as np
import pytest
import torch

from edgeopt.data.decoded import PixelFile, decode_all, keep_decoded
from edgeopt.data.splits import Split, Splits, in_batches, shared_images


def numbered_split(count: int, *, first: int = 0) -> Split:
    images = torch.arange(first, first + count, dtype=torch.uint8).reshape(-1, 1, 1, 1)
    return Split(images, torch.arange(count))


def grey(*values: int, size: int = 2, **options) -> Split:
    images = torch.stack([torch.full((1, size, size), value) for value in values])
    return Split(images.to(torch.uint8), torch.zeros(len(values), dtype=torch.int64), **options)


def labels_of(loader) -> list[list[int]]:
    return [labels.tolist() for _, labels in loader]


def numbers_of(images: torch.Tensor) -> list[int]:
    return (images.flatten() * 255).round().int().tolist()


@pytest.fixture
def in_file(tmp_path) -> Split:
    """Eight colour images of 2x3 pixels in a file, whose values are their number."""
    items = [np.full((3, 2, 3), number, dtype=np.uint8) for number in range(8)]
    digests, _ = decode_all(
        items, lambda item: (item, ""), temporary=tmp_path / "t", shape=(3, 2, 3)
    )
    pixels = keep_decoded(tmp_path / "t", tmp_path / "x.npy", digests=digests)
    return Split(pixels, torch.arange(8))


def test_loader_without_shuffle_follows_the_images():
    loader = numbered_split(7).loader(3)
    assert labels_of(loader) == [[0, 1, 2], [3, 4, 5], [6]]
    assert len(loader) == 3
    assert labels_of(numbered_split(7).loader(3, drop_last=True)) == [[0, 1, 2], [3, 4, 5]]


def test_loader_keeps_images_with_their_labels_when_shuffled():
    for images, labels in numbered_split(50).loader(8, shuffle=True, seed=5):
        assert numbers_of(images) == labels.tolist()


def test_loader_order_is_the_seed_and_epochs_differ():
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


def test_loader_refuses_a_batch_size_below_one():
    with pytest.raises(ValueError, match="batch_size"):
        numbered_split(3).loader(0)


@pytest.mark.parametrize("workers", [0, 2])
def test_loader_reads_a_file_in_any_order(in_file, workers):
    loader = in_file.loader(3, shuffle=True, seed=4, num_workers=workers)
    served = [(numbers_of(images[:, 0, 0, 0]), labels.tolist()) for images, labels in loader]
    assert all(numbers == labels for numbers, labels in served)
    in_memory = Split(in_file.pixels[torch.arange(8)], in_file.labels)
    assert [labels for _, labels in served] == labels_of(in_memory.loader(3, shuffle=True, seed=4))


def test_split_turns_bytes_into_floats_between_zero_and_one():
    assert grey(0, 51, 255).take(3)[:, 0, 0, 0].tolist() == pytest.approx([0.0, 0.2, 1.0])


def test_split_repeats_grey_and_normalizes_each_channel():
    split = grey(0, 255, channels=3, mean=(0.5, 0.0, 1.0), std=2.0)
    images = split.take(2)
    assert split.shape == (3, 2, 2)
    assert images[:, :, 1, 1].tolist() == [[-0.25, 0.0, -0.5], [0.25, 0.5, 0.0]]
    assert images.is_contiguous()


def test_split_of_floats_is_taken_as_it_is():
    images = torch.rand(3, 2, 4, 4, generator=torch.Generator().manual_seed(0)) * 5 - 2
    split = Split(images, torch.zeros(3).long())
    assert split.take(3).equal(images)
    assert torch.cat([*split.batches(2)]).equal(images)


def test_select_and_first_keep_the_pixels_where_they_are():
    split = numbered_split(10, first=100).select(np.array([7, 1, 5]))
    assert numbers_of(split.take(3)) == [107, 101, 105]
    again = split.select(np.array([2, 0]))
    assert (numbers_of(again.take(9)), again.labels.tolist()) == ([105, 107], [5, 7])
    assert numbers_of(split.first(2).take(2)) == [107, 101]
    assert len(split.first(99)) == 3
    assert again.pixels is split.pixels


def test_getitem_serves_one_image_or_a_batch(in_file):
    for split in (in_file, in_file.select(np.arange(8)[::-1])):
        image, label = split[2]
        assert image.shape == (3, 2, 3)
        assert numbers_of(image[0, 0, :1]) == [label.item()]
        images, labels = split[[5, 0]]
        assert numbers_of(images[:, 0, 0, 0]) == labels.tolist()


def test_batches_and_take_of_a_file_are_those_of_memory(in_file):
    split = in_file.select(np.array([6, 2, 3]))
    assert [numbers_of(batch[:, 0, 0, 0]) for batch in split.batches(2)] == [[6, 2], [3]]
    assert numbers_of(split.take(2)[:, 0, 0, 0]) == [6, 2]


def test_in_batches_takes_tensors_and_splits():
    split = numbered_split(5)
    for source in (split, split.take(5)):
        assert [numbers_of(batch) for batch in in_batches(source, 2)] == [[0, 1], [2, 3], [4]]


def test_split_in_a_file_is_sent_without_its_pixels(in_file, tmp_path):
    large = PixelFile(in_file.pixels.path, (8, 3, 2, 3), 128, in_file.pixels.digests)
    sent = pickle.dumps(Split(large, in_file.labels, mean=0.5))
    assert len(sent) < 4000
    again = pickle.loads(sent)
    assert again.take(8).equal(torch.sub(in_file.take(8), 0.5))
    assert np.memmap not in {type(value) for value in vars(again.pixels).values()}


def test_digest_is_of_what_the_network_sees(in_file):
    in_memory = Split(in_file.pixels[torch.arange(8)], in_file.labels)
    assert in_memory.digest == in_file.digest
    others = [
        in_memory.first(7),
        in_memory.select(np.arange(8)[::-1]),
        Split(in_memory.pixels, in_memory.labels, mean=0.5),
        Split(in_memory.pixels, in_memory.labels.flip(0)),
        Split(in_memory.pixels.flip(0), in_memory.labels),
    ]
    assert len({split.digest for split in [in_memory, *others]}) == 6


def test_contents_are_equal_where_the_pixels_are(in_file):
    in_memory = Split(in_file.pixels[torch.arange(8)], in_file.labels)
    assert in_memory.contents() == in_file.contents()
    assert in_file.select(np.array([3, 1])).contents() == [in_file.contents()[i] for i in (3, 1)]
    assert len(set(in_file.contents())) == 8


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
        (torch.zeros(2, 1, 1), torch.zeros(2).long(), r"uint8 or float32 \[N, C, H, W\]"),
        (torch.zeros(0, 1, 1, 1), torch.zeros(0).long(), "N >= 1"),
        (torch.zeros(2, 1, 1, 1).double(), torch.zeros(2).long(), "torch.float64"),
        (torch.zeros(2, 1, 1, 1), torch.zeros(3).long(), r"int64 \[2\]"),
        (torch.zeros(2, 1, 1, 1), torch.zeros(2), "torch.float32"),
        (torch.full((2, 1, 1, 1), torch.inf), torch.zeros(2).long(), r"finite numbers, got \[inf"),
        (torch.full((2, 1, 1, 1), torch.nan), torch.zeros(2).long(), "got .nan"),
    ],
)
def test_split_refuses_what_is_not_a_batch_of_images(images, labels, message):
    with pytest.raises(ValueError, match=message):
        Split(images, labels)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"channels": 1}, "images of 3 channels cannot have 1; allowed: 3"),
        ({"mean": (0.1, 0.2)}, r"mean has 2 numbers \(0.1, 0.2\) for 3 channel"),
        ({"std": (1.0,) * 4}, r"std has 4 numbers"),
    ],
)
def test_split_refuses_a_conversion_that_its_channels_do_not_have(options, message):
    with pytest.raises(ValueError, match=message):
        Split(torch.zeros(2, 3, 1, 1), torch.zeros(2).long(), **options)
