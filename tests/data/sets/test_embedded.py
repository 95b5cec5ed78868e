"""The shipped images: their counts, their origin, and the way they were chosen."""

import hashlib
from dataclasses import replace

import numpy as np
import pytest
import torch

from edgeopt.data.sets import embedded
from edgeopt.data.sets.embedded import (
    EMBEDDED_FILE,
    EMBEDDED_SHA256,
    IMAGES_PER_CLASS,
    build_embedded,
    differences_from_shipped,
    load_embedded,
    packed,
)
from edgeopt.data.sets.fetch import CorruptFileError
from edgeopt.data.sets.sources import FULL_SETS, IDX_FILES
from edgeopt.reports.commands import main


@pytest.fixture(scope="module")
def shipped() -> dict[str, np.ndarray]:
    with np.load(EMBEDDED_FILE) as arrays:
        return dict(arrays)


def idx_bytes(array: np.ndarray) -> bytes:
    """An idx file: magic number 0x00, 0x00, 0x08 (uint8), rank, then big-endian sizes."""
    sizes = b"".join(size.to_bytes(4, "big") for size in array.shape)
    return bytes([0, 0, 8, array.ndim]) + sizes + array.tobytes()


@pytest.fixture
def tiny_full_set(tmp_path, monkeypatch):
    """A Fashion-MNIST of 2 classes with 5 training and 3 test images each, already on disk."""
    rng = np.random.default_rng(0)
    arrays = [
        rng.integers(0, 256, (10, 28, 28), dtype=np.uint8),
        np.array([0, 1] * 5, dtype=np.uint8),
        rng.integers(0, 256, (6, 28, 28), dtype=np.uint8),
        np.array([1, 0] * 3, dtype=np.uint8),
    ]
    contents = dict(zip(IDX_FILES, map(idx_bytes, arrays), strict=True))
    digests = {name: hashlib.sha256(content).hexdigest() for name, content in contents.items()}
    tiny = replace(FULL_SETS["fashion-mnist"], sha256=digests)
    monkeypatch.setitem(FULL_SETS, "fashion-mnist", tiny)
    tiny.raw_folder(tmp_path).mkdir(parents=True)
    for name, content in contents.items():
        (tiny.raw_folder(tmp_path) / name).write_bytes(content)
    monkeypatch.setattr(embedded, "IMAGES_PER_CLASS", {"train": 2, "validation": 1, "test": 2})
    return tmp_path, arrays


def test_every_class_has_its_share():
    population = load_embedded()
    assert IMAGES_PER_CLASS == {"train": 1200, "validation": 300, "test": 500}
    for role, per_class in IMAGES_PER_CLASS.items():
        images = getattr(population, role)
        assert images.pixels.shape == (10 * per_class, 1, 28, 28)
        assert images.labels.bincount().tolist() == [per_class] * 10
    assert population.class_names[0] == "T-shirt/top"
    assert population.checksum == hashlib.sha256(EMBEDDED_FILE.read_bytes()).hexdigest()


def test_training_and_validation_are_other_positions_of_the_training_split(shipped):
    assert not set(shipped["train_positions"]) & set(shipped["validation_positions"])
    assert shipped["train_positions"].max() < 60_000
    assert shipped["test_positions"].max() < 10_000


def test_no_two_of_all_images_are_equal(shipped):
    images = np.concatenate([shipped[f"{role}_images"] for role in IMAGES_PER_CLASS])
    assert len({image.tobytes() for image in images}) == 20_000


def test_licence_and_origin_ship_beside_the_images():
    notice = EMBEDDED_FILE.with_name("LICENSE-fashion-mnist.txt").read_text()
    assert "MIT License" in notice
    assert "2017 Zalando SE" in notice
    assert "python -m edgeopt rebuild-embedded" in notice


