"""The user's own folder of images: how it is split and what is refused."""

import hashlib
import os
import shutil
import struct
import subprocess
import sys
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from edgeopt.data.folders.folder import picture_shape
from edgeopt.data.loading import AS_THEY_ARE, image_counts, load_splits
from edgeopt.data.preprocessing import Preprocessing
from edgeopt.data.splits import OWN_ROLES, ROLE_NAMES, SPLIT_BY_SEED, shared_images


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
    data_dir = folder.parent / "data"
    return load_splits(
        f"folder:{folder}", data_dir=data_dir, **{"calibration_images": 3, **options}
    )


def pixels_of(split) -> np.ndarray:
    """Bytes [N, H, W, C]."""
    images = split.take(len(split)) * 255
    return images.round().byte().permute(0, 2, 3, 1).numpy()


def same(one, other) -> bool:
    return np.array_equal(pixels_of(one), pixels_of(other))


def test_each_class_is_split_sixty_twenty_twenty(folder):
    splits = load(folder)
    assert splits.class_names == ("cat", "dog")
    assert splits.test.labels.bincount().tolist() == [2, 4]
    assert splits.validation.labels.bincount().tolist() == [2, 4]
    assert splits.calibration.labels.bincount().tolist() == [1, 2]
    assert splits.train.labels.bincount().tolist() == [5, 10]
    assert splits.train.shape == (3, 8, 8)
    assert shared_images(splits)["shared_images"].sum() == 0
    assert splits.origin == SPLIT_BY_SEED


def test_pixels_arrive_unchanged(folder):
    splits = load(folder)
    expected = {
        np.asarray(Image.open(path)).tobytes(): path.parent.name for path in folder.rglob("*.png")
    }
    for image, label in zip(pixels_of(splits.train), splits.train.labels, strict=True):
        assert expected[image.tobytes()] == splits.class_names[label]


def test_seed_draws_training_and_leaves_the_split_alone(folder):
    one, again = load(folder), load(folder, seed=9)
    assert same(one.test, again.test)
    assert same(one.validation, again.validation)
    assert not same(one.train, again.train)


def test_size_and_channels(folder):
    write_image(folder / "cat" / "wide.png", seed=55, size=(12, 6))
    splits = load(folder, preprocessing=Preprocessing(image_size=5, channels=1))
    assert splits.test.shape == (1, 5, 5)


def test_class_names_set_the_order_and_move_no_image(folder):
    plain, turned = load(folder), load(folder, class_names=["dog", "cat"])
    assert turned.class_names == ("dog", "cat")
    assert turned.test.labels.bincount().tolist() == [4, 2]
    assert same(plain.train, turned.train)
    with pytest.raises(ValueError, match=r"unknown: \['cow'\], missing: \['dog'\]"):
        load(folder, class_names=["cat", "cow"])


def test_calibration_takes_at_most_half_of_the_training_images(folder):
    assert len(load(folder, calibration_images=None).calibration) == 18 // 2
    with pytest.raises(ValueError, match="calibration_images must be a whole number from 1 to 9, "):
        load(folder, calibration_images=10)


def test_copies_are_dropped_and_counted(folder, caplog):
    for number in range(2):
        write_image(folder / "cat" / f"copy{number}.png", seed=0)
    splits = load(folder)
    assert splits.duplicates_dropped == 2
    assert "2 duplicate images left out" in caplog.text
    assert splits.train.labels.bincount().tolist() == [5, 10]


def test_checksum_follows_names_and_bytes(folder):
    before = load(folder).checksum
    listing = "".join(
        f"{hashlib.sha256(path.read_bytes()).hexdigest()}  {path.relative_to(folder)}\n"
        for path in sorted(folder.rglob("*.png"))
    )
    assert before == hashlib.sha256(listing.encode()).hexdigest()
    assert load(folder, seed=4, preprocessing=Preprocessing(image_size=4)).checksum == before
    (folder / "cat" / "0.png").rename(folder / "cat" / "zero.png")
    assert load(folder).checksum != before


