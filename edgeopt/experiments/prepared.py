"""What preparing a candidate gave, in a form that a store keeps, and the digest that decides it."""

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, replace
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
        facts = self.facts.items()
        return {
            "content": torch.frombuffer(bytearray(self.content), dtype=torch.uint8),
            "artifact": {**asdict(self.artifact), "path": self.artifact.path.name},
            "facts": {k: v.item() if isinstance(v, np.generic) else v for k, v in facts},
            "logits": torch.from_numpy(self.logits),
        }

    @classmethod
    def from_dict(cls, kept: Mapping[str, Any]) -> "Prepared":
        """Build it from what was kept; the path is a bare name until it is written."""
        artifact = Artifact(**{**kept["artifact"], "path": Path(kept["artifact"]["path"])})
        content = kept["content"].numpy().tobytes()
        return cls(content, artifact, kept["facts"], kept["logits"].numpy())

    def write(self, folder: Path) -> Artifact:
        """Write the file into a folder; the artifact that lies there."""
        path = write_atomically(folder / self.artifact.path.name, self.content)
        return replace(self.artifact, path=path)


def preparation_digest(*facts: Any) -> str:
    """SHA-256 over facts, the package's code, the versions of its packages, and the CPU."""
    seen = repr((facts, _code_digest(), sorted(environment_facts().items())))
    return hashlib.sha256(seen.encode()).hexdigest()


def batches_digest(batches: Iterable) -> str:
    """SHA-256 over the images of calibration batches."""
    seen = hashlib.sha256()
    for images, _ in batches:
        seen.update(repr(images.shape).encode())
        seen.update(images.contiguous().numpy())
    return seen.hexdigest()


@cache
def _code_digest() -> str:
    digests = [(path.name, file_sha256(path)) for path in sorted(PACKAGE.rglob("*.py"))]
    return hashlib.sha256(repr(digests).encode()).hexdigest()
