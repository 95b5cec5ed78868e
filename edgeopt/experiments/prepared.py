"""What preparing a candidate gave, in a form that a store keeps, and the digest that decides it."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, fields
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch

from edgeopt.runtimes import Artifact
from edgeopt.system import environment_facts, file_sha256, write_atomically

PACKAGE = Path(__file__).parents[1]


@dataclass(frozen=True, eq=False)
class Prepared:
    """An artifact's file, what is known of it, and the logits [N, classes] that it gave."""

    content: bytes
    artifact: Artifact
    facts: Mapping[str, Any]
    logits: np.ndarray

    def to_dict(self) -> dict[str, Any]:
        """Return what a :class:`edgeopt.system.Store` keeps."""
        known = {field.name: getattr(self.artifact, field.name) for field in fields(Artifact)}
        return {
            "content": torch.frombuffer(bytearray(self.content), dtype=torch.uint8),
            "artifact": {**known, "path": self.artifact.path.name},
            "facts": {name: _plain(value) for name, value in self.facts.items()},
            "logits": torch.from_numpy(self.logits),
        }

    @classmethod
    def from_dict(cls, kept: Mapping[str, Any]) -> "Prepared":
        """Build it from what was kept; the path is a bare name until it is written."""
        artifact = Artifact(**{**kept["artifact"], "path": Path(kept["artifact"]["path"])})
        logits = kept["logits"].numpy()
        return cls(kept["content"].numpy().tobytes(), artifact, kept["facts"], logits)

    def write(self, folder: Path) -> Artifact:
        """Write the file into a folder; the artifact that lies there."""
        path = write_atomically(folder / self.artifact.path.name, self.content)
        known = {field.name: getattr(self.artifact, field.name) for field in fields(Artifact)}
        return Artifact(**{**known, "path": path})


def _plain(value: Any) -> Any:
    return value.item() if isinstance(value, np.generic) else value


def preparation_digest(*facts: Any) -> str:
    """SHA-256 over facts, the package's code, the versions of its packages, and the CPU."""
    seen = repr((facts, _code_digest(), sorted(environment_facts().items())))
    return hashlib.sha256(seen.encode()).hexdigest()


@cache
def _code_digest() -> str:
    digests = [(path.name, file_sha256(path)) for path in sorted(PACKAGE.rglob("*.py"))]
    return hashlib.sha256(repr(digests).encode()).hexdigest()
