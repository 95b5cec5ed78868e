"""What trainings left: kept under a digest of all that decides them, with their own checksum."""

import hashlib
import io
import logging
import pickle
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from torch import Tensor

from edgeopt.files import write_atomically
from edgeopt.schema import file_stem

logger = logging.getLogger(__name__)

DIGITS = 64  # of a SHA-256 in hexadecimal


@dataclass(frozen=True, eq=False)
class Training:
    """What a training gave: the state dict, and one row per epoch as in :func:`training.fit`."""

    state: dict[str, Tensor]
    history: pd.DataFrame

    def to_bytes(self) -> bytes:
        """Write as the SHA-256 of what follows, a newline, and a file of ``torch.save``."""
        buffer = io.BytesIO()
        torch.save({"state": self.state, "history": self.history.to_dict("list")}, buffer)
        content = buffer.getvalue()
        return hashlib.sha256(content).hexdigest().encode() + b"\n" + content

    @classmethod
    def from_bytes(cls, content: bytes) -> "Training":
        """Read what :meth:`to_bytes` wrote; raises ``ValueError`` when it is not whole."""
        digest, body = content[:DIGITS], content[DIGITS + 1 :]
        if digest != hashlib.sha256(body).hexdigest().encode():
            raise ValueError(f"its {len(content):,} bytes do not have the checksum they begin with")
        try:
            kept: dict[str, Any] = torch.load(io.BytesIO(body), weights_only=True)
            return cls(kept["state"], pd.DataFrame(kept["history"]))
        except (pickle.UnpicklingError, RuntimeError, LookupError) as error:
            raise ValueError(f"it is not a training that edgeopt kept: {error}") from error


@dataclass(frozen=True)
class TrainingStore:
    """A folder with one file per training, called by what it is and the digest of what made it."""

    folder: Path

    def path(self, name: str, *, digest: str) -> Path:
        """Where a training lies."""
        return self.folder / f"{file_stem(name)}-{digest[:16]}.training"

    def read(self, name: str, *, digest: str) -> Training | None:
        """Read a training; None where there is none, and where it is broken, which is logged."""
        path = self.path(name, digest=digest)
        if not path.is_file():
            return None
        try:
            return Training.from_bytes(path.read_bytes())
        except ValueError as error:
            logger.warning("%s is broken and will be trained again: %s", path, error)
            return None

    def write(self, name: str, training: Training, *, digest: str) -> Path:
        """Keep a training, whole or not at all."""
        return write_atomically(self.path(name, digest=digest), training.to_bytes())
