"""ONNX Runtime: what its CPU provider executes, and its profile."""

import json
import math
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from edgeopt.agent.session import INPUT, OUTPUT, Artifact
from edgeopt.runtimes.contract import FLOATS, INTEGER, Operation
from edgeopt.runtimes.formats.onnx_files import OnnxFileRuntime, einsum_macs
from edgeopt.runtimes.sessions.onnxruntime import open_onnx, session_options

if TYPE_CHECKING:
    import pandas as pd
    from onnxruntime import SessionOptions

# Position of the weight among the inputs of the convolutions; the products need none.
CONVOLUTIONS = {"Conv": 1, "FusedConv": 1, "ConvInteger": 1, "QLinearConv": 3}
INTEGER_PRODUCTS = (
    "QGemm",
    "MatMulInteger",
    "QLinearMatMul",
    "MatMulIntegerToFloat",
    "DynamicQuantizeMatMul",
)
PRODUCTS = ("Gemm", "FusedGemm", "MatMul", "FusedMatMul", *INTEGER_PRODUCTS)
# Their weights' places; a sequence [T, B, C] passes through both.
RECURRENT = {"LSTM": (1, 2), "GRU": (1, 2), "RNN": (1, 2), "DynamicQuantizeLSTM": (1, 2)}
INTEGER_OPERATORS = ("ConvInteger", "QLinearConv", "DynamicQuantizeLSTM", *INTEGER_PRODUCTS)
# What the kernels of the CPU provider declare MayInplace or Alias; QLinearAdd and -Mul do not.
IN_PLACE = (
    *("Relu", "LeakyRelu", "Elu", "Selu", "Clip", "Sigmoid", "HardSigmoid", "HardSwish", "Tanh"),
    *("Gelu", "QuickGelu", "Add", "Sub", "Mul", "Div", "Cast"),
    *("Reshape", "Flatten", "Squeeze", "Unsqueeze", "Identity"),
)
NUMPY_TYPES = {"float": "float32", "double": "float64", "bfloat16": "uint16"}


class OnnxRuntime(OnnxFileRuntime):
    """ONNX Runtime's CPU provider; static int8 is QDQ per channel, dynamic int8 its own."""

    name = "onnxruntime"
    title = "ONNX Runtime"
    marker = "s"
    precisions = ("fp32", "int8", "int8-dynamic")
    session = "edgeopt.runtimes.sessions.onnxruntime:OnnxRuntimeSession"
    packages = ("onnxruntime",)

    def operations(self, artifact: Artifact) -> Iterator[Operation]:
        """Operators of the optimised graph; float MACs are what the integers leave of the total.

        The optimised float convolutions pad their weights to whole vectors, so the total comes
        from the profile of the graph as it is in the file.
        """
        import onnxruntime

        levels = onnxruntime.GraphOptimizationLevel
        plain = _profile(artifact, level=levels.ORT_DISABLE_ALL)
        executed, nodes = _profile(artifact, level=levels.ORT_ENABLE_ALL)
        if [event["op_name"] for event in executed] != [node.op_type for node in nodes]:
            raise RuntimeError(f"{artifact.title}: ONNX Runtime's profile and graph do not agree")
        counts = _all_macs(executed, nodes)
        floats = sorted({kind for macs, kind in counts if macs and kind != INTEGER})
        left = sum(macs for macs, _ in _all_macs(*plain))
        left -= sum(macs for macs, kind in counts if kind == INTEGER)
        yield Operation(INPUT, writes=((INPUT, 4 * math.prod(artifact.input_shape)),))
        for event, node, count in zip(executed, nodes, counts, strict=True):
            yield _operation(event, node, *(count if count[1] == INTEGER else (0, "")))
        # Of several float types the widest is named: fp32 sorts behind the narrow ones.
        yield Operation("float", macs=left, precision=floats[-1] if floats else "")
        yield Operation("output", reads=(OUTPUT,))

    def layer_times(self, artifact: Artifact, *, threads: int) -> "pd.DataFrame":
        """Kernel times of its own profile."""
        from edgeopt.runtimes.profiling import RUNS, WARMUP, operator_times, profiled_batch

        options = session_options(threads=threads)
        with _profiling(options):
            session = open_onnx(artifact.path, options)
            feed = {INPUT: profiled_batch(artifact.input_shape)}
            for _ in range(WARMUP + RUNS):
                session.run(None, feed)
            events = json.loads(Path(session.end_profiling()).read_text())
        return operator_times(kernel_times(events), warmup=WARMUP)


