"""One picture file -> the bytes that are stored: upright, in 8 bits, in size and channels.

It goes along with a shipped model: NumPy and Pillow alone, Python 3.9 or newer.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image, ImageOps

from edgeopt.system.files import file_sha256

if TYPE_CHECKING:
    from numpy.typing import NDArray

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
        content = file_sha256(path)
        limit = preprocessing.max_image_pixels
        with path.open("rb") as file, _opened(file, limit=limit) as picture:
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
    """Scale as torchvision's Resize and CenterCrop do."""
    size = preprocessing.image_size
    if size is None or picture.size == (size, size):
        return picture
    how = Image.Resampling[preprocessing.interpolation.upper()]
    if preprocessing.resize == "stretch":
        return picture.resize((size, size), how)
    shorter = min(picture.size)
    grown = [side * size // shorter for side in picture.size]
    _require_pixels(*grown, limit=preprocessing.max_image_pixels, what="scaled it would be")
    left, top = (round((side - size) / 2) for side in grown)
    return picture.resize(grown, how).crop((left, top, left + size, top + size))