def test_a_second_load_reads_no_picture_and_gives_the_same(folder, monkeypatch):
    first = load(folder)
    monkeypatch.setattr("edgeopt.data.folders.folder.read_picture", lambda *_: pytest.fail("read"))
    monkeypatch.setattr("edgeopt.data.folders.listing.file_sha256", lambda *_: pytest.fail("read"))
    second = load(folder)
    assert second.checksum == first.checksum
    for role in ("train", "calibration", "validation", "test"):
        assert same(getattr(first, role), getattr(second, role))
    assert second.train.pixels.path.is_file()


def test_a_changed_picture_of_the_same_size_and_time_is_noticed(folder):
    before = load(folder)
    path = folder / "cat" / "3.bmp"
    (folder / "cat" / "3.png").unlink()
    write_image(path, seed=300)
    changed = load(folder)
    status = path.stat()
    content = path.read_bytes()
    path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert path.stat().st_size == status.st_size
    assert len({before.checksum, changed.checksum, load(folder).checksum}) == 3


@pytest.mark.parametrize("target", ["pixels", "digests", "index"])
def test_a_broken_file_of_decoded_images_is_made_again(folder, caplog, target):
    first = load(folder)
    pixels = first.train.pixels.path
    [index] = pixels.parent.glob("index-*")
    path = {
        "pixels": pixels,
        "digests": pixels.with_name(f"{pixels.stem}.digests.npy"),
        "index": index,
    }[target]
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    again = load(folder)
    assert "is broken" in caplog.text
    assert same(first.train, again.train)
    caplog.clear()
    load(folder)
    assert "broken" not in caplog.text


def test_load_folder_decodes_in_worker_processes_what_is_large(folder, monkeypatch):
    alone = load(folder)
    monkeypatch.setattr("edgeopt.data.folders.folder.PARALLEL_BYTES", 0)
    for path in (folder.parent / "data/decoded").iterdir():
        path.unlink()
    assert same(load(folder).train, alone.train)


