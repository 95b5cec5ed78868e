"""ExecuTorch: programs in a thread pool that is one per process."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from edgeopt.agent.session import FLOAT32, Artifact, Session
from edgeopt.system.upstream import import_extra, native_stderr_logged

# The same objects as portable_lib's, without its import of the whole exporter.
_native = import_extra("executorch.extension.pybindings._C")


class ExecuTorchSession(Session):
    """A program in ExecuTorch, whose pool has the threads of the latest loading."""

    def __init__(self, artifact: Artifact, *, threads: int) -> None:
        super().__init__(artifact)
        set_threads(threads)
        self._module = load_program(artifact.path)
        self._input = np.zeros(artifact.input_shape, dtype=FLOAT32)
        self._inputs = (torch.from_numpy(self._input),)

    @contextmanager
    def _ready(self, images: np.ndarray) -> Iterator[Callable[[], Any]]:
        np.copyto(self._input, images)
        yield partial(self._module.forward, self._inputs)

    def _logits(self, returned: Any) -> np.ndarray:
        return returned[0].numpy()

    @property
    def threads(self) -> int:
        """Threads of the process-wide pool."""
        return _native._threadpool_get_thread_count()


def set_threads(count: int) -> None:
    """Give the process's pool ``count`` threads."""
    with native_stderr_logged():
        _native._unsafe_reset_threadpool(count)


def load_program(path: Path) -> Any:
    """Load a program and its ``forward``."""
    with native_stderr_logged():
        module = _native._load_for_executorch(str(path))
        module.method_meta("forward")
    return module
