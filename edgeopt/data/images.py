"""One picture file -> the bytes that are stored: upright, in 8 bits, in size and channels."""

import hashlib
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from edgeopt.data.preprocessing import Preprocessing

# Pillow's modes of more than 8 bits a channel, and the formats in which they are 16-bit grey.
_GREY_16 = ("I;16", "I;16L", "I;16B", "I;16N")
_GREY_16_FORMATS = ("PNG", "PPM")
_BITS_PER_SAMPLE = 258  # TIFF's tag


def read_picture(path: Path, preprocessing: Preprocessing) -> tuple[NDArray[np.uint8], str]:
    """Return a picture [C, H, W] in the stored form, and the SHA-256 of its file.

    Transparency is dropped, as torchvision's ImageFolder does. Without ``channels`` all pictures
    are in colour.

    Raises
    ------
    ValueError
        When the file is not a picture, is broken, or has more pixels than allowed; it is named.
    """
    try:
        with path.open("rb") as file:
            content = hashlib.file_digest(file, "sha256").hexdigest()
            file.seek(0)
            with _opened(file, limit=preprocessing.max_image_pixels) as picture:
                depth = _grey_depth(picture)
                upright = ImageOps.exif_transpose(picture)
                colour = _eight_bit(upright, depth=depth).convert("RGB")
        return stored_form(colour, preprocessing), content
    except Exception as error:  # Pillow's readers raise whatever they like on a broken file
        raise ValueError(f"cannot read the image {path}: {error}") from error


def stored_form(picture: Image.Image, preprocessing: Preprocessing) -> NDArray[np.uint8]:
    """Return a grey or colour picture [C, H, W], scaled and in grey where asked."""
    if preprocessing.channels == 1 and picture.mode != "L":
        picture = picture.convert("L")
    pixels = np.asarray(_scaled(picture, preprocessing))
    return np.atleast_3d(pixels).transpose(2, 0, 1)


def _opened(file: object, *, limit: int) -> Image.Image:
    """Read the header only, and refuse what is larger than the limit."""
    pillows, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None
    try:
        picture = Image.open(file)
    finally:
        Image.MAX_IMAGE_PIXELS = pillows
    _require_pixels(*picture.size, limit=limit, what="it is")
    return picture


def _require_pixels(width: int, height: int, *, limit: int, what: str) -> None:
    if width * height > limit:
        raise ValueError(
            f"{what} {width}x{height}, {width * height:,} pixels; allowed: {limit:,} "
            "(max_image_pixels)"
        )


def _grey_depth(picture: Image.Image) -> int:
    """Bits of a grey picture that has more than 8; 0 for all others."""
    if picture.format == "TIFF" and picture.mode in _GREY_16:
        [depth] = picture.tag_v2[_BITS_PER_SAMPLE]
        return depth
    deep = picture.mode in (*_GREY_16, "I") and picture.format in _GREY_16_FORMATS
    return 16 if deep else 0


def _eight_bit(picture: Image.Image, *, depth: int) -> Image.Image:
    """Scale grey of more than 8 bits by its depth: full scale becomes 255."""
    if depth:
        scaled = np.asarray(picture) * (255 / (2**depth - 1))
        return Image.fromarray(scaled.round().clip(0, 255).astype(np.uint8))
    if picture.mode in ("I", "F", *_GREY_16):
        raise ValueError(
            f"its pixels have no known range (mode {picture.mode}); allowed: 8 or 16 bits"
        )
    if picture.mode in ("P", "PA"):
        return picture.convert("RGBA")
    return picture


def _scaled(picture: Image.Image, preprocessing: Preprocessing) -> Image.Image:
    size = preprocessing.image_size
    if size is None or picture.size == (size, size):
        return picture
    from edgeopt.system.torchvision import transforms

    functional = transforms.functional
    how = transforms.InterpolationMode(preprocessing.interpolation)
    if preprocessing.resize == "stretch":
        return functional.resize(picture, [size, size], interpolation=how)
    width, height = picture.size
    grown = [side * size // min(width, height) for side in (width, height)]
    _require_pixels(*grown, limit=preprocessing.max_image_pixels, what="scaled it would be")
    return functional.center_crop(
        functional.resize(picture, [size], interpolation=how), [size, size]
    )
