"""How much of an artifact's arithmetic is integer, read from the graph that its runtime executes.

Counted are the multiply-accumulates of convolutions and matrix products; everything else in these
networks is a few per cent of the work.
"""

import json
import math
import re
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from edgeopt._upstream import import_extra, known_noise_silenced
from edgeopt.artifact import INPUT, Artifact
from edgeopt.quantization import quantized_engine
from edgeopt.runtimes import load_session, onnx_session_options
from edgeopt.schema import INT8_PRECISIONS

# Position of the weight among the inputs of ONNX Runtime's convolutions; the products need none.
ONNX_CONVOLUTIONS = {"Conv": 1, "FusedConv": 1, "ConvInteger": 1, "QLinearConv": 3}
ONNX_PRODUCTS = ("Gemm", "FusedGemm", "MatMul", "FusedMatMul")
ONNX_INTEGER_PRODUCTS = (
    "QGemm",
    "MatMulInteger",
    "QLinearMatMul",
    "MatMulIntegerToFloat",
    "DynamicQuantizeMatMul",
)
ONNX_INTEGER = ("ConvInteger", "QLinearConv", *ONNX_INTEGER_PRODUCTS)
OPENVINO_KINDS = ("Convolution", "Deconvolution", "FullyConnected", "MatMul")
TORCH_PRODUCTS = {"addmm": 1, "mm": 0, "bmm": 0, "matmul": 0}
TORCH_WEIGHTED = ("_convolution", "convolution", "conv2d", "linear", "mkldnn_convolution")
XNNPACK_WEIGHTED = ("XNNConv2d", "XNNDepthwiseConv2d", "XNNFullyConnected")
XNNPACK_PRODUCT = "XNNBatchMatrixMultiply"
EXECUTORCH_WEIGHTED = ("aten::convolution", "aten::linear")
EXECUTORCH_PRODUCTS = {"aten::addmm": 1, "aten::mm": 0, "aten::bmm": 0}


class LabelError(RuntimeError):
    """An artifact is not what its precision says."""


@dataclass(frozen=True)
class MacCount:
    """Multiply-accumulates of one executed operator, and whether it computes in integers."""

    operator: str
    macs: int
    integer: bool


def int8_mac_share(artifact: Artifact) -> float:
    """Share, 0 to 1, of the multiply-accumulates that the runtime executes in 8-bit integers."""
    counts = executed_macs(artifact)
    return sum(count.macs for count in counts if count.integer) / sum(c.macs for c in counts)


def verify_label(artifact: Artifact) -> float:
    """Return the int8 share; raise ``LabelError`` when an int8 artifact computes in float."""
    share = int8_mac_share(artifact)
    if artifact.precision in INT8_PRECISIONS and share == 0:
        raise LabelError(f"{artifact.title} computes no MAC in integers: it is not int8")
    return share


def executed_macs(artifact: Artifact) -> list[MacCount]:
    """Every convolution and matrix product that the runtime executes for one batch."""
    counts = list(_READERS[artifact.runtime](artifact))
    if not sum(count.macs for count in counts):
        raise LabelError(f"{artifact.title} executes no convolution and no matrix product")
    return counts


def _torch_macs(artifact: Artifact) -> list[MacCount]:
    with known_noise_silenced():
        session = load_session(artifact)
    with quantized_engine(), _TorchMacs() as recorded:
        session(np.zeros(artifact.input_shape, np.float32))
    return recorded.counts


class _TorchMacs(TorchDispatchMode):
    """Sees every operator that the TorchScript interpreter calls, packed int8 ones included."""

    def __init__(self) -> None:
        super().__init__()
        self.counts: list[MacCount] = []

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        name = func._opname
        if func.namespace == "quantized" and isinstance(args[1], torch.ScriptObject):
            weight = args[1].unpack()[0]
            macs = result.numel() * math.prod(weight.shape[1:])
            self.counts.append(MacCount(name, macs, integer=True))
        elif func.namespace == "aten" and name in TORCH_WEIGHTED:
            macs = result.numel() * math.prod(args[1].shape[1:])
            self.counts.append(MacCount(name, macs, integer=False))
        elif func.namespace == "aten" and name in TORCH_PRODUCTS:
            macs = result.numel() * args[TORCH_PRODUCTS[name]].shape[-1]
            self.counts.append(MacCount(name, macs, integer=False))
        return result


def _onnxruntime_macs(artifact: Artifact) -> list[MacCount]:
    """Integer operators from the optimised graph's profile, all others as what is left.

    The optimised float convolutions pad their weights to whole vectors, so the total comes from
    the profile of the graph as it is in the file.
    """
    import onnxruntime

    levels = onnxruntime.GraphOptimizationLevel
    total = sum(c.macs for c in _onnx_profile(artifact, level=levels.ORT_DISABLE_ALL))
    optimised = _onnx_profile(artifact, level=levels.ORT_ENABLE_ALL)
    integer = [count for count in optimised if count.integer]
    left = total - sum(count.macs for count in integer)
    return [*integer, MacCount("float", left, integer=False)] if left else integer


def _onnx_profile(artifact: Artifact, *, level: Any) -> list[MacCount]:
    import onnxruntime

    options = onnx_session_options(threads=1)
    options.graph_optimization_level = level
    options.enable_profiling = True
    # Prepacked weights would be missing from the recorded shapes.
    options.add_session_config_entry("session.disable_prepacking", "1")
    with tempfile.TemporaryDirectory(prefix="edgeopt-") as folder:
        options.profile_file_prefix = str(Path(folder, "profile"))
        session = onnxruntime.InferenceSession(
            artifact.path, options, providers=["CPUExecutionProvider"]
        )
        session.run(None, {INPUT: np.zeros(artifact.input_shape, np.float32)})
        events = json.loads(Path(session.end_profiling()).read_text())
    executed = (e["args"] for e in events if "input_type_shape" in e.get("args", {}))
    return [count for arguments in executed for count in _onnx_node_macs(arguments)]


