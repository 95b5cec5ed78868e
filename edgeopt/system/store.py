"""What took long to compute: kept under a digest of all that decides it, with its own checksum."""

import hashlib
import io
import logging
import pickle
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, Protocol, Self, TypeVar

import torch

from edgeopt.schema import file_stem
from edgeopt.system.files import write_atomically

logger = logging.getLogger(__name__)

DIGITS = 64  # of a SHA-256 in hexadecimal


class Storable(Protocol):
    """A result that a store can keep: tensors, numbers and words in a dict."""

    def to_dict(self) -> dict[str, Any]:
        """Return what is kept."""

    @classmethod
    def from_dict(cls, kept: Mapping[str, Any]) -> Self:
        """Build the result from what was kept."""


T = TypeVar("T", bound=Storable)


def to_bytes(value: Mapping[str, Any]) -> bytes:
    """Write tensors, numbers and words as a file of ``torch.save``, after its SHA-256."""
    buffer = io.BytesIO()
    torch.save(dict(value), buffer)
    content = buffer.getvalue()
    return hashlib.sha256(content).hexdigest().encode() + b"\n" + content


def from_bytes(content: bytes) -> dict[str, Any]:
    """Read what :func:`to_bytes` wrote, and run no code; ``ValueError`` if it is not whole."""
    digest, body = content[:DIGITS], content[DIGITS + 1 :]
    if digest != hashlib.sha256(body).hexdigest().encode():
        raise ValueError(f"its {len(content):,} bytes do not have the checksum they begin with")
    try:
        return torch.load(io.BytesIO(body), weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, LookupError) as error:
        raise ValueError(f"it is not a file that edgeopt kept: {error}") from error


@dataclass(frozen=True)
class Store(Generic[T]):
    """A folder with one file per result, called by what it is and the digest of what made it."""

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
            return self.kind.from_dict(from_bytes(path.read_bytes()))
        except (ValueError, LookupError, TypeError) as error:
            logger.warning("%s is broken and will be made again: %s", path, error)
            return None

    def write(self, name: str, result: T, *, digest: str) -> Path:
        """Keep a result, whole or not at all."""
        return write_atomically(self.path(name, digest=digest), to_bytes(result.to_dict()))
