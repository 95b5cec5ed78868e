"""LiteRT: .tflite files in its interpreter, with the XNNPACK delegate that it takes by itself."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
from ai_edge_litert.interpreter import Interpreter

from edgeopt.agent.session import FLOAT32, Artifact, Session
from edgeopt.system.upstream import native_stderr_logged


class LiteRTSession(Session):
    """A file that takes channels-last images, float32 or quantized at its borders.

    Images are laid out and quantized before the call, logits taken out of it afterwards.
    """

    def __init__(self, artifact: Artifact, *, threads: int) -> None:
        super().__init__(artifact)
        self._threads = threads
        with native_stderr_logged():
            self._interpreter = Interpreter(str(artifact.path), num_threads=threads)
            self._interpreter.allocate_tensors()
        [self._input] = self._interpreter.get_input_details()
        [self._output] = self._interpreter.get_output_details()

    @contextmanager
    def _ready(self, images: np.ndarray) -> Iterator[Callable[[], Any]]:
        placed = _quantized(images.transpose(0, 2, 3, 1), self._input)
        self._interpreter.set_tensor(self._input["index"], placed)
        yield self._interpreter.invoke

    def _logits(self, returned: Any) -> np.ndarray:
        return _dequantized(self._interpreter.get_tensor(self._output["index"]), self._output)

    @property
    def threads(self) -> int:
        """Threads that the interpreter was made with; it cannot be asked."""
        return self._threads


def _quantized(values: np.ndarray, tensor: dict[str, Any]) -> np.ndarray:
    dtype = np.dtype(tensor["dtype"])
    if dtype == FLOAT32:
        return values
    scale, zero = tensor["quantization"]
    limits = np.iinfo(dtype)
    return np.clip(np.round(values / scale) + zero, limits.min, limits.max).astype(dtype)


def _dequantized(values: np.ndarray, tensor: dict[str, Any]) -> np.ndarray:
    if values.dtype == FLOAT32:
        return values
    scale, zero = tensor["quantization"]
    return (FLOAT32.type(scale) * (values.astype(np.int32) - zero)).astype(FLOAT32)
