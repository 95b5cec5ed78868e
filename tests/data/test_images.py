"""Pictures as they come: depth, orientation, modes, size, and files that are broken."""

import hashlib
import os
import struct

import numpy as np
import pytest
from PIL import Image

from edgeopt.data.images import read_picture, stored_form
from edgeopt.data.preprocessing import Preprocessing
from edgeopt.system.torchvision import transforms

PLAIN = Preprocessing()
GREY = Preprocessing(channels=1)
RNG = np.random.default_rng(0)
NOISE = RNG.integers(0, 256, (6, 8, 3), dtype=np.uint8)


def read(path, preprocessing=PLAIN) -> np.ndarray:
    return read_picture(path, preprocessing)[0]


def saved(path, picture: Image.Image, **options):
    picture.save(path, **options)
    return path


def test_read_picture_gives_the_pixels_and_the_digest_of_the_file(tmp_path):
    path = saved(tmp_path / "a.png", Image.fromarray(NOISE))
    pixels, content = read_picture(path, PLAIN)
    assert (pixels == NOISE.transpose(2, 0, 1)).all()
    assert content == hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.mark.parametrize("suffix", ["png", "pgm", "tif"])
def test_read_picture_scales_16_bit_grey_by_its_depth(tmp_path, suffix):
    deep = np.array([[0, 257, 32_896, 65_535]], dtype=np.uint16)
    path = saved(tmp_path / f"deep.{suffix}", Image.fromarray(deep))
    assert read(path, GREY).tolist() == [[[0, 1, 128, 255]]]
    assert read(path).shape == (3, 1, 4)


def test_read_picture_scales_12_bit_grey_by_its_depth(tmp_path):
    # Two pixels, 0xFFF and 0x800, in three bytes; tags: width, height, bits, grey, where, how many
    entries = [(256, 2), (257, 1), (258, 12), (259, 1), (262, 1), (273, 8), (278, 1), (279, 3)]
    tags = b"".join(struct.pack("<HHIHH", tag, 3, 1, value, 0) for tag, value in entries)
    head = b"II*\x00" + struct.pack("<I", 12) + b"\xff\xf8\x00\x00"
    path = tmp_path / "deep.tif"
    path.write_bytes(head + struct.pack("<H", len(entries)) + tags + bytes(4))
    # 0x800 of 0xFFF is 127.53 of 255
    assert read(path, GREY).tolist() == [[[255, 128]]]


def test_read_picture_refuses_floats_whose_range_nobody_knows(tmp_path):
    path = saved(tmp_path / "float.tif", Image.fromarray(np.ones((2, 2), dtype=np.float32)))
    with pytest.raises(ValueError, match=r"float\.tif: its pixels have no known range \(mode F\)"):
        read(path)


# Exif orientation -> the same turn in numpy of [H, W, C].
@pytest.mark.parametrize(
    ("orientation", "turned"),
    [
        (1, lambda a: a),
        (2, lambda a: a[:, ::-1]),
        (3, lambda a: a[::-1, ::-1]),
        (6, lambda a: np.rot90(a, -1)),
        (8, lambda a: np.rot90(a)),
    ],
)
def test_read_picture_turns_it_upright(tmp_path, orientation, turned):
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = saved(tmp_path / "turned.png", Image.fromarray(NOISE), exif=exif)
    assert (read(path).transpose(1, 2, 0) == turned(NOISE)).all()


def test_read_picture_knows_palettes_transparency_cmyk_and_two_levels(tmp_path):
    colours = np.repeat(np.array([[[250, 10, 20], [0, 200, 90]]], dtype=np.uint8), 2, axis=0)
    expected = colours.transpose(2, 0, 1)
    rgb = Image.fromarray(colours)
    palette = rgb.quantize(2)
    pictures = {
        "palette.png": palette,
        "rgba.png": Image.fromarray(np.dstack([colours, np.full((2, 2), 7, dtype=np.uint8)])),
        "cmyk.tif": rgb.convert("CMYK"),
    }
    for name, picture in pictures.items():
        assert (read(saved(tmp_path / name, picture)) == expected).all(), name
    see_through = saved(tmp_path / "t.png", palette, transparency=b"\x00\x80")
    assert (read(see_through) == expected).all()
    two_levels = Image.fromarray(np.array([[True, False]]))
    assert read(saved(tmp_path / "1.png", two_levels), GREY).tolist() == [[[255, 0]]]


def test_read_picture_refuses_too_many_pixels_before_decoding(tmp_path, monkeypatch):
    path = saved(tmp_path / "large.png", Image.fromarray(NOISE))
    monkeypatch.setattr(Image.Image, "load", lambda self: pytest.fail("decoded"))
    with pytest.raises(ValueError, match=r"large\.png: it is 8x6, 48 pixels; allowed: 47 \(max_"):
        read(path, Preprocessing(max_image_pixels=47))


def test_read_picture_has_a_limit_of_its_own_and_leaves_pillows_alone(tmp_path, monkeypatch):
    path = saved(tmp_path / "large.png", Image.fromarray(NOISE))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10)
    assert read(path, Preprocessing(max_image_pixels=48)).shape == (3, 6, 8)
    assert Image.MAX_IMAGE_PIXELS == 10


def test_read_picture_refuses_a_strip_that_would_grow_beyond_the_limit(tmp_path):
    path = saved(tmp_path / "strip.png", Image.new("RGB", (1, 500)))
    crop = Preprocessing(image_size=20, resize="crop", max_image_pixels=100_000)
    with pytest.raises(ValueError, match=r"strip\.png: scaled it would be 20x10000, 200,000 pix"):
        read(path, crop)


@pytest.mark.parametrize("content", [b"", b"not a picture", b"\x89PNG\r\n\x1a\n" + bytes(40)])
def test_read_picture_names_what_is_not_one(tmp_path, content):
    path = tmp_path / "bad.png"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"cannot read the image .*bad\.png: "):
        read(path)


@pytest.mark.parametrize("suffix", ["jpg", "png", "bmp", "webp", "tif", "ppm"])
def test_read_picture_names_a_truncated_one(tmp_path, suffix):
    path = saved(tmp_path / f"cut.{suffix}", Image.fromarray(NOISE.repeat(8, 0).repeat(8, 1)))
    os.truncate(path, path.stat().st_size // 2)
    with pytest.raises(ValueError, match=rf"cannot read the image .*cut\.{suffix}: "):
        read(path)


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic", "nearest"])
@pytest.mark.parametrize("resize", ["stretch", "crop"])
def test_stored_form_scales_as_torchvision_does(resize, interpolation):
    picture = Image.fromarray(RNG.integers(0, 256, (50, 37, 3), dtype=np.uint8))
    how = transforms.InterpolationMode(interpolation)
    steps = {
        "stretch": [transforms.Resize((16, 16), how)],
        "crop": [transforms.Resize(16, how), transforms.CenterCrop(16)],
    }
    expected = transforms.Compose([*steps[resize], transforms.PILToTensor()])(picture)
    wanted = Preprocessing(image_size=16, resize=resize, interpolation=interpolation)
    assert (stored_form(picture, wanted) == expected.numpy()).all()


def test_stored_form_in_grey_weighs_the_colours_by_luma():
    picture = Image.new("RGB", (1, 1), (100, 150, 200))
    # ITU-R 601-2: 0.299 R + 0.587 G + 0.114 B
    assert stored_form(picture, GREY).tolist() == [[[round(29.9 + 88.05 + 22.8)]]]
