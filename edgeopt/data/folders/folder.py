"""The user's own images, decoded once and split unless their folder has roles of its own."""

import hashlib
import os
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import Executor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from functools import partial
from itertools import chain
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from edgeopt.data.decoded import (
    PixelFile,
    decode_all,
    decoding,
    keep_decoded,
    open_decoded,
    pixel_path,
)
from edgeopt.data.folders.listing import Picture, known_contents, list_pictures, write_index
from edgeopt.data.folders.roles import (
    FOLDER_PREFIX,
    ROLE_FOLDERS,
    image_root,
    list_roles,
    role_folders,
)
from edgeopt.data.images import read_picture
from edgeopt.data.preprocessing import Preprocessing
from edgeopt.data.sets.fetch import combined_checksum
from edgeopt.data.splits import (
    OWN_ROLES,
    ROLE_NAMES,
    SPLIT_BY_SEED,
    SPLIT_SEED,
    Population,
    Split,
    without_duplicates,
)
from edgeopt.system import process_pool

VALIDATION_SHARE = 0.2
TEST_SHARE = 0.2
PARALLEL_BYTES = 16 << 20  # of files: less is decoded before a worker process has started


def load_folder(path: str, *, preprocessing: Preprocessing, data_dir: str | Path) -> Population:
    """Return the images of ``<path>/<class>/**``, split 60/20/20 within each class.

    A folder with ``train/``, ``val/`` (or ``valid/``, ``validation/``) and ``test/``, each with
    the classes below it, keeps these roles. Copies of an image are dropped before a split, and
    from the training images of given roles. The decoded images are kept below ``data_dir``.

    Raises
    ------
    ValueError
        No such folder, no images, one class, too few different images of a class, a class that a
        role lacks, images of several sizes without ``image_size``, or an unreadable image; each is
        named.
    """
    root = image_root(path)
    class_names, by_role = list_roles(root)
    pictures = [*chain.from_iterable(by_role.values())]
    checksum, pixels = _decoded(pictures, root, preprocessing=preprocessing, data_dir=data_dir)
    labels = [class_names.index(picture.class_name) for picture in pictures]
    everything = Split(pixels, torch.tensor(labels))
    if own_roles := "" not in by_role:
        given = np.repeat([*by_role], [len(listed) for listed in by_role.values()])
        roles = _given_roles(everything, given, class_names=class_names, root=root)
    else:
        roles = _split_by_seed(everything, class_names=class_names, root=root)
    return Population(
        class_names=tuple(class_names),
        checksum=checksum,
        duplicates_dropped=len(everything) - sum(map(len, roles.values())),
        origin=OWN_ROLES if own_roles else SPLIT_BY_SEED,
        **roles,
    )


def folder_counts(path: str) -> dict[str, int]:
    """Count the pictures of a folder by role, at most: copies are dropped when they are read.

    Raises ``ValueError`` as :func:`load_folder` does before it reads a picture.
    """
    _, by_role = list_roles(image_root(path))
    if "" not in by_role:
        return {role: len(listed) for role, listed in by_role.items()}
    of_class = Counter(picture.class_name for picture in by_role[""]).values()
    test, validation = (
        sum(max(1, round(share * count)) for count in of_class)
        for share in (TEST_SHARE, VALIDATION_SHARE)
    )
    train = sum(of_class) - validation - test
    return {"train": train, "validation": validation, "test": test}


def picture_shape(path: str, preprocessing: Preprocessing) -> tuple[int, int, int]:
    """Channels, height and width of a folder's first picture, which all others share."""
    root = image_root(path)
    pictures, _ = list_pictures(next(iter(role_folders(root).values()), root), root=root)
    return read_picture(pictures[0].path, preprocessing)[0].shape


def _decoded(
    pictures: Sequence[Picture],
    root: Path,
    *,
    preprocessing: Preprocessing,
    data_dir: str | Path,
) -> tuple[str, PixelFile]:
    """Return the checksum over names and bytes of all pictures, and their decoded images."""
    folder = Path(data_dir) / "decoded"
    where = hashlib.sha256(str(root.resolve()).encode(errors="surrogateescape")).hexdigest()
    index = folder / f"index-{where[:16]}.txt"
    kept = partial(_kept, index, pictures, preprocessing=preprocessing)
    if found := kept():
        return found
    with _workers(pictures) as executor, decoding(folder) as temporary:
        if found := kept():  # another process was faster
            return found
        first = pictures[0].path
        shape = read_picture(first, preprocessing)[0].shape
        digests, read = decode_all(
            [picture.path for picture in pictures],
            partial(_read_alike, preprocessing=preprocessing, first=first, shape=shape),
            temporary=temporary,
            shape=shape,
            executor=executor,
            title=root.name,
        )
        by_name = {p.name: content for p, content in zip(pictures, read, strict=True)}
        checksum = combined_checksum(by_name)
        path = pixel_path(folder, checksum, preprocessing)
        pixels = keep_decoded(temporary, path, digests=digests)
        write_index(index, pictures, by_name)
    return checksum, pixels


