"""What took long to compute: kept under a digest of all that decides it, with its own checksum."""

import hashlib
import io
import logging
import pickle
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

import torch

from edgeopt.schema import file_stem
from edgeopt.system.files import write_atomically

logger = logging.getLogger(__name__)

DIGITS = 64  # of a SHA-256 in hexadecimal


T = TypeVar("T")


def _checksum(body: bytes, digest: str) -> bytes:
    return hashlib.sha256(digest.encode() + body).hexdigest().encode()


def _from_bytes(content: bytes, digest: str) -> dict[str, Any]:
    """Read a file's content, and run no code; ``ValueError`` if it is not whole, or another's."""
    found, body = content[:DIGITS], content[DIGITS + 1 :]
    if found != _checksum(body, digest):
        raise ValueError(f"its {len(content):,} bytes do not have the checksum they begin with")
    try:
        return torch.load(io.BytesIO(body), weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, LookupError) as error:
        raise ValueError(f"it is not a file that edgeopt kept: {error}") from error


@dataclass(frozen=True)
class Store(Generic[T]):
    """A folder with one file per result, called by what it is and the digest of what made it.

    A result's ``to_dict`` gives tensors, numbers and words; ``kind.from_dict`` takes them back.
    """

    folder: Path
    kind: type[T]

    def path(self, name: str, *, digest: str) -> Path:
        """Where a result lies."""
        return self.folder / f"{file_stem(name)}-{digest[:16]}.{self.kind.__name__.lower()}"

    def read(self, name: str, *, digest: str) -> T | None:
        """Read a result; None where there is none, and where it is broken, which is logged."""
        path = self.path(name, digest=digest)
        if not path.is_file():
            return None
        try:
            return self.kind.from_dict(_from_bytes(path.read_bytes(), digest))
        except (ValueError, LookupError, TypeError) as error:
            logger.warning("%s is broken and will be made again: %s", path, error)
            return None

    def write(self, name: str, result: T, *, digest: str) -> Path:
        """Keep a result after the SHA-256 of its digest and itself, whole or not at all."""
        buffer = io.BytesIO()
        torch.save(result.to_dict(), buffer)
        content = buffer.getvalue()
        checked = _checksum(content, digest) + b"\n" + content
        return write_atomically(self.path(name, digest=digest), checked)
