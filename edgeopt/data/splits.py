"""A data set in its roles, the images of each, and the seeded, stratified ways to split it."""

import hashlib
import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, fields, replace
from functools import cached_property
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor
from torch.utils.data import BatchSampler, DataLoader, Dataset, RandomSampler, SequentialSampler

from edgeopt.data.decoded import PixelFile
from edgeopt.data.preprocessing import PerChannel, per_channel

READ_AT_ONCE = 256  # images
SPLIT_SEED = 0  # draws validation and test, which thus stay the same over a run's seeds
ROLE_NAMES = ("train", "calibration", "validation", "test")
# How the roles of a data set came to be.
OWN_ROLES = "the folder's own roles"
SPLIT_BY_SEED = "split by seed"
OFFICIAL_TEST = "official test images, the rest split by seed"


@dataclass(frozen=True, eq=False)
class Split(Dataset):
    """The images of one role, with their classes; a map-style data set of whole batches.

    Indexing with positions gives float32 images [B, C, H, W] as the network expects them and int64
    labels [B]. Pixels in a file are never held in memory, and a copy in another process reads the
    same file.

    Parameters
    ----------
    pixels : Tensor or PixelFile
        uint8 [M, C, H, W], or float32 that is already scaled, to [0, 1] as a rule.
    labels : Tensor
        int64 [N].
    positions : Tensor, optional
        int64 [N], where in ``pixels`` the images stand; all of them, in their order, if omitted.
    channels : int, optional
        3 repeats a grey channel.
    mean, std : float or tuple of float, optional
        The images are ``(x - mean) / std``, x in [0, 1]; one number, or one a channel.

    Raises
    ------
    ValueError
        Images, labels and numbers do not agree with this or with each other.
    """

    pixels: Tensor | PixelFile
    labels: Tensor
    positions: Tensor | None = None
    channels: int | None = None
    mean: PerChannel = None
    std: PerChannel = None

    def __post_init__(self) -> None:
        _check_pixels(self.pixels)
        if self.positions is None:
            object.__setattr__(self, "positions", torch.arange(len(self.pixels)))
        count = len(self.positions)
        if self.labels.dtype != torch.int64 or self.labels.shape != (count,):
            raise ValueError(
                f"labels must be int64 [{count}], got {self.labels.dtype} "
                f"{tuple(self.labels.shape)}"
            )
        own = self.pixels.shape[1]
        if self.channels not in (None, own) and own != 1:
            raise ValueError(
                f"images of {own} channels cannot have {self.channels}; allowed: {own}"
            )
        for name in ("mean", "std"):
            per_channel(getattr(self, name), name=name, channels=self.shape[0])

    def __reduce__(self) -> tuple[Any, ...]:
        """Travel to another process by value.

        torch would move the tensors to shared memory, under the arrays that look at them.
        """
        held = [getattr(self, field.name) for field in fields(self)]
        return _split_of, tuple(v.numpy() if isinstance(v, Tensor) else v for v in held)

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int | slice | Sequence[int] | Tensor) -> tuple[Tensor, Tensor]:
        return self._converted(index), self.labels[index]

    @property
    def shape(self) -> tuple[int, int, int]:
        """Channels, height and width of an image."""
        channels, height, width = self.pixels.shape[1:]
        return self.channels or channels, height, width

    @cached_property
    def digest(self) -> str:
        """SHA-256 over the images as the network expects them, and their labels."""
        seen = hashlib.sha256(repr((self.shape, self.mean, self.std)).encode())
        for positions in self.positions.split(READ_AT_ONCE):
            seen.update(self.pixels[positions].contiguous().numpy())
        seen.update(self.labels.contiguous().numpy())
        return seen.hexdigest()

    def loader(
        self,
        batch_size: int,
        *,
        shuffle: bool = False,
        seed: int = 0,
        num_workers: int = 0,
        drop_last: bool = False,
    ) -> DataLoader:
        """Return a loader that indexes whole batches; with ``shuffle``, ``seed`` is its order."""
        generator = torch.Generator().manual_seed(seed)
        sampler = RandomSampler(self, generator=generator) if shuffle else SequentialSampler(self)
        return DataLoader(
            self,
            sampler=BatchSampler(sampler, batch_size, drop_last=drop_last),
            batch_size=None,
            num_workers=num_workers,
            generator=generator,
        )

    def batches(self, size: int) -> Iterator[Tensor]:
        """Yield the images in their order, ``size`` at a time, as the network expects them."""
        for index in torch.arange(len(self)).split(size):
            yield self._converted(index)

    def take(self, count: int) -> Tensor:
        """Return the first ``count`` images [count, C, H, W] as the network expects them."""
        return self._converted(slice(count))

    def first(self, count: int) -> "Split":
        """Return the first ``count`` images, or all where there are fewer, as a split."""
        return self.select(np.arange(min(count, len(self))))

    def select(self, positions: np.ndarray) -> "Split":
        """Return the images at these positions, in this order, as a split."""
        index = torch.from_numpy(np.ascontiguousarray(positions, dtype=np.int64))
        return replace(self, labels=self.labels[index], positions=self.positions[index])

    def contents(self) -> list[bytes]:
        """Return a digest of each image's pixels, to compare by; equal where the pixels are."""
        if isinstance(self.pixels, PixelFile):
            return [digest.tobytes() for digest in self.pixels.digests[self.positions.numpy()]]
        return [
            hashlib.sha256(image.tobytes()).digest()
            for positions in self.positions.split(READ_AT_ONCE)
            for image in self.pixels[positions].numpy()
        ]

    def _converted(self, index: int | slice | Sequence[int] | Tensor) -> Tensor:
        images = self.pixels[self.positions[index]]
        if images.dtype == torch.uint8:
            images = images.float().div_(255)
        channels = self.shape[0]
        if channels != images.shape[-3]:
            images = images.repeat(*(1,) * (images.ndim - 3), channels, 1, 1)
        for name, apply in (("mean", torch.sub), ("std", torch.div)):
            if values := per_channel(getattr(self, name), name=name, channels=channels):
                images = apply(images, torch.tensor(values).reshape(-1, 1, 1))
        return images


