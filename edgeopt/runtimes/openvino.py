"""OpenVINO: what its CPU plugin executes, and its counters."""

import math
from collections.abc import Iterator
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from edgeopt.agent.session import Artifact
from edgeopt.runtimes.contract import FLOATS, INTEGER, Operation
from edgeopt.runtimes.formats.onnx_files import OnnxFileRuntime

if TYPE_CHECKING:
    import pandas as pd

PRODUCTS = ("FullyConnected", "MatMul")
CONVOLUTIONS = ("Convolution", "Deconvolution")
IN_PLACE = ("Eltwise", "Subgraph", "Reshape")
MICROSECOND = timedelta(microseconds=1)


class OpenVINORuntime(OnnxFileRuntime):
    """OpenVINO's CPU plugin; bf16 is a way of running the fp32 file, whose weights are counted."""

    name = "openvino"
    title = "OpenVINO"
    marker = "D"
    precisions = ("fp32", "bf16", "int8")
    session = "edgeopt.runtimes.sessions.openvino:OpenVINOSession"
    packages = ("openvino",)
    package = "openvino"

    def operations(self, artifact: Artifact) -> Iterator[Operation]:
        """Operators of the runtime model, without those that constants alone feed."""
        from edgeopt.runtimes.sessions.openvino import compile_artifact

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
        from edgeopt.runtimes.sessions.openvino import compile_artifact

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
