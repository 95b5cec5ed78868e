"""The operators that ONNX Runtime executes, from its profile and its optimised model."""

import json
import math
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from edgeopt.artifact import INPUT, OUTPUT, Artifact
from edgeopt.operations import FLOATS, INTEGER, Operation
from edgeopt.runtimes import onnx_session_options

# Position of the weight among the inputs of ONNX Runtime's convolutions; the products need none.
ONNX_CONVOLUTIONS = {"Conv": 1, "FusedConv": 1, "ConvInteger": 1, "QLinearConv": 3}
ONNX_INTEGER_PRODUCTS = (
    "QGemm",
    "MatMulInteger",
    "QLinearMatMul",
    "MatMulIntegerToFloat",
    "DynamicQuantizeMatMul",
)
ONNX_PRODUCTS = ("Gemm", "FusedGemm", "MatMul", "FusedMatMul", *ONNX_INTEGER_PRODUCTS)
ONNX_INTEGER = ("ConvInteger", "QLinearConv", *ONNX_INTEGER_PRODUCTS)
# What the kernels of the CPU provider declare MayInplace or Alias; QLinearAdd and -Mul do not.
ONNX_IN_PLACE = (
    *("Relu", "LeakyRelu", "Elu", "Selu", "Clip", "Sigmoid", "HardSigmoid", "HardSwish", "Tanh"),
    *("Gelu", "QuickGelu", "Add", "Sub", "Mul", "Div", "Cast"),
    *("Reshape", "Flatten", "Squeeze", "Unsqueeze", "Identity"),
)
ONNX_TYPES = {"float": "float32", "double": "float64", "bfloat16": "uint16"}


def onnxruntime_operations(artifact: Artifact) -> Iterator[Operation]:
    """Operators of the optimised graph; its float MACs are what the integers leave of the total.

    The optimised float convolutions pad their weights to whole vectors, so the total comes from
    the profile of the graph as it is in the file.
    """
    import onnxruntime

    levels = onnxruntime.GraphOptimizationLevel
    plain, _ = _onnx_profile(artifact, level=levels.ORT_DISABLE_ALL)
    executed, nodes = _onnx_profile(artifact, level=levels.ORT_ENABLE_ALL)
    if [event["op_name"] for event in executed] != [node.op_type for node in nodes]:
        raise RuntimeError(f"{artifact.title}: ONNX Runtime's profile and graph do not agree")
    counts = [_onnx_macs(event) for event in executed]
    floats = sorted({kind for macs, kind in counts if macs and kind != INTEGER})
    left = sum(macs for macs, _ in map(_onnx_macs, plain))
    left -= sum(macs for macs, kind in counts if kind == INTEGER)
    yield Operation(INPUT, writes=((INPUT, 4 * math.prod(artifact.input_shape)),))
    for event, node, count in zip(executed, nodes, counts, strict=True):
        yield _onnx_operation(event, node, *(count if count[1] == INTEGER else (0, "")))
    # Of several float types the widest is named: fp32 sorts behind the narrow ones.
    yield Operation("float", macs=left, precision=floats[-1] if floats else "")
    yield Operation("output", reads=(OUTPUT,))


def _onnx_profile(artifact: Artifact, *, level: Any) -> tuple[list[dict[str, Any]], Sequence[Any]]:
    """Run one batch; return the facts of the executed kernels and the nodes of the graph."""
    import onnx
    import onnxruntime

    options = onnx_session_options(threads=1)
    options.graph_optimization_level = level
    options.enable_profiling = True
    # Prepacked weights would be missing from the recorded shapes.
    options.add_session_config_entry("session.disable_prepacking", "1")
    with tempfile.TemporaryDirectory(prefix="edgeopt-") as folder:
        options.profile_file_prefix = str(Path(folder, "profile"))
        options.optimized_model_filepath = str(Path(folder, "optimised.onnx"))
        session = onnxruntime.InferenceSession(
            artifact.path, options, providers=["CPUExecutionProvider"]
        )
        session.run(None, {INPUT: np.zeros(artifact.input_shape, np.float32)})
        events = json.loads(Path(session.end_profiling()).read_text())
        nodes = onnx.load(options.optimized_model_filepath).graph.node
    executed = [e["args"] for e in events if "input_type_shape" in e.get("args", {})]
    return executed, nodes


def _onnx_macs(event: dict[str, Any]) -> tuple[int, str]:
    name = event["op_name"]
    kinds = [next(iter(entry), "") for entry in event["input_type_shape"]]
    inputs = [next(iter(entry.values()), []) for entry in event["input_type_shape"]]
    if name in ONNX_CONVOLUTIONS:
        depth = math.prod(inputs[ONNX_CONVOLUTIONS[name]][1:])
    elif name in ONNX_PRODUCTS:
        depth = inputs[0][-1]
    else:
        return 0, ""
    outputs = math.prod(next(iter(event["output_type_shape"][0].values())))
    return outputs * depth, INTEGER if name in ONNX_INTEGER else FLOATS.get(kinds[0], kinds[0])


def _onnx_operation(event: dict[str, Any], node: Any, macs: int, precision: str) -> Operation:
    kinds = [next(iter(entry.items())) for entry in event["output_type_shape"]]
    sizes = [
        np.dtype(ONNX_TYPES.get(kind, kind)).itemsize * math.prod(shape) for kind, shape in kinds
    ]
    reads = tuple(node.input)
    writes = tuple(zip(filter(None, node.output), sizes, strict=True))
    overwrites = reads if node.op_type in ONNX_IN_PLACE else ()
    return Operation(node.op_type, reads, writes, overwrites, macs, precision)
