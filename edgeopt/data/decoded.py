"""Decoded images in one memory-mapped file per data set and geometry: written once, verified."""

import contextlib
import fcntl
import hashlib
import logging
import math
import os
import zipfile
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.lib import format as npy
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from tqdm import tqdm

from edgeopt.data.images import stored_form
from edgeopt.data.preprocessing import Preprocessing
from edgeopt.system import replacing, run_in_order, usable_cores

logger = logging.getLogger(__name__)

CHUNK = 32  # images that a worker decodes, or a thread verifies, at a time
SHOWN = 5  # errors in a message
_BROKEN = (OSError, ValueError, EOFError, zipfile.BadZipFile)

# item -> image [C, H, W], and the SHA-256 of its source
Decode = Callable[[Any], tuple[NDArray[np.uint8], str]]


@dataclass(frozen=True, eq=False)
class PixelFile:
    """uint8 images [N, C, H, W] in a .npy file; picklable, since it holds the path only.

    ``digests`` [N, 32] are the SHA-256 of each image's pixels.
    """

    path: Path
    shape: tuple[int, int, int, int]
    offset: int
    digests: NDArray[np.uint8]
    dtype: ClassVar[torch.dtype] = torch.uint8

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, index: Tensor) -> Tensor:
        """Return a copy of the images at these positions."""
        return torch.from_numpy(np.asarray(np.take(self.mapped(), index.numpy(), axis=0)))

    def mapped(self) -> np.memmap:
        """Map the file anew: pages stay resident for as long as their mapping lives."""
        return np.memmap(self.path, np.uint8, mode="r", offset=self.offset, shape=self.shape)


def pixel_path(folder: Path, checksum: str, preprocessing: Preprocessing) -> Path:
    """Where the images of a data set are kept as this preprocessing stores them."""
    return folder / f"{checksum[:16]}-{preprocessing.geometry}.npy"


def open_decoded(path: Path) -> PixelFile | None:
    """Open a file and verify every image; None where there is none, or (logged) it is broken."""
    if not path.exists():
        return None
    try:
        found = _with_header(path, digests=np.load(_digests_path(path)))
        _require_intact(found)
    except _BROKEN as error:
        logger.warning("%s is broken and will be made again: %s", path, error)
        return None
    return found


