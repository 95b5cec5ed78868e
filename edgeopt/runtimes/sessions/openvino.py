"""OpenVINO: ONNX files on its CPU plugin, compiled for the batch size, for low latency."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

import numpy as np

from edgeopt.agent.session import FLOAT32, Artifact, Session
from edgeopt.system.upstream import RuntimeUnavailable, import_extra

openvino = import_extra("openvino")


@cache
def openvino_core() -> Any:
    """OpenVINO's core, one for the process.

    Its CPU plugin sets an alternate signal stack for every core and frees it with the core; freed
    in the order in which they were made, the next signal (a child that ends) would run on freed
    memory and kill the process.
    """
    return openvino.Core()


def compile_artifact(
    artifact: Artifact, *, threads: int, **settings: Any
) -> openvino.CompiledModel:
    """Compile for the artifact's batch size: other shapes get other kernels.

    Raises ``RuntimeUnavailable`` where the CPU lacks bf16.
    """
    core = openvino_core()
    capabilities = core.get_property("CPU", "OPTIMIZATION_CAPABILITIES")
    if artifact.precision == "bf16" and "BF16" not in capabilities:
        raise RuntimeUnavailable("this CPU has no bf16 instructions")
    settings |= {
        "INFERENCE_NUM_THREADS": threads,
        "NUM_STREAMS": 1,
        "ENABLE_HYPER_THREADING": True,  # else it leaves out every second thread of a core
        "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_PRECISION_HINT": "bf16" if artifact.precision == "bf16" else "f32",
    }
    return core.compile_model(read_artifact(artifact), "CPU", settings)


def read_artifact(artifact: Artifact) -> openvino.Model:
    """Read the file as a network of the artifact's batch size."""
    model = openvino_core().read_model(artifact.path)
    model.reshape(list(artifact.input_shape))
    return model


class OpenVINOSession(Session):
    """An ONNX file compiled by OpenVINO's CPU plugin."""

    def __init__(self, artifact: Artifact, *, threads: int) -> None:
        super().__init__(artifact)
        kept = {"CACHE_DIR": str(self.compiled)} if self.compiled else {}
        self._compiled = compile_artifact(artifact, threads=threads, **kept)
        self._input = np.zeros(self.input_shape, dtype=FLOAT32)
        self._request = self._compiled.create_infer_request()
        images = openvino.Tensor(self._input, shared_memory=True)
        self._request.set_input_tensor(images)

    @contextmanager
    def _ready(self, images: np.ndarray) -> Iterator[Callable[[], Any]]:
        np.copyto(self._input, images)
        yield self._request.infer

    def _logits(self, returned: Any) -> np.ndarray:
        return returned[0]

    @property
    def threads(self) -> int:
        """Threads that the compiled model was given."""
        return self._compiled.get_property("INFERENCE_NUM_THREADS")
