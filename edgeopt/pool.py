"""Labelled images as they lie on disk (uint8), and the seeded, stratified ways to part them."""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor


@dataclass(frozen=True, eq=False)
class LabelledImages:
    """Images uint8 [N, C, H, W] with labels int64 [N]."""

    images: Tensor
    labels: Tensor

    def __post_init__(self) -> None:
        """Refuse anything but N images of uint8 with N labels."""
        if self.images.dtype != torch.uint8 or self.images.ndim != 4:
            raise ValueError(
                f"images must be uint8 [N, C, H, W], got {self.images.dtype} "
                f"{tuple(self.images.shape)}"
            )
        if self.labels.dtype != torch.int64 or self.labels.shape != self.images.shape[:1]:
            raise ValueError(
                f"labels must be int64 [{len(self.images)}], got {self.labels.dtype} "
                f"{tuple(self.labels.shape)}"
            )

    def __len__(self) -> int:
        """Count the images."""
        return len(self.labels)

    def take(self, positions: np.ndarray) -> "LabelledImages":
        """Return the images at these positions, in this order."""
        index = torch.from_numpy(np.ascontiguousarray(positions, dtype=np.int64))
        return LabelledImages(self.images[index], self.labels[index])


@dataclass(frozen=True, eq=False)
class Pool:
    """A data set before the roles are dealt: what may be trained on, what only judges.

    ``duplicates_dropped`` counts images left out of ``train`` because another role, or ``train``
    itself, already holds the same pixels.
    """

    class_names: tuple[str, ...]
    checksum: str
    train: LabelledImages
    validation: LabelledImages
    test: LabelledImages
    duplicates_dropped: int = 0


def stratified_order(labels: Tensor, *, seed: int) -> np.ndarray:
    """Shuffle so that every prefix holds each class in proportion, up to rounding.

    The i-th of a class's n images sorts by (i + 1/2) / n.
    """
    shuffled = np.random.default_rng(seed).permutation(len(labels))
    labels_shuffled = labels.numpy()[shuffled]
    quantile = np.empty(len(labels))
    for label in np.unique(labels_shuffled):
        of_class = np.flatnonzero(labels_shuffled == label)
        quantile[of_class] = (np.arange(len(of_class)) + 0.5) / len(of_class)
    return shuffled[np.argsort(quantile, kind="stable")]


def carve(
    source: LabelledImages, count: int, *, seed: int
) -> tuple[LabelledImages, LabelledImages]:
    """Part into ``count`` stratified images and the rest."""
    order = stratified_order(source.labels, seed=seed)
    return source.take(order[:count]), source.take(order[count:])


def without_duplicates(
    source: LabelledImages, *, held_out: LabelledImages | None = None
) -> LabelledImages:
    """Keep the first image of each content, and none that ``held_out`` holds as well."""
    seen = set() if held_out is None else set(image_contents(held_out.images))
    kept = []
    for position, content in enumerate(image_contents(source.images)):
        if content not in seen:
            seen.add(content)
            kept.append(position)
    return source if len(kept) == len(source) else source.take(np.array(kept))


def image_contents(images: Tensor) -> list[bytes]:
    """Return each image's raw bytes, to compare by."""
    return [image.tobytes() for image in images.numpy()]