def test_load_folder_names_the_guard_that_a_script_lacks(folder, tmp_path):
    script = tmp_path / "script.py"
    lines = [
        "import edgeopt.data.folders.folder, edgeopt.data.loading",
        "edgeopt.data.folders.folder.PARALLEL_BYTES = 0",
        f"edgeopt.data.loading.load_splits('folder:{folder}', data_dir='{tmp_path / 'data'}')",
    ]
    script.write_text("\n".join(lines))
    root = Path(__file__).parents[2]
    environment = {**os.environ, "PYTHONPATH": str(root)}
    command = [sys.executable, str(script)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 1
    assert "needs `if __name__ == '__main__':` around its work" in done.stderr


def test_four_images_of_each_class_are_enough_and_three_are_not(tmp_path):
    root = tmp_path / "x"
    for name in ("a", "b"):
        for number in range(4):
            write_image(root / name / f"{number}.png", seed=ord(name) * 10 + number)
    splits = load(root, calibration_images=2)
    sizes = [len(getattr(splits, role)) for role in ("train", "calibration", "validation", "test")]
    assert sizes == [2, 2, 2, 2]
    (root / "b" / "3.png").unlink()
    with pytest.raises(ValueError, match=r"at least 4 different images.*too few in 'b' \(3\)"):
        load(root)


@pytest.fixture(params=["val", "valid", "validation"])
def given(tmp_path, request) -> Path:
    """Roles of its own: 6 training, 3 validation and 2 test images of each of two classes."""
    root = tmp_path / "given"
    for number, (role, count) in enumerate({"train": 6, request.param: 3, "test": 2}.items()):
        for label, name in enumerate(("cat", "dog")):
            for image in range(count):
                seed = 1000 * number + 100 * label + image
                write_image(root / role / name / f"{image}.png", seed=seed)
    return root


def test_a_folder_keeps_its_own_roles(given):
    splits = load(given)
    assert splits.origin == OWN_ROLES
    assert splits.class_names == ("cat", "dog")
    validation = next(p for p in given.iterdir() if p.name.startswith("val"))
    for split, where in ((splits.test, given / "test"), (splits.validation, validation)):
        on_disk = {np.asarray(Image.open(path)).tobytes() for path in where.rglob("*.png")}
        assert {image.tobytes() for image in pixels_of(split)} == on_disk
    assert len(splits.calibration) == 3
    assert splits.train.labels.bincount().sum() == 12 - 3


def test_the_images_of_given_roles_are_counted_without_reading_one(given):
    next(given.rglob("*.png")).write_bytes(b"no picture")
    counts = {"train": 6, "validation": 6, "test": 4, "calibration": 6}
    assert image_counts(f"folder:{given}") == counts
    fewer = counts | {"train": 10, "calibration": 2}
    assert image_counts(f"folder:{given}", calibration_images=2) == fewer
    with pytest.raises(ValueError, match=r"calibration_images must be .* from 1 to 6, got 7"):
        image_counts(f"folder:{given}", calibration_images=7)


def test_the_images_of_a_plain_folder_are_counted_as_they_will_be_split(tmp_path):
    root = tmp_path / "plain"
    for label, count in {"cat": 11, "dog": 4}.items():
        for number in range(count):
            write_image(root / label / f"{number}.png", seed=100 * count + number)
    splits = load(root, calibration_images=None)
    counts = {role: len(getattr(splits, role)) for role in ROLE_NAMES}
    assert image_counts(f"folder:{root}") == counts
    assert picture_shape(str(root), AS_THEY_ARE) == splits.train.pixels.shape[1:]


def test_images_of_two_given_roles_are_dropped_from_train(given, caplog):
    write_image(given / "train" / "cat" / "leak.png", seed=2000)
    splits = load(given)
    assert splits.duplicates_dropped == 1
    assert "1 duplicate images left out" in caplog.text
    assert shared_images(splits)["shared_images"].sum() == 0
    assert len(splits.test) == 4
    assert len(splits.train) + len(splits.calibration) == 12


def test_a_class_that_a_role_lacks_is_named(given):
    validation = next(p for p in given.iterdir() if p.name.startswith("val"))
    shutil.rmtree(validation / "dog")
    with pytest.raises(ValueError, match=r"no images to offer in its validation images of dog; "):
        load(given)


def test_a_role_that_the_folder_lacks_is_named(given):
    shutil.rmtree(given / "test")
    with pytest.raises(ValueError, match=r"has train, val\w*, and so not one folder for test"):
        load(given)


def test_two_folders_for_one_role_are_named(given):
    for name in ("val", "valid"):
        (given / name).mkdir(exist_ok=True)
    with pytest.raises(ValueError, match=r"not one folder for validation"):
        load(given)


def test_other_files_are_left_out_and_named(folder, caplog):
    (folder / "cat" / "moving.gif").write_bytes(b"GIF89a")
    (folder / "dog" / "moving.gif").write_bytes(b"GIF89a")
    (folder / "README.txt").write_text("pets")
    (folder / "cat" / "._0.png").write_bytes(b"resource fork")
    load(folder)
    assert "4 files are left out (2 .gif, 1 .png, 1 .txt)" in caplog.text
    assert "README.txt, cat/._0.png, cat/moving.gif, dog/moving.gif" in caplog.text


def test_a_huge_picture_is_named_before_it_is_decoded(folder):
    header = b"\x89PNG\r\n\x1a\n" + png_chunk(
        b"IHDR", struct.pack(">II5B", *(20_000,) * 2, 8, 2, 0, 0, 0)
    )
    (folder / "dog" / "huge.png").write_bytes(header + png_chunk(b"IDAT", b""))
    with pytest.raises(ValueError, match=r"dog/huge\.png: it is 20000x20000, 400,000,000 pixels"):
        load(folder)


def png_chunk(kind: bytes, body: bytes) -> bytes:
    checksum = zlib.crc32(kind + body)
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", checksum)


def test_missing_folder_is_named(tmp_path):
    with pytest.raises(ValueError, match="nowhere is not a directory"):
        load(tmp_path / "nowhere")


def test_missing_path_is_named():
    with pytest.raises(ValueError, match="folder: lacks its path"):
        load_splits("folder:")


def test_empty_folder_is_named(tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="empty has no images to offer"):
        load(tmp_path / "empty")


def test_class_without_images_is_named(folder):
    (folder / "emu").mkdir()
    with pytest.raises(ValueError, match=r"no images to offer.*emu"):
        load(folder)


def test_one_class_is_named(tmp_path):
    write_image(tmp_path / "x" / "only" / "0.png", seed=0)
    with pytest.raises(ValueError, match="has one class, 'only'; at least 2"):
        load(tmp_path / "x")


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