@contextmanager
def _profiling(options: "SessionOptions") -> Iterator[Path]:
    """Let sessions of these options profile into a temporary folder."""
    options.enable_profiling = True
    with tempfile.TemporaryDirectory(prefix="edgeopt-") as folder:
        options.profile_file_prefix = str(Path(folder, "profile"))
        yield Path(folder)


def kernel_times(events: list[dict]) -> "pd.DataFrame":
    """Kernel times in an ONNX Runtime profile: a row per call, columns key, layer, op, ms."""
    import pandas as pd

    kernels = [
        {
            "key": event["args"]["node_index"],
            "layer": event["name"].removesuffix("_kernel_time"),
            "op": event["args"]["op_name"],
            "ms": event["dur"] / 1e3,
        }
        for event in events
        if event["cat"] == "Node" and event["name"].endswith("_kernel_time")
    ]
    return pd.DataFrame(kernels, columns=["key", "layer", "op", "ms"])


def _profile(artifact: Artifact, *, level: Any) -> tuple[list[dict[str, Any]], Sequence[Any]]:
    """Run one batch; return the facts of the executed kernels and the nodes of the graph."""
    import onnx

    options = session_options(threads=1)
    options.graph_optimization_level = level
    # Prepacked weights would be missing from the recorded shapes.
    options.add_session_config_entry("session.disable_prepacking", "1")
    with _profiling(options) as folder:
        options.optimized_model_filepath = str(folder / "optimised.onnx")
        session = open_onnx(artifact.path, options)
        session.run(None, {INPUT: np.zeros(artifact.input_shape, np.float32)})
        events = json.loads(Path(session.end_profiling()).read_text())
        nodes = onnx.load(options.optimized_model_filepath).graph.node
    executed = [e["args"] for e in events if "input_type_shape" in e.get("args", {})]
    return executed, nodes


def _all_macs(executed: Sequence[dict[str, Any]], nodes: Sequence[Any]) -> list[tuple[int, str]]:
    """MACs and precision of every kernel; what an Einsum does only its node tells."""
    einsums = (node for node in nodes if node.op_type == "Einsum")
    equations = (node.attribute[0].s.decode() for node in einsums)
    return [_macs(event, equations=equations) for event in executed]


def _macs(event: dict[str, Any], *, equations: Iterator[str]) -> tuple[int, str]:
    name = event["op_name"]
    kinds = [next(iter(entry), "") for entry in event["input_type_shape"]]
    inputs = [next(iter(entry.values()), []) for entry in event["input_type_shape"]]
    outputs = math.prod(next(iter(event["output_type_shape"][0].values())))
    if name in CONVOLUTIONS:
        count = outputs * math.prod(inputs[CONVOLUTIONS[name]][1:])
    elif name == "ConvTranspose":
        count = math.prod(inputs[0]) * math.prod(inputs[1][1:])
    elif name in PRODUCTS:
        count = outputs * inputs[0][-1]
    elif name in RECURRENT:
        count = math.prod(inputs[0][:2]) * sum(math.prod(inputs[at]) for at in RECURRENT[name])
    elif name == "Einsum":
        count = einsum_macs(next(equations), inputs)
    else:
        return 0, ""
    return count, INTEGER if name in INTEGER_OPERATORS else FLOATS.get(kinds[0], kinds[0])


def _operation(event: dict[str, Any], node: Any, macs: int, precision: str) -> Operation:
    kinds = [next(iter(entry.items())) for entry in event["output_type_shape"]]
    sizes = [
        np.dtype(NUMPY_TYPES.get(kind, kind)).itemsize * math.prod(shape) for kind, shape in kinds
    ]
    reads = tuple(node.input)
    writes = tuple(zip(filter(None, node.output), sizes, strict=True))
    overwrites = reads if node.op_type in IN_PLACE else ()
    return Operation(node.op_type, reads, writes, overwrites, macs, precision)
