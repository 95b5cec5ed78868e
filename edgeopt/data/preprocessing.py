"""How a picture becomes a network's input: its size, its channels, its mean and std."""

import math
import numbers
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import PIL

from edgeopt.schema import require_known

RESIZES = ("stretch", "crop")
INTERPOLATIONS = ("bilinear", "bicubic", "nearest")
# Of torchvision's classifiers: https://docs.pytorch.org/vision/stable/models.html
IMAGENET = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}
MAX_IMAGE_PIXELS = 89_478_485  # Pillow's own limit: a quarter of a GiB in colour

PerChannel = float | tuple[float, ...] | None


@dataclass(frozen=True)
class Preprocessing:
    """How a network takes its images.

    Size, interpolation and channels decide the stored bytes; ``mean`` and ``std`` only what is made
    of them, ``(x - mean) / std`` with x in [0, 1].

    Parameters
    ----------
    image_size : int, optional
        Side in pixels of the square; the data's own size when omitted.
    resize : {"stretch", "crop"}
        Stretch to the square, or scale the shorter side and cut the middle out. Antialiased,
        torchvision's on PIL images.
    interpolation : {"bilinear", "bicubic", "nearest"}
        Filter of the scaling.
    channels : {1, 3}, optional
        1 turns colour to grey; 3 repeats a grey channel; the data's own when omitted.
    mean, std : float or tuple of float or "imagenet", optional
        One number, or one a channel; ``imagenet`` is torchvision's.
    max_image_pixels : int
        A picture with more is refused before it is decoded.

    Raises
    ------
    ValueError
        A value is not allowed; the message names it and what is.
    """

    image_size: int | None = None
    resize: str = "stretch"
    interpolation: str = "bilinear"
    channels: int | None = None
    mean: PerChannel = None
    std: PerChannel = None
    max_image_pixels: int = MAX_IMAGE_PIXELS

    def __post_init__(self) -> None:
        """Check every value, and write numbers a channel as a tuple."""
        if self.image_size is not None:
            require_whole(self.image_size, name="image_size")
        require_whole(self.max_image_pixels, name="max_image_pixels")
        require_known(self.resize, allowed=RESIZES, what="resize")
        require_known(self.interpolation, allowed=INTERPOLATIONS, what="interpolation")
        if self.channels not in (None, 1, 3):
            raise ValueError(f"channels must be 1 or 3, got {self.channels!r}")
        for name in ("mean", "std"):
            found = _numbers(getattr(self, name), name=name)
            object.__setattr__(self, name, found)
            if self.channels:
                per_channel(found, name=name, channels=self.channels)

    @property
    def geometry(self) -> str:
        """What decides the stored bytes, in a form that file names can hold.

        Pillow's version is part of it: another one may decode and scale otherwise.
        """
        scaling = f"{self.image_size}-{self.resize}-{self.interpolation}"
        size = scaling if self.image_size else "own"
        return f"{size}-{self.channels or 'own'}ch-pillow{PIL.__version__}"


def per_channel(values: PerChannel, *, name: str, channels: int) -> tuple[float, ...] | None:
    """Return one number for each channel, or None for none.

    Raises ``ValueError`` when there are neither one nor ``channels`` numbers, or a std is 0.
    """
    if values is None:
        return None
    found = values if isinstance(values, tuple) else (values,)
    if len(found) == 1:
        found *= channels
    if len(found) != channels:
        raise ValueError(
            f"{name} has {len(found)} numbers ({', '.join(f'{v:g}' for v in found)}) for "
            f"{channels} channel(s); allowed: one number, or one a channel"
        )
    return found


def _numbers(values: Any, *, name: str) -> PerChannel:
    """Check a mean or std: finite numbers, and no std that is 0 or below."""
    if values is None:
        return None
    if isinstance(values, str):
        require_known(values, allowed=("imagenet",), what=name)
        return IMAGENET[name]
    many = isinstance(values, Sequence)
    found = tuple(values) if many else (values,)
    low = -math.inf if name == "mean" else 0
    real = all(isinstance(v, numbers.Real) and not isinstance(v, bool) for v in found)
    if not found or not real or not all(low < value < math.inf for value in found):
        allowed = "finite numbers" if name == "mean" else "finite numbers above 0"
        raise ValueError(f"{name} is {values!r}; allowed: {allowed}, 'imagenet', or None")
    return tuple(map(float, found)) if many else float(values)


def require_whole(value: Any, *, name: str, high: float = math.inf) -> None:
    """Raise ``ValueError`` for what is not a whole number from 1 to ``high``."""
    whole = isinstance(value, numbers.Integral) and not isinstance(value, bool)
    if not whole or not 1 <= value <= high:
        allowed = "at least 1" if high == math.inf else f"from 1 to {high}"
        raise ValueError(f"{name} must be a whole number {allowed}, got {value!r}")
