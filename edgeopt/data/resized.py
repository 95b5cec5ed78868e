"""Data sets that come as arrays, scaled to another size once and kept beside decoded pictures."""

from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from edgeopt.data.decoded import PixelFile, decode_all, decoding, keep_decoded, open_decoded
from edgeopt.data.images import stored_form
from edgeopt.data.population import Population
from edgeopt.data.preprocessing import Preprocessing
from edgeopt.data.splits import Split

DRAWN_ROLES = ("train", "validation", "test")


def resize_population(
    population: Population, preprocessing: Preprocessing, *, data_dir: str | Path
) -> Population:
    """Scale grey images in memory to ``image_size``, where they are not of that size.

    They are kept below ``data_dir`` by the data set's checksum and the geometry.
    """
    size = preprocessing.image_size
    if size is None or population.train.shape[1:] == (size, size):
        return population
    splits = {role: getattr(population, role) for role in DRAWN_ROLES}
    arrays = {id(split.pixels): split.pixels for split in splits.values()}
    pixels = _resized(
        [*arrays.values()], population.checksum, preprocessing, Path(data_dir) / "decoded"
    )
    starts = dict(zip(arrays, np.cumsum([0, *map(len, arrays.values())]).tolist(), strict=False))
    moved = {
        role: replace(split, pixels=pixels, positions=_positions(split) + starts[id(split.pixels)])
        for role, split in splits.items()
    }
    return replace(population, **moved)


def _positions(split: Split) -> Tensor:
    return torch.arange(len(split)) if split.positions is None else split.positions


def _resized(
    arrays: list[Tensor], checksum: str, preprocessing: Preprocessing, folder: Path
) -> PixelFile:
    path = folder / f"{checksum[:16]}-{preprocessing.geometry}.npy"
    with decoding(folder) as temporary:
        if found := open_decoded(path):
            return found
        size = preprocessing.image_size
        digests, _ = decode_all(
            torch.cat(arrays)[:, 0].numpy(),
            partial(_resize, preprocessing=preprocessing),
            temporary=temporary,
            shape=(1, size, size),
            title=f"{size}x{size} images",
        )
        return keep_decoded(temporary, path, digests=digests)


def _resize(
    image: NDArray[np.uint8], *, preprocessing: Preprocessing
) -> tuple[NDArray[np.uint8], str]:
    return stored_form(Image.fromarray(image), preprocessing), ""