def in_batches(images: Tensor | Split, size: int) -> Iterator[Tensor]:
    """Yield images [N, C, H, W] in their order, ``size`` at a time."""
    return images.batches(size) if isinstance(images, Split) else iter(images.split(size))


def _split_of(*held: Any) -> Split:
    return Split(*(torch.from_numpy(v) if isinstance(v, np.ndarray) else v for v in held))


def _check_pixels(pixels: Tensor | PixelFile) -> None:
    """Refuse what is not at least one image, or is not finite."""
    known = pixels.dtype in (torch.uint8, torch.float32)
    if not known or len(pixels.shape) != 4 or not len(pixels):
        raise ValueError(
            "images must be uint8 or float32 [N, C, H, W] with N >= 1, got "
            f"{pixels.dtype} {tuple(pixels.shape)}"
        )
    if pixels.dtype == torch.float32:
        ends = torch.stack(pixels.aminmax())
        if not ends.isfinite().all():
            raise ValueError(f"images must be finite numbers, got {ends.tolist()}")


@dataclass(frozen=True, eq=False)
class Population:
    """A data set before the draws: what may be trained on, what only judges.

    ``checksum`` is the SHA-256 that its source is known by. ``duplicates_dropped`` counts images
    left out of ``train`` because another role, or ``train`` itself, already holds the same pixels.
    ``origin`` says how the roles came to be: :data:`OWN_ROLES`, :data:`SPLIT_BY_SEED` or
    :data:`OFFICIAL_TEST`.
    """

    class_names: tuple[str, ...]
    checksum: str
    train: Split
    validation: Split
    test: Split
    duplicates_dropped: int = 0
    origin: str = SPLIT_BY_SEED

    def change_roles(self, change: Callable[[Split], Split]) -> "Population":
        """Change the images of every role in the same way."""
        roles = ("train", "validation", "test")
        return replace(self, **{role: change(getattr(self, role)) for role in roles})

    def with_classes(self, class_names: Sequence[str]) -> "Population":
        """Put the classes into another order; which images have which role stays.

        Raises ``ValueError`` unless the names are those of the classes, each once.
        """
        if sorted(class_names) != sorted(self.class_names):
            known, given = set(self.class_names), set(class_names)
            raise ValueError(
                f"class_names is {list(class_names)}; unknown: {sorted(given - known) or 'none'}, "
                f"missing: {sorted(known - given) or 'none'}; allowed: each of "
                f"{sorted(known)} once"
            )
        rank = torch.tensor([list(class_names).index(name) for name in self.class_names])
        moved = self.change_roles(lambda split: replace(split, labels=rank[split.labels]))
        return replace(moved, class_names=tuple(class_names))


@dataclass(frozen=True, eq=False, kw_only=True)
class Splits(Population):
    """A data set in its four roles, after the draws."""

    name: str
    calibration: Split


def shared_images(splits: Splits) -> pd.DataFrame:
    """Count the distinct images that two roles share: role_a, role_b, shared_images."""
    contents = {role: set(getattr(splits, role).contents()) for role in ROLE_NAMES}
    rows = [
        (a, b, len(contents[a] & contents[b])) for a, b in itertools.combinations(ROLE_NAMES, 2)
    ]
    return pd.DataFrame(rows, columns=["role_a", "role_b", "shared_images"])


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


def split_off(source: Split, count: int, *, seed: int) -> tuple[Split, Split]:
    """Split into ``count`` stratified images and the rest."""
    order = stratified_order(source.labels, seed=seed)
    return source.select(order[:count]), source.select(order[count:])


def without_duplicates(source: Split, *, held_out: Iterable[Split] = ()) -> Split:
    """Keep the first image of each content, and none that a held-out split holds as well."""
    seen = {content for split in held_out for content in split.contents()}
    kept = []
    for position, content in enumerate(source.contents()):
        if content not in seen:
            seen.add(content)
            kept.append(position)
    return source if len(kept) == len(source) else source.select(np.array(kept, dtype=np.int64))