def _onnx_node_macs(arguments: dict[str, Any]) -> Iterator[MacCount]:
    name = arguments["op_name"]
    inputs = [next(iter(entry.values()), []) for entry in arguments["input_type_shape"]]
    outputs = math.prod(next(iter(arguments["output_type_shape"][0].values())))
    if name in ONNX_CONVOLUTIONS:
        depth = math.prod(inputs[ONNX_CONVOLUTIONS[name]][1:])
    elif name in ONNX_PRODUCTS or name in ONNX_INTEGER_PRODUCTS:
        depth = inputs[0][-1]
    else:
        return
    yield MacCount(name, outputs * depth, integer=name in ONNX_INTEGER)


def _openvino_macs(artifact: Artifact) -> Iterator[MacCount]:
    session = load_session(artifact)
    for node in session.compiled.get_runtime_model().get_ordered_ops():
        facts = node.get_rt_info()
        kind = facts["layerType"].astype(str)
        if kind not in OPENVINO_KINDS:
            continue
        outputs = list(node.output(0).get_shape())
        inputs = [list(port.get_shape()) for port in node.inputs()]
        if kind in ("FullyConnected", "MatMul"):
            depth = inputs[0][-1]
        else:
            depth = math.prod(inputs[1]) // outputs[1]
        precision = facts["runtimePrecision"].astype(str)
        yield MacCount(kind, math.prod(outputs) * depth, integer=precision in ("u8", "i8"))


def _executorch_macs(artifact: Artifact) -> Iterator[MacCount]:
    """Operators inside the XNNPACK delegates, and those left to ExecuTorch's float kernels."""
    program = import_extra("executorch.exir._serialize._program", extra="executorch")
    with known_noise_silenced():
        file = program.deserialize_pte_binary(artifact.path.read_bytes())
    plan = next(plan for plan in file.program.execution_plan if plan.name == "forward")
    for delegate in plan.delegates:
        payload = file.program.backend_delegate_data[delegate.processed.index].data
        yield from _xnnpack_macs(_xnnpack_graph(payload))
    for instruction in plan.chains[0].instructions:
        call = instruction.instr_args
        if hasattr(call, "op_index"):
            values = [plan.values[index].val for index in call.args]
            yield from _portable_macs(plan.operators[call.op_index].name, values)


def _portable_macs(name: str, values: Sequence[Any]) -> Iterator[MacCount]:
    if name in EXECUTORCH_WEIGHTED:
        depth = math.prod(values[1].sizes[1:])
    elif name in EXECUTORCH_PRODUCTS:
        depth = values[EXECUTORCH_PRODUCTS[name]].sizes[-1]
    else:
        return
    yield MacCount(name, math.prod(values[-1].sizes) * depth, integer=False)


def _xnnpack_graph(payload: bytes) -> dict[str, Any]:
    flatbuffer = import_extra("executorch.exir._serialize._flatbuffer", extra="executorch")
    serializer = import_extra(
        "executorch.backends.xnnpack.serialization.xnnpack_graph_serialize", extra="executorch"
    )
    header = serializer.XNNHeader.from_bytes(payload[: serializer.XNNHeader.EXPECTED_LENGTH])
    end = header.flatbuffer_offset + header.flatbuffer_size
    with tempfile.TemporaryDirectory(prefix="edgeopt-") as folder:
        schema, binary = Path(folder, "schema.fbs"), Path(folder, "graph.bin")
        schema.write_bytes(serializer._get_schema_bytes())
        binary.write_bytes(payload[header.flatbuffer_offset : end])
        flatbuffer._flatc_decompile(folder, str(schema), str(binary), ["--raw-binary"])
        text = binary.with_suffix(".json").read_text()
    # flatc writes the open upper bound of a ReLU as a bare inf, which is not JSON.
    return json.loads(re.sub(r"(?<=: )(-?)inf\b", r"\1Infinity", text))


def _xnnpack_macs(graph: dict[str, Any]) -> Iterator[MacCount]:
    values = {}
    for entry in graph["xvalues"]:
        value = entry["xvalue_union"]
        tensor = value.get("tensor_value", value)
        values[tensor["id_out"]] = tensor
    for entry in graph["xnodes"]:
        kind, node = entry["xnode_union_type"], entry["xnode_union"]
        if kind not in (*XNNPACK_WEIGHTED, XNNPACK_PRODUCT):
            continue
        first, output = values[node["input1_id"]], values[node["output_id"]]
        if kind == XNNPACK_PRODUCT:
            operands, depth = (first, values[node["input2_id"]]), first["dims"][-1]
        else:
            weight = values[node["filter_id"]]
            operands = (first, weight)
            depth = math.prod(weight["dims"]) // output["dims"][-1]  # channels are last
        integer = all(re.search(r"_q\w*int\d", operand["datatype"]) for operand in operands)
        yield MacCount(kind, math.prod(output["dims"]) * depth, integer=integer)


_READERS: dict[str, Any] = {
    "torch": _torch_macs,
    "onnxruntime": _onnxruntime_macs,
    "openvino": _openvino_macs,
    "executorch": _executorch_macs,
}
