"""The four roles of a data set, held in memory as float images in [0, 1]."""

import itertools
from dataclasses import dataclass

import pandas as pd
import torch
from torch import Tensor
from torch.nn import functional
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    RandomSampler,
    SequentialSampler,
    TensorDataset,
)

from edgeopt.pool import LabelledImages, image_contents

RESIZE_CHUNK = 2048
ROLE_NAMES = ("train", "calibration", "validation", "test")


@dataclass(frozen=True, eq=False)
class Split:
    """The images of one role: float32 [N, C, H, W] in [0, 1], with labels int64 [N]."""

    images: Tensor
    labels: Tensor

    def __post_init__(self) -> None:
        """Refuse what is no batch of images in [0, 1] with one label each."""
        if self.images.dtype != torch.float32 or self.images.ndim != 4 or not len(self.images):
            raise ValueError(
                "images must be float32 [N, C, H, W] with N >= 1, got "
                f"{self.images.dtype} {tuple(self.images.shape)}"
            )
        if self.labels.dtype != torch.int64 or self.labels.shape != self.images.shape[:1]:
            raise ValueError(
                f"labels must be int64 [{len(self.images)}], got {self.labels.dtype} "
                f"{tuple(self.labels.shape)}"
            )
        low, high = (bound.item() for bound in torch.aminmax(self.images))
        if not 0.0 <= low <= high <= 1.0:
            raise ValueError(f"images must lie in [0, 1], got [{low}, {high}]")

    def __len__(self) -> int:
        """Count the images."""
        return len(self.labels)

    def loader(
        self, batch_size: int, *, shuffle: bool = False, seed: int = 0, num_workers: int = 0
    ) -> DataLoader:
        """Return a loader that indexes whole batches; with ``shuffle``, ``seed`` is its order."""
        dataset = TensorDataset(self.images, self.labels)
        generator = torch.Generator().manual_seed(seed)
        sampler = (
            RandomSampler(dataset, generator=generator) if shuffle else SequentialSampler(dataset)
        )
        return DataLoader(
            dataset,
            sampler=BatchSampler(sampler, batch_size, drop_last=False),
            batch_size=None,
            num_workers=num_workers,
            generator=generator,
        )


@dataclass(frozen=True, eq=False)
class Splits:
    """A data set in its four roles, with the SHA-256 that its source is known by."""

    name: str
    class_names: tuple[str, ...]
    checksum: str
    train: Split
    calibration: Split
    validation: Split
    test: Split
    duplicates_dropped: int = 0


def as_split(source: LabelledImages, *, image_size: int | None, channels: int | None) -> Split:
    """Convert uint8 images to a role's floats, scaled and with grey repeated where asked."""
    chunks = source.images.split(RESIZE_CHUNK)
    images = torch.cat([_as_float(chunk, image_size=image_size) for chunk in chunks])
    if channels is not None and channels != images.shape[1]:
        images = images.repeat(1, channels, 1, 1)
    return Split(images, source.labels)


def _as_float(images: Tensor, *, image_size: int | None) -> Tensor:
    """Scale uint8 images to [0, 1] and, where asked, to a square of ``image_size`` pixels."""
    scaled = images.float().div_(255)
    if image_size is None or images.shape[-2:] == (image_size, image_size):
        return scaled
    size = (image_size, image_size)
    resized = functional.interpolate(scaled, size=size, mode="bilinear", antialias=True)
    return resized.clamp_(0.0, 1.0)


def shared_images(splits: Splits) -> pd.DataFrame:
    """Count the distinct images that two roles share: role_a, role_b, shared_images."""
    contents = {role: set(image_contents(getattr(splits, role).images)) for role in ROLE_NAMES}
    rows = [
        (a, b, len(contents[a] & contents[b])) for a, b in itertools.combinations(ROLE_NAMES, 2)
    ]
    return pd.DataFrame(rows, columns=["role_a", "role_b", "shared_images"])
