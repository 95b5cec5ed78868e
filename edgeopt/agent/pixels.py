"""Stored pixels -> what a network takes."""

from __future__ import annotations

import numpy as np


def converted(
    pixels: np.ndarray,
    *,
    channels: int,
    mean: list[float] | None,
    std: list[float] | None,
) -> np.ndarray:
    """Pixels [B, C, H, W], uint8 or float32 -> float32 images as :class:`edgeopt.data.Split`'s."""
    images = np.array(pixels, dtype=np.float32)
    if pixels.dtype == np.uint8:
        images /= np.float32(255)
    if channels != images.shape[1]:
        images = np.repeat(images, channels, axis=1)
    if mean is not None:
        images -= np.array(mean, np.float32).reshape(-1, 1, 1)
    if std is not None:
        images /= np.array(std, np.float32).reshape(-1, 1, 1)
    return images
