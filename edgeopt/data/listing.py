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
    return sorted(entry.name for entry in _entries(folder) if entry.is_class)


def list_pictures(folder: Path, *, root: Path) -> tuple[list[Picture], list[str]]:
    """List the pictures of ``<folder>/<class>/**`` in ImageFolder's order, and what is left out.

    Links are followed, and each real folder of a class is read once. Left out are files of other
    kinds, hidden files, and what is not a regular file.
    """
    start = len(os.path.join(root, ""))
    pictures, left_out = [], [e.path[start:] for e in _entries(folder) if not e.is_class]
    for class_name in class_folders(folder):
        for entry in sorted(_walk(folder / class_name), key=lambda entry: entry.order):
            name = entry.path[start:]
            if entry.is_picture:
                pictures.append(Picture(root, name, class_name, entry.stamp))
            else:
                left_out.append(name)
    return pictures, sorted(left_out)


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
    kept = {p.name: [*p.stamp, contents[p.name]] for p in pictures}
    body = json.dumps(kept)
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


@dataclass(frozen=True)
class _Entry:
    """What a folder holds under a name; no status where that is a link to nowhere or in a circle.

    Paths are text: of ``Path`` objects, tens of thousands take a second.
    """

    path: str
    name: str
    status: os.stat_result | None

    @property
    def is_folder(self) -> bool:
        return self.status is not None and stat.S_ISDIR(self.status.st_mode)

    @property
    def is_class(self) -> bool:
        return self.is_folder and not self.name.startswith(".")

    @property
    def is_picture(self) -> bool:
        """A regular file: opening a pipe would wait for ever."""
        known = self.name.lower().endswith(SUFFIXES) and not self.name.startswith(".")
        return known and self.status is not None and stat.S_ISREG(self.status.st_mode)

    @property
    def stamp(self) -> Stamp:
        return self.status.st_size, self.status.st_mtime_ns, self.status.st_ctime_ns

    @property
    def order(self) -> tuple[str, str]:
        return self.path[: -len(self.name) - 1], self.name


def _entries(folder: str | Path) -> list[_Entry]:
    with os.scandir(folder) as found:
        return [_Entry(entry.path, entry.name, _status(entry)) for entry in found]


def _status(entry: os.DirEntry) -> os.stat_result | None:
    try:
        return entry.stat()
    except OSError:
        return None


def _walk(folder: Path) -> Iterator[_Entry]:
    """Yield what is below a folder and is not a folder, each real folder once."""
    seen, waiting = set(), [str(folder)]
    while waiting:
        current = waiting.pop()
        status = os.stat(current)
        identity = (status.st_dev, status.st_ino)
        if identity in seen:
            continue
        seen.add(identity)
        entries = _entries(current)
        waiting += sorted((entry.path for entry in entries if entry.is_folder), reverse=True)
        yield from (entry for entry in entries if not entry.is_folder)
