"""The files of an image folder, and what is known of their contents from an earlier reading."""

import hashlib
import json
import logging
import os
import stat
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from edgeopt.system import file_sha256, write_atomically

logger = logging.getLogger(__name__)

# Those of torchvision.datasets.folder, which takes a second to import.
SUFFIXES = (".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp")

# Size and both times in ns: a write changes them, and no program can set the last one.
Stamp = tuple[int, int, int]


@dataclass(frozen=True)
class Picture:
    """A picture file: its name below the root, its class, and what tells that it changed."""

    root: Path
    name: str
    class_name: str
    stamp: Stamp

    @property
    def path(self) -> Path:
        """Where the file is."""
        return self.root / self.name


def class_folders(folder: Path) -> list[str]:
    """Names of the sub-folders, sorted; hidden ones are not classes."""
    names = sorted(os.listdir(folder))
    return [n for n in names if not n.startswith(".") and os.path.isdir(os.path.join(folder, n))]


def list_pictures(folder: Path, *, root: Path) -> tuple[list[Picture], list[str]]:
    """List the pictures of ``<folder>/<class>/**`` in ImageFolder's order, and what is left out.

    Links are followed, and each real folder of a class is read once. Left out are files of other
    kinds, hidden files, and what is not a regular file.
    """
    start = len(os.path.join(root, ""))
    classes = class_folders(folder)
    others = set(os.listdir(folder)).difference(classes)
    pictures, left_out = [], [os.path.join(folder, name)[start:] for name in others]
    for class_name in classes:
        for parent, name in sorted(_walk(folder / class_name)):
            path = os.path.join(parent, name)
            if stamp := _picture_stamp(path, name):
                pictures.append(Picture(root, path[start:], class_name, stamp))
            else:
                left_out.append(path[start:])
    return pictures, sorted(left_out)


def _walk(folder: Path) -> Iterator[tuple[str, str]]:
    """Yield parent and name of all that is below a folder and is not one, each real folder once.

    As text: of ``Path`` objects, tens of thousands take a second.
    """
    seen = set()
    for parent, folders, names in os.walk(folder, onerror=_raise, followlinks=True):
        status = os.stat(parent)
        identity = (status.st_dev, status.st_ino)
        if identity in seen:
            folders.clear()
            continue
        seen.add(identity)
        folders.sort()
        yield from ((parent, name) for name in names)


def _raise(error: OSError) -> None:
    raise error


def _picture_stamp(path: str, name: str) -> Stamp | None:
    """Stamp of a picture; None for anything else, such as a pipe, which must not be opened."""
    if name.startswith(".") or not name.lower().endswith(SUFFIXES):
        return None
    try:
        status = os.stat(path)
    except OSError:  # a link to nowhere or in a circle
        return None
    if not stat.S_ISREG(status.st_mode):
        return None
    return status.st_size, status.st_mtime_ns, status.st_ctime_ns


def known_contents(index: Path, pictures: Sequence[Picture]) -> dict[str, str]:
    """SHA-256 of every picture by name, from an index of an earlier reading.

    Pictures that are new or changed since are read, and kept. Empty where there is no index.
    """
    kept = _read_index(index)
    if not kept:
        return {}
    found, changed = {}, False
    for picture in pictures:
        stamp, content = kept.get(picture.name, (None, ""))
        if stamp != picture.stamp:
            content, changed = file_sha256(picture.path), True
        found[picture.name] = content
    if changed:
        write_index(index, pictures, found)
    return found


def write_index(index: Path, pictures: Sequence[Picture], contents: Mapping[str, str]) -> None:
    """Keep the SHA-256 of every picture with its stamp."""
    body = json.dumps({p.name: [*p.stamp, contents[p.name]] for p in pictures})
    digest = hashlib.sha256(body.encode()).hexdigest()
    write_atomically(index, f"{digest}\n{body}".encode())


def _read_index(index: Path) -> dict[str, tuple[Stamp, str]]:
    if not index.is_file():
        return {}
    digest, _, body = index.read_bytes().partition(b"\n")
    if digest != hashlib.sha256(body).hexdigest().encode():
        logger.warning("%s is broken; every image is read again", index)
        return {}
    return {name: (tuple(stamp), content) for name, (*stamp, content) in json.loads(body).items()}
