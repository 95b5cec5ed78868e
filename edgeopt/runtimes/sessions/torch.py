"""PyTorch: TorchScript files, in the process's own torch."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from edgeopt.agent.session import SCORING_BATCH, Artifact, Session
from edgeopt.system.upstream import known_noise_silenced, native_stderr_logged


def load_script(path: Path) -> torch.jit.ScriptModule:
    """Load a TorchScript file; its int8 layers are packed for the engine they were made for.

    Elsewhere than on x86 the process's own engine is another, whose kernels these are not.
    """
    engines = torch.backends.quantized.supported_engines
    own = [name for name in ("x86", "qnnpack") if name in engines]
    torch.backends.quantized.engine = own[0] if own else torch.backends.quantized.engine
    with known_noise_silenced():
        return torch.jit.load(path, map_location="cpu")


class TorchSession(Session):
    """TorchScript in torch, whose thread count is set while it is called or bound only."""

    def __init__(self, artifact: Artifact, *, threads: int) -> None:
        super().__init__(artifact)
        with native_stderr_logged():
            self._module = load_script(artifact.path)
        self._threads = threads
        self._dtype = torch.float16 if artifact.precision == "fp16" else torch.float32

    @contextmanager
    def _ready(self, images: np.ndarray) -> Iterator[Callable[[], Any]]:
        tensor = torch.tensor(images).to(self._dtype)
        with _torch_threads(self._threads), torch.inference_mode():
            yield partial(self._module, tensor)

    def _logits(self, returned: torch.Tensor) -> np.ndarray:
        return returned.float().numpy()

    def _score(self, images: np.ndarray) -> np.ndarray:
        """Score large batches, which TorchScript takes, on all of torch's own threads.

        What is timed is held to these logits afterwards.
        """
        batches = torch.from_numpy(images).split(SCORING_BATCH)
        with torch.inference_mode():
            logits = [self._logits(self._module(batch.to(self._dtype))) for batch in batches]
        return np.concatenate(logits)

    @property
    def threads(self) -> int:
        """Threads that torch computes with inside a call."""
        with _torch_threads(self._threads):
            return torch.get_num_threads()


@contextmanager
def _torch_threads(count: int) -> Iterator[None]:
    """Set torch's thread count, which is one per process, and put it back."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)
