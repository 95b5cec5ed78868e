"""An artifact, and the session that a runtime makes of it: images in, logits out."""

from __future__ import annotations

import importlib
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from edgeopt.system.files import file_sha256
from edgeopt.system.host import usable_cores
from edgeopt.system.upstream import RuntimeUnavailable

INPUT, OUTPUT = "images", "logits"
FLOAT32 = np.dtype(np.float32)
SCORING_BATCH = 64


class ArtifactError(RuntimeError):
    """An artifact's file is not the one that was exported, or its runtime rejects it."""


@dataclass(frozen=True)
class Artifact:
    """A file that a runtime loads, and what it is; ``input_shape`` is [B, C, H, W].

    ``parity_difference`` and ``parity_agreement`` are the two of a runtime's ``Parity``, of int8
    ONNX and LiteRT for the float graph that was quantized; NaN where nothing was compared.
    """

    path: Path
    runtime: str
    precision: str
    input_shape: tuple[int, ...]
    sha256: str
    size_bytes: int
    parity_difference: float = math.nan
    parity_agreement: float = math.nan

    @property
    def title(self) -> str:
        """The artifact in words, for messages."""
        return f"artifact {self.path.name} ({self.runtime} {self.precision})"


class Session(ABC):
    """A loaded artifact: float32 images [B, C, H, W] -> new float32 logits [B, classes].

    Many images are best scored in multiples of ``scoring_batch``. ``compiled`` is a folder where a
    runtime may keep what it compiles of a file, for the next time that it is loaded.
    """

    compiled: ClassVar[Path | None] = None

    def __init__(self, artifact: Artifact) -> None:
        self.artifact = artifact
        self.input_shape = artifact.input_shape
        batch = artifact.input_shape[0]
        self.scoring_batch = SCORING_BATCH * batch // math.gcd(SCORING_BATCH, batch)

    def __call__(self, images: np.ndarray) -> np.ndarray:
        """Run one batch; raises ``ValueError`` when its shape or dtype is another."""
        with self.bound(images) as call:
            return self._logits(call())

    @contextmanager
    def bound(self, images: np.ndarray) -> Iterator[Callable[[], Any]]:
        """Put one batch in place, set the threads, and give the runtime's own call on it.

        The call takes no argument and returns what the runtime returns: nothing of edgeopt is in
        it, so that its time is the runtime's alone. Raises ``ValueError`` as a call does.
        """
        self._check(images, batch=self.input_shape[0])
        with self._ready(images) as call:
            yield call

    def score(self, images: np.ndarray) -> np.ndarray:
        """Logits [N, classes] of float32 images [N, C, H, W].

        Raises ``ValueError`` when there are none, or when they are of another shape or dtype.
        """
        if not len(images):
            raise ValueError(f"{self.artifact.title}: no images to run; allowed: 1 or more")
        self._check(images, batch=len(images))
        return self._score(images)

    def _check(self, images: np.ndarray, *, batch: int) -> None:
        wanted = (batch, *self.input_shape[1:])
        if images.shape != wanted or images.dtype != FLOAT32:
            raise ValueError(
                f"{self.artifact.title} takes float32 {wanted}, got {images.dtype} {images.shape}"
            )

    def _score(self, images: np.ndarray) -> np.ndarray:
        """Fill up the last batch with its last image, which no dynamic range notices."""
        size = self.input_shape[0]
        padding = np.repeat(images[-1:], -len(images) % size, axis=0)
        padded = np.concatenate([images, padding])
        logits = [self(padded[start : start + size]) for start in range(0, len(padded), size)]
        return np.concatenate(logits)[: len(images)]

    @abstractmethod
    def _ready(self, images: np.ndarray) -> AbstractContextManager[Callable[[], Any]]: ...

    @abstractmethod
    def _logits(self, returned: Any) -> np.ndarray: ...

    @property
    @abstractmethod
    def threads(self) -> int:
        """Threads that the runtime itself says it computes with."""


def session_class(place: str) -> type[Session]:
    """Import the class of a runtime's sessions by its place, ``module:Class``.

    Raises ``RuntimeUnavailable`` where there is no such module.
    """
    module, _, name = place.partition(":")
    try:
        return getattr(importlib.import_module(module), name)
    except ModuleNotFoundError as error:
        raise RuntimeUnavailable(f"{error.name} is not installed") from error


def open_session(artifact: Artifact, *, place: str, threads: int = 1) -> Session:
    """Load an artifact into the session class at ``place``.

    Raises
    ------
    ValueError
        When ``threads`` is below 1 or above the cores that this process may use.
    ArtifactError
        When the file is not the one that was exported, or the runtime cannot load it.
    RuntimeUnavailable
        When the runtime is not installed, or the CPU lacks the precision.
    """
    cores = usable_cores()
    if not 1 <= threads <= cores:
        raise ValueError(f"{artifact.title}: threads is {threads}; allowed: 1 to {cores} (cores)")
    found = file_sha256(artifact.path)
    if found != artifact.sha256:
        raise ArtifactError(
            f"{artifact.title} is corrupt: its SHA-256 is {found}, at export it was "
            f"{artifact.sha256}"
        )
    try:
        return session_class(place)(artifact, threads=threads)
    except RuntimeUnavailable as error:
        raise RuntimeUnavailable(f"{artifact.title}: {error}") from error
    except Exception as error:  # runtimes raise whatever they like
        raise ArtifactError(f"{artifact.title} cannot be loaded: {error}") from error
