"""What preparing a candidate gave, as it travels and is kept, and the digest that decides it."""

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from edgeopt.runtimes import Artifact
from edgeopt.system import environment_facts, package_sha256, write_atomically


@dataclass(frozen=True, eq=False)
class Prepared:
    """An artifact's file, what is known of it, and the logits [N, classes] that it gave.

    It comes from whichever process or machine made it; :meth:`write` brings the file to this one.
    """

    content: bytes
    artifact: Artifact
    facts: Mapping[str, Any] = field(default_factory=dict)
    logits: np.ndarray | None = None

    @classmethod
    def of(cls, artifact: Artifact, **known: Any) -> "Prepared":
        """Take an artifact with its file's content; ``known`` is ``facts`` and ``logits``."""
        return cls(artifact.path.read_bytes(), artifact, **known)

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
    seen = repr((facts, package_sha256(), sorted(environment_facts().items())))
    return hashlib.sha256(seen.encode()).hexdigest()


def batches_digest(batches: Iterable) -> str:
    """SHA-256 over the images of calibration batches."""
    seen = hashlib.sha256()
    for images, _ in batches:
        seen.update(repr(images.shape).encode())
        seen.update(images.contiguous().numpy())
    return seen.hexdigest()
