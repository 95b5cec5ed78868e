"""OpenVINO: what its CPU plugin executes, and its counters."""

import math
from collections.abc import Iterator
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from edgeopt.agent.session import Artifact
from edgeopt.runtimes.contract import FLOATS, INTEGER, Operation
from edgeopt.runtimes.formats.onnx_files import OnnxFileRuntime, einsum_macs

if TYPE_CHECKING:
    import pandas as pd

PRODUCTS = ("FullyConnected", "MatMul")
CONVOLUTIONS = ("Convolution", "Deconvolution")
LAYERS = (
    *("Convolution", "GroupConvolution"),
    *("ConvolutionBackpropData", "GroupConvolutionBackpropData"),
)
RECURRENT = ("LSTMSequence", "GRUSequence", "RNNSequence")
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
        """Operators of the runtime model, without those that constants alone feed.

        Products that it has fused into another operator (attention, recurrent layers) are what the
        others leave of the total, and count as float.
        """
        from edgeopt.runtimes.sessions.openvino import compile_artifact, read_artifact

        left = sum(map(_layer_macs, read_artifact(artifact).get_ordered_ops()))
        constant, kinds = set(), set()
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
            macs, precision = _macs(node, kind)
            left, kinds = left - macs, kinds | {_precision(node)}
            yield Operation(kind, reads, writes, _overwrites(kind, reads), macs, precision)
        # Of several float types the widest is named: fp32 sorts behind the narrow ones.
        floats = sorted(kinds & {*FLOATS.values()})
        if left:
            yield Operation("fused", macs=left, precision=floats[-1])

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


def _precision(node: Any) -> str:
    name = node.get_rt_info()["runtimePrecision"].astype(str)
    return INTEGER if name in ("u8", "i8") else FLOATS.get(name, name)


def _macs(node: Any, kind: str) -> tuple[int, str]:
    if kind not in (*CONVOLUTIONS, *PRODUCTS):
        return 0, ""
    outputs = list(node.output(0).get_shape())
    inputs = [list(port.get_shape()) for port in node.inputs()]
    if kind in PRODUCTS:
        return math.prod(outputs) * _depth(inputs[0], outputs), _precision(node)
    backwards = kind == "Deconvolution"
    applied = inputs[0] if backwards else outputs
    return math.prod(applied) * math.prod(inputs[1]) // applied[1], _precision(node)


def _depth(first: list[int], outputs: list[int]) -> int:
    """Length of a product's sums; its first operand may be transposed."""
    whole = len(first) < 2 or first[-2] == outputs[-2]
    return first[-1] if whole else first[-2]


def _layer_macs(node: Any) -> int:
    """MACs of an operator of the network as it is in the file."""
    kind = node.get_type_name()
    shapes = [list(port.get_shape()) for port in node.inputs()]
    if kind in LAYERS:
        applied = shapes[0] if "Backprop" in kind else list(node.output(0).get_shape())
        return math.prod(applied) * math.prod(shapes[1]) // applied[1]
    if kind == "MatMul":
        outputs = list(node.output(0).get_shape())
        return math.prod(outputs) * _depth(shapes[0], outputs)
    if kind == "Einsum":
        return einsum_macs(node.get_attributes()["equation"], shapes)
    if kind in RECURRENT:  # of a sequence [B, T, C]; weights and recurrent weights before the bias
        return math.prod(shapes[0][:2]) * sum(map(math.prod, shapes[-3:-1]))
    return 0
