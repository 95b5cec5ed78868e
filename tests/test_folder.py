"""The user's own folder of images: how it is parted and what is refused."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from edgeopt.data import load_splits, shared_images


def write_image(path: Path, *, seed: int, size: tuple[int, int] = (8, 8)) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    width, height = size
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Ten cats and twenty dogs."""
    root = tmp_path / "pets"
    for number in range(10):
        write_image(root / "cat" / f"{number}.png", seed=number)
    for number in range(20):
        write_image(root / "dog" / f"{number}.png", seed=100 + number)
    return root


def load(folder: Path, **options):
    return load_splits(f"folder:{folder}", **{"calibration_subset": 3, **options})


def test_each_class_is_parted_sixty_twenty_twenty(folder):
    splits = load(folder)
    assert splits.class_names == ("cat", "dog")
    assert splits.test.labels.bincount().tolist() == [2, 4]
    assert splits.validation.labels.bincount().tolist() == [2, 4]
    assert splits.calibration.labels.bincount().tolist() == [1, 2]
    assert splits.train.labels.bincount().tolist() == [5, 10]
    assert splits.train.images.shape == (15, 3, 8, 8)
    assert shared_images(splits)["shared_images"].sum() == 0


def test_pixels_arrive_unchanged(folder):
    splits = load(folder)
    expected = {
        np.asarray(Image.open(path)).tobytes(): path.parent.name for path in folder.rglob("*.png")
    }
    for image, label in zip(splits.train.images, splits.train.labels, strict=True):
        pixels = (image * 255).round().byte().permute(1, 2, 0).numpy()
        assert expected[pixels.tobytes()] == splits.class_names[label]


def test_split_seed_decides_the_parting_and_seed_does_not(folder):
    one, same, other = load(folder), load(folder, seed=9), load(folder, split_seed=1)
    assert one.test.images.equal(same.test.images)
    assert not one.test.images.equal(other.test.images)
    assert not one.train.images.equal(same.train.images)


def test_size_and_channels(folder):
    write_image(folder / "cat" / "wide.png", seed=55, size=(12, 6))
    splits = load(folder, image_size=5, channels=1)
    assert splits.test.images.shape[1:] == (1, 5, 5)


def test_default_calibration_of_a_small_folder_can_be_left_to_the_program(folder):
    assert len(load(folder, calibration_subset=None).calibration) == 18 // 4


def test_copies_are_dropped_and_counted(folder, caplog):
    for number in range(2):
        write_image(folder / "cat" / f"copy{number}.png", seed=0)
    splits = load(folder)
    assert splits.duplicates_dropped == 2
    assert "2 duplicate images left out" in caplog.text
    assert splits.train.labels.bincount().tolist() == [5, 10]


def test_checksum_follows_names_and_bytes(folder):
    before = load(folder).checksum
    assert load(folder, seed=4, image_size=4).checksum == before
    (folder / "cat" / "0.png").rename(folder / "cat" / "zero.png")
    assert load(folder).checksum != before


def test_four_images_of_each_class_are_enough_and_three_are_not(tmp_path):
    for name in ("a", "b"):
        for number in range(4):
            write_image(tmp_path / name / f"{number}.png", seed=ord(name) * 10 + number)
    splits = load(tmp_path, calibration_subset=2)
    sizes = [len(getattr(splits, role)) for role in ("train", "calibration", "validation", "test")]
    assert sizes == [2, 2, 2, 2]
    (tmp_path / "b" / "3.png").unlink()
    with pytest.raises(ValueError, match=r"at least 4 different images.*too few in 'b' \(3\)"):
        load(tmp_path)


def test_missing_folder_is_named(tmp_path):
    with pytest.raises(ValueError, match="nowhere is no folder"):
        load(tmp_path / "nowhere")


def test_missing_path_is_named():
    with pytest.raises(ValueError, match="folder: lacks its path"):
        load_splits("folder:")


def test_empty_folder_is_named(tmp_path):
    with pytest.raises(ValueError, match=f"{tmp_path.name} has no images to offer"):
        load(tmp_path)


def test_class_without_images_is_named(folder):
    (folder / "emu").mkdir()
    with pytest.raises(ValueError, match=r"no images to offer.*emu"):
        load(folder)


def test_one_class_is_named(tmp_path):
    write_image(tmp_path / "only" / "0.png", seed=0)
    with pytest.raises(ValueError, match="has one class, 'only'; at least 2"):
        load(tmp_path)


@pytest.mark.parametrize("keep", [0, 20, 60])
def test_unreadable_image_is_named(folder, keep):
    path = folder / "dog" / "7.png"
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(ValueError, match=r"cannot read the image .*dog/7\.png"):
        load(folder)


def test_different_sizes_need_image_size(folder):
    write_image(folder / "dog" / "wide.png", seed=77, size=(9, 8))
    with pytest.raises(ValueError, match=r"differ in size: .* is 8x8, .*wide\.png is 9x8; give"):
        load(folder)