def _kept(
    index: Path, pictures: Sequence[Picture], *, preprocessing: Preprocessing
) -> tuple[str, PixelFile] | None:
    """Find what an earlier load of the same pictures left, if anything."""
    if not (known := known_contents(index, pictures)):
        return None
    checksum = combined_checksum(known)
    found = open_decoded(pixel_path(index.parent, checksum, preprocessing))
    return (checksum, found) if found else None


@contextmanager
def _workers(pictures: Sequence[Picture]) -> Iterator[Executor | None]:
    """Start processes where there is much to decode.

    They import the calling script. One without a guard ends here, before it would wait for a lock
    that its parent holds.
    """
    if sum(picture.stamp[0] for picture in pictures) <= PARALLEL_BYTES:
        yield None
        return
    with process_pool() as pool:
        try:
            pool.submit(os.getpid).result()
        except BrokenProcessPool as error:
            raise RuntimeError(
                "the processes that decode images cannot start; a script that loads images needs "
                "`if __name__ == '__main__':` around its work, because they import it"
            ) from error
        yield pool


def _read_alike(
    path: Path, *, preprocessing: Preprocessing, first: Path, shape: tuple[int, int, int]
) -> tuple[NDArray[np.uint8], str]:
    """Read a picture that must be as large as the first one."""
    image, content = read_picture(path, preprocessing)
    if image.shape != shape:
        wanted, found = (f"{width}x{height}" for _, height, width in (shape, image.shape))
        raise ValueError(
            f"images differ in size: {first} is {wanted}, {path} is {found}; "
            "give image_size to scale them all"
        )
    return image, content


def _given_roles(
    everything: Split, given: np.ndarray, *, class_names: Sequence[str], root: Path
) -> dict[str, Split]:
    """Keep the folder's roles; an image of two roles stays in the one that judges last."""
    roles = {role: everything.select(np.flatnonzero(given == role)) for role in ROLE_FOLDERS}
    roles["validation"] = without_duplicates(roles["validation"], held_out=[roles["test"]])
    held_out = [roles["validation"], roles["test"]]
    roles["train"] = without_duplicates(roles["train"], held_out=held_out)
    for role, split in roles.items():
        least, which = 2 if role == "train" else 1, f"{role} images that no other role has"
        _require_images(split, least, which, class_names=class_names, root=root)
    return roles


def _split_by_seed(
    everything: Split, *, class_names: Sequence[str], root: Path
) -> dict[str, Split]:
    unique = without_duplicates(everything)
    which = "one for each of train, calibration, validation and test"
    _require_images(unique, len(ROLE_NAMES), which, class_names=class_names, root=root)
    test, rest = _split_share(unique, TEST_SHARE, of=unique)
    validation, train = _split_share(rest, VALIDATION_SHARE, of=unique)
    return {"train": train, "validation": validation, "test": test}


def _require_images(
    source: Split, least: int, which: str, *, class_names: Sequence[str], root: Path
) -> None:
    counts = torch.bincount(source.labels, minlength=len(class_names)).tolist()
    scarce = [
        f"{name!r} ({count})"
        for name, count in zip(class_names, counts, strict=True)
        if count < least
    ]
    if scarce:
        raise ValueError(
            f"{FOLDER_PREFIX}{root}: each class needs at least {least} different images, {which}; "
            f"too few in {', '.join(scarce)}"
        )


def _split_share(source: Split, share: float, *, of: Split) -> tuple[Split, Split]:
    """Split this share of each class of ``of``, at least one image, off ``source``."""
    taken, kept = [], []
    for label, count in enumerate(torch.bincount(of.labels).tolist()):
        of_class = np.flatnonzero(source.labels.numpy() == label)
        shuffled = np.random.default_rng(SPLIT_SEED).permutation(of_class)
        end = max(1, round(share * count))
        taken.append(shuffled[:end])
        kept.append(shuffled[end:])
    return source.select(np.concatenate(taken)), source.select(np.concatenate(kept))
