"""Files: where the project is, digests, and writing them whole or not at all."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path

REPORTS_VARIABLE = "EDGEOPT_REPORTS"
READ_BYTES = 2**20


def project_root(start: Path | None = None) -> Path:
    """Nearest folder at or above ``start`` (default: the working folder) with pyproject.toml."""
    start = (start or Path.cwd()).resolve()
    for folder in (start, *start.parents):
        if (folder / "pyproject.toml").is_file():
            return folder
    raise FileNotFoundError(
        f"no pyproject.toml in {start} or above it; run inside the project, "
        f"or set {REPORTS_VARIABLE} to the folder that holds the runs"
    )


def file_sha256(path: Path) -> str:
    """SHA-256 of a file in hexadecimal."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(READ_BYTES):
            digest.update(block)
    return digest.hexdigest()


def folder_bytes(folder: Path) -> int:
    """Bytes under a folder in which another process creates and renames files."""
    total = 0
    for parent, _, names in os.walk(folder):
        for name in names:
            with suppress(FileNotFoundError):
                total += os.lstat(os.path.join(parent, name)).st_size
    return total


@cache
def package_sha256() -> str:
    """SHA-256 over the code of this package."""
    package = Path(__file__).parents[1]
    digests = [(path.name, file_sha256(path)) for path in sorted(package.rglob("*.py"))]
    return hashlib.sha256(repr(digests).encode()).hexdigest()


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Give a temporary path beside ``path`` that takes its place when the block ends well."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        temporary.replace(path)
    except PermissionError as error:
        raise PermissionError(f"cannot write {path}: no permission in {path.parent}") from error
    finally:
        temporary.unlink(missing_ok=True)


def write_atomically(path: Path, content: bytes) -> Path:
    """Write a file whole or not at all; its folder is made first."""
    with replacing(path) as temporary:
        temporary.write_bytes(content)
    return path