@contextlib.contextmanager
def decoding(folder: Path) -> Iterator[Path]:
    """Give a temporary path in ``folder`` to one process at a time; a killed one's is reused."""
    folder.mkdir(parents=True, exist_ok=True)
    temporary = folder / ".decoding.tmp"
    with (folder / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        try:
            yield temporary
        finally:
            temporary.unlink(missing_ok=True)


def decode_all(
    items: Sequence[Any],
    decode: Decode,
    *,
    temporary: Path,
    shape: tuple[int, int, int],
    executor: Executor | None = None,
    title: str = "images",
) -> tuple[NDArray[np.uint8], list[str]]:
    """Decode every item into the temporary file; digests of the images, SHA-256 of the sources.

    Raises
    ------
    ValueError
        Naming the first items that could not be decoded, and how many there are.
    OSError
        When the disk has no room for all images.
    """
    _allocate(temporary, shape=(len(items), *shape))
    task = partial(_decode_chunk, decode=decode, path=temporary)
    chunks = [(start, items[start : start + CHUNK]) for start in range(0, len(items), CHUNK)]
    decoded = []
    with tqdm(total=len(items), desc=f"decoding {title}", unit="image", disable=None) as bar:
        for done in _results(task, chunks, executor=executor):
            bar.update(len(done))
            decoded += done
    digests, contents, errors = zip(*decoded, strict=True)
    if errors := [error for error in errors if error]:
        more = f"; and {len(errors) - SHOWN} more" if len(errors) > SHOWN else ""
        raise ValueError("; ".join(errors[:SHOWN]) + more)
    return np.frombuffer(b"".join(digests), np.uint8).reshape(len(items), -1), [*contents]


def keep_decoded(temporary: Path, path: Path, *, digests: NDArray[np.uint8]) -> PixelFile:
    """Give a finished temporary file its name, and write the digests beside it."""
    with replacing(_digests_path(path)) as beside, beside.open("wb") as file:
        np.save(file, digests)
    temporary.replace(path)
    return _with_header(path, digests=digests)


def resize_once(images: Tensor, preprocessing: Preprocessing, *, path: Path) -> PixelFile:
    """Scale grey images [N, 1, H, W] to ``image_size`` and keep them, or open what was kept."""
    size = preprocessing.image_size
    with decoding(path.parent) as temporary:
        if found := open_decoded(path):
            return found
        digests, _ = decode_all(
            images[:, 0].numpy(),
            lambda image: (stored_form(Image.fromarray(image), preprocessing), ""),
            temporary=temporary,
            shape=(1, size, size),
            title=f"{size}x{size} images",
        )
        return keep_decoded(temporary, path, digests=digests)


def _digests_path(path: Path) -> Path:
    return path.with_name(f"{path.stem}.digests.npy")


def _with_header(path: Path, *, digests: NDArray[np.uint8]) -> PixelFile:
    """Check a file's header and size and take its shape from there."""
    with path.open("rb") as file:
        npy.read_magic(file)
        shape, fortran_order, dtype = npy.read_array_header_1_0(file)
        offset = file.tell()
    if dtype != np.uint8 or fortran_order or len(shape) != 4 or digests.shape != (shape[0], 32):
        raise ValueError(f"it holds {dtype} {shape} with digests {digests.shape}")
    wanted, size = offset + math.prod(shape), path.stat().st_size
    if size != wanted:
        raise ValueError(f"it has {size:,} bytes, expected {wanted:,}")
    return PixelFile(path, shape, offset, digests)


def _require_intact(found: PixelFile) -> None:
    starts = range(0, len(found), CHUNK)
    with ThreadPoolExecutor(usable_cores()) as threads:
        digests = np.concatenate([*threads.map(partial(_digests, found), starts)])
    wrong = (digests != found.digests).any(axis=1)
    if wrong.any():
        raise ValueError(f"image {int(wrong.argmax())} is not what was decoded")


def _digests(found: PixelFile, start: int) -> NDArray[np.uint8]:
    images = found.mapped()[start : start + CHUNK]
    content = b"".join(hashlib.sha256(image).digest() for image in images)
    return np.frombuffer(content, np.uint8).reshape(len(images), -1)


def _allocate(path: Path, *, shape: tuple[int, ...]) -> None:
    """Write the header and reserve the room, so that a full disk is found before decoding."""
    npy.open_memmap(path, "w+", np.uint8, shape=shape)
    try:
        with path.open("r+b") as file:
            os.posix_fallocate(file.fileno(), 0, path.stat().st_size)
    except OSError as error:
        wanted = f"{math.prod(shape):,} bytes of decoded images"
        raise OSError(error.errno, f"no room for {wanted} ({error.strerror})", path) from error


def _results(task: Callable, chunks: list, *, executor: Executor | None) -> Iterator[list]:
    try:
        yield from run_in_order(task, chunks, executor=executor)
    except BrokenProcessPool as error:
        raise RuntimeError(
            "a process that decodes images ended without a word: memory may have run out"
        ) from error


def _decode_chunk(
    chunk: tuple[int, Sequence[Any]], *, decode: Decode, path: Path
) -> list[tuple[bytes, str, str]]:
    """Decode items into their places; for each the digest, the source's SHA-256, or its error."""
    start, items = chunk
    images, done = np.load(path, mmap_mode="r+"), []
    for number, item in enumerate(items, start):
        try:
            images[number], content = decode(item)
        except ValueError as error:
            done.append((b"", "", str(error)))
        else:
            done.append((hashlib.sha256(images[number]).digest(), content, ""))
    return done
