"""ONNX Runtime: ONNX files on its CPU provider, operators one after the other."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime

from edgeopt.agent.session import INPUT, OUTPUT, Artifact, Session


def session_options(*, threads: int) -> onnxruntime.SessionOptions:
    """Options for ``threads`` threads inside an operator and operators one after the other."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.execution_mode = onnxruntime.ExecutionMode.ORT_SEQUENTIAL
    options.log_severity_level = 3
    return options


def open_onnx(path: Path, options: onnxruntime.SessionOptions) -> onnxruntime.InferenceSession:
    """Load a file with the options given."""
    return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


class OnnxRuntimeSession(Session):
    """An ONNX file in ONNX Runtime."""

    def __init__(self, artifact: Artifact, *, threads: int) -> None:
        super().__init__(artifact)
        self._session = open_onnx(artifact.path, session_options(threads=threads))

    @contextmanager
    def _ready(self, images: np.ndarray) -> Iterator[Callable[[], Any]]:
        yield partial(self._session.run, [OUTPUT], {INPUT: images})

    def _logits(self, returned: Any) -> np.ndarray:
        return returned[0]

    @property
    def threads(self) -> int:
        """Threads inside an operator, from the session's own options."""
        return self._session.get_session_options().intra_op_num_threads
