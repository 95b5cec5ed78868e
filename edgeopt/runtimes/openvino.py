"""OpenVINO: ONNX files on its CPU plugin, compiled for the batch size, for low latency."""

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from functools import cache
from typing import TYPE_CHECKING, Any

import numpy as np

from edgeopt.runtimes.contract import FLOAT32, FLOATS, INTEGER, Artifact, Operation, Session
from edgeopt.runtimes.onnx_files import OnnxFileRuntime
from edgeopt.system import RuntimeUnavailable, import_extra

if TYPE_CHECKING:
    import pandas as pd
    from openvino import CompiledModel

PRODUCTS = ("FullyConnected", "MatMul")
CONVOLUTIONS = ("Convolution", "Deconvolution")
IN_PLACE = ("Eltwise", "Subgraph", "Reshape")
MICROSECOND = timedelta(microseconds=1)


@cache
def openvino_core() -> Any:
    """OpenVINO's core, one for the process.

    Its CPU plugin sets an alternate signal stack for every core and frees it with the core; freed
    in the order in which they were made, the next signal (a child that ends) would run on freed
    memory and kill the process.
    """
    return import_extra("openvino").Core()


def compile_artifact(artifact: Artifact, *, threads: int, **settings: Any) -> "CompiledModel":
    """Compile for the artifact's batch size: other shapes get other kernels.

    Raises ``RuntimeUnavailable`` where the CPU lacks bf16.
    """
    core = openvino_core()
    capabilities = core.get_property("CPU", "OPTIMIZATION_CAPABILITIES")
    if artifact.precision == "bf16" and "BF16" not in capabilities:
        raise RuntimeUnavailable("this CPU has no bf16 instructions")
    model = core.read_model(artifact.path)
    model.reshape(list(artifact.input_shape))
    settings |= {
        "INFERENCE_NUM_THREADS": threads,
        "NUM_STREAMS": 1,
        "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_PRECISION_HINT": "bf16" if artifact.precision == "bf16" else "f32",
    }
    return core.compile_model(model, "CPU", settings)


class OpenVINOSession(Session):
    """An ONNX file compiled by OpenVINO's CPU plugin."""

    def __init__(self, artifact: Artifact, *, threads: int) -> None:
        super().__init__(artifact)
        self._compiled = compile_artifact(artifact, threads=threads)
        self._input = np.zeros(self.input_shape, dtype=FLOAT32)
        self._request = self._compiled.create_infer_request()
        images = import_extra("openvino").Tensor(self._input, shared_memory=True)
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


class OpenVINORuntime(OnnxFileRuntime):
    """OpenVINO's CPU plugin; bf16 is a way of running the fp32 file, whose weights are counted."""

    name = "openvino"
    title = "OpenVINO"
    marker = "D"
    precisions = ("fp32", "bf16", "int8")
    session = OpenVINOSession
    package = "openvino"

    def operations(self, artifact: Artifact) -> Iterator[Operation]:
        """Operators of the runtime model, without those that constants alone feed."""
        constant = set()
        for node in compile_artifact(artifact, threads=1).get_runtime_model().get_ordered_ops():
            kind = node.get_rt_info()["layerType"].astype(str)
            sources = [port.get_source_output() for port in node.inputs()]
            reads = tuple(_key(s) for s in sources if s.get_node().get_name() not in constant)
            if kind == "Const" or (sources and not reads):
                constant.add(node.get_name())
                continue
            writes = tuple(
                (_key(port), port.get_element_type().size * math.prod(port.get_shape()))
                for port in (node.outputs() if kind != "Output" else ())
            )
            yield Operation(kind, reads, writes, _overwrites(kind, reads), *_macs(node, kind))

    def layer_times(self, artifact: Artifact, *, threads: int) -> "pd.DataFrame":
        """Operator times of its own counters; ``op`` carries the kernel's name with its type.

        OpenVINO keeps one mean per operator, since its first call and cut to whole microseconds:
        the warm-up is taken out of it again, nothing is trimmed, and a time reads up to two
        microseconds short.
        """
        from edgeopt.runtimes.profiling import RUNS, WARMUP, profiled_batch, with_shares

        batch = profiled_batch(artifact.input_shape)
        compiled = compile_artifact(artifact, threads=threads, PERF_COUNT=True)
        request = compiled.create_infer_request()
        for _ in range(WARMUP):
            request.infer([batch])
        cold = _mean_times(request)
        for _ in range(RUNS):
            request.infer([batch])
        table = _mean_times(request)
        whole = (table["us"] * (WARMUP + RUNS) - cold["us"] * WARMUP) / RUNS
        table["measured_ms"] = whole.clip(lower=0).round() / 1e3
        no_kernel = table["op"].str.contains(" (?:undef|unknown)")
        kernels = table[~no_kernel | (table["measured_ms"] > 0)]
        return with_shares(kernels.reset_index(drop=True))


def _mean_times(request: Any) -> "pd.DataFrame":
    """Return a row per node: its mean since the first call, in whole microseconds."""
    import pandas as pd

    rows = [
        (node.node_name, f"{node.node_type} {node.exec_type}", node.real_time // MICROSECOND)
        for node in request.profiling_info
    ]
    return pd.DataFrame(rows, columns=["layer", "op", "us"])


def _key(port: Any) -> tuple[str, int]:
    return port.get_node().get_name(), port.get_index()


def _overwrites(kind: str, reads: tuple) -> tuple:
    if kind in CONVOLUTIONS:
        return reads[1:]  # the summand of a fused addition, whose memory gets the sum
    return reads if kind in IN_PLACE else ()


def _macs(node: Any, kind: str) -> tuple[int, str]:
    if kind not in (*CONVOLUTIONS, *PRODUCTS):
        return 0, ""
    outputs = list(node.output(0).get_shape())
    inputs = [list(port.get_shape()) for port in node.inputs()]
    depth = inputs[0][-1] if kind in PRODUCTS else math.prod(inputs[1]) // outputs[1]
    precision = node.get_rt_info()["runtimePrecision"].astype(str)
    integer = precision in ("u8", "i8")
    return math.prod(outputs) * depth, INTEGER if integer else FLOATS.get(precision, precision)