def test_shipped_arrays_equal_themselves_and_a_changed_pixel_is_named(shipped):
    found = differences_from_shipped(shipped, EMBEDDED_FILE)
    assert not [text for text in found if text.startswith("array")]
    changed = shipped["test_images"].copy()
    changed[0, 0, 0] ^= 1
    altered = shipped | {"test_images": changed}
    assert differences_from_shipped(altered, EMBEDDED_FILE) == ["array test_images"]
    fewer = {name: array for name, array in shipped.items() if name != "test_labels"}
    assert differences_from_shipped(fewer, EMBEDDED_FILE) == ["array test_labels"]


def test_file_bytes_are_compared_too(tmp_path):
    arrays = {"a": np.arange(100)}
    path = tmp_path / "x.npz"
    path.write_bytes(packed(arrays))
    assert differences_from_shipped(arrays, path) == []
    np.savez(path, **arrays)
    assert differences_from_shipped(arrays, path)[0].startswith("the file's bytes")


def test_truncated_file_is_named(tmp_path):
    path = tmp_path / "cut.npz"
    path.write_bytes(EMBEDDED_FILE.read_bytes()[:1000])
    with pytest.raises(CorruptFileError, match=rf"cut\.npz .*1000 bytes.*{EMBEDDED_SHA256}"):
        load_embedded(path)
    with pytest.raises(CorruptFileError, match=r"cut\.npz cannot be read"):
        differences_from_shipped({}, path)


def test_missing_file_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"gone\.npz is missing; reinstall"):
        load_embedded(tmp_path / "gone.npz")


def test_choice_is_the_rank_of_the_pixels_sha256(tiny_full_set):
    data_dir, (train_images, train_labels, test_images, test_labels) = tiny_full_set
    arrays = build_embedded(data_dir)

    def ranked(images, labels, label):
        of_class = [number for number in range(len(labels)) if labels[number] == label]
        return sorted(of_class, key=lambda number: hashlib.sha256(images[number]).hexdigest())

    train = [ranked(train_images, train_labels, label) for label in (0, 1)]
    test = [ranked(test_images, test_labels, label) for label in (0, 1)]
    assert arrays["train_positions"].tolist() == sorted(train[0][:2] + train[1][:2])
    assert arrays["validation_positions"].tolist() == sorted(train[0][2:3] + train[1][2:3])
    assert arrays["test_positions"].tolist() == sorted(test[0][:2] + test[1][:2])
    assert (arrays["test_images"] == test_images[arrays["test_positions"]]).all()
    assert (arrays["train_labels"] == train_labels[arrays["train_positions"]]).all()


def test_rebuild_command_reports_equality_by_exit_status(tiny_full_set, monkeypatch, caplog):
    caplog.set_level("INFO")
    data_dir, _ = tiny_full_set
    rebuilt = data_dir / "rebuilt.npz"
    arguments = ["rebuild-embedded", "--data-dir", str(data_dir), "--output", str(rebuilt)]
    assert main(arguments) == 1
    assert "array train_images" in caplog.text
    assert rebuilt.read_bytes() == packed(build_embedded(data_dir))
    assert sorted(path.name for path in data_dir.iterdir()) == ["FashionMNIST", "rebuilt.npz"]
    monkeypatch.setattr(embedded, "EMBEDDED_FILE", rebuilt)
    assert main(arguments[:3]) == 0
    assert "is equal byte for byte" in caplog.text


def test_rebuild_command_names_a_broken_source(tiny_full_set, caplog):
    data_dir, _ = tiny_full_set
    broken = FULL_SETS["fashion-mnist"].raw_folder(data_dir) / IDX_FILES[0]
    broken.write_bytes(broken.read_bytes()[:-1])
    assert main(["rebuild-embedded", "--data-dir", str(data_dir)]) == 2
    assert f"{IDX_FILES[0]} is truncated or corrupt" in caplog.text


def test_shipped_images_are_grey_bytes(shipped):
    assert {array.dtype for name, array in shipped.items() if name.endswith("images")} == {
        np.dtype(np.uint8)
    }
    assert torch.from_numpy(shipped["train_images"]).amax() == 255
