"""Static int8 ONNX graphs, tensor by tensor: what is quantized, how, and what stays in float."""

import copy
import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
from onnx import ModelProto, NodeProto, numpy_helper
from onnxruntime.quantization.quant_utils import QUANT_INPUT_SUFFIX
from torch import nn

from edgeopt.runtimes.contract import DEFAULT_OPTIONS, INPUT
from edgeopt.runtimes.onnx_files import prepare_for_quantizer, write_onnx
from edgeopt.runtimes.parity import TOLERANCE

LAYER_OPERATORS = ("Conv", "Gemm", "MatMul")
_GATES = ("Sigmoid", "HardSigmoid")


@dataclass(frozen=True, eq=False)
class Quantizer:
    """How one activation tensor goes through the integers.

    ``zero_point`` carries their type, ``parameters`` names the constants that hold the two, and
    ``result`` the tensor of the int8 graph that comes out.
    """

    scale: np.ndarray
    zero_point: np.ndarray
    parameters: tuple[str, str]
    result: str

    @property
    def bounds(self) -> tuple[float, float]:
        """Smallest and largest value that the integers can stand for."""
        limits = np.iinfo(self.zero_point.dtype)
        low, high = (
            (limit - float(self.zero_point)) * float(self.scale)
            for limit in (limits.min, limits.max)
        )
        return low, high

    def rounded(self, values: np.ndarray) -> np.ndarray:
        """``values`` after a trip through the integers."""
        steps = np.rint(np.clip(values, *self.bounds) / self.scale)
        return (steps * self.scale).astype(np.float32)


def prepared_fp32(model: nn.Module, *, input_shape: tuple[int, ...]) -> ModelProto:
    """Fp32 ONNX graph of ``model`` as the quantizer sees it, with the tensor names it keeps."""
    with tempfile.TemporaryDirectory(prefix="edgeopt-") as folder:
        exported, prepared = Path(folder, "fp32.onnx"), Path(folder, "prepared.onnx")
        write_onnx(
            copy.deepcopy(model).cpu().eval(),
            exported,
            precision="fp32",
            input_shape=input_shape,
            calibration=(),
            tolerance=TOLERANCE,
            options=DEFAULT_OPTIONS,
        )
        prepare_for_quantizer(exported, prepared)
        return onnx.load(prepared)


def read_quantizers(int8: ModelProto) -> dict[str, Quantizer]:
    """Quantizer of every activation tensor, by the name that the tensor has in the fp32 graph."""
    constants = _constants(int8)
    results = {node.input[0]: node.output[0] for node in int8.graph.node if _dequantizes(node)}
    return {
        node.input[0].removesuffix(QUANT_INPUT_SUFFIX): Quantizer(
            *(numpy_helper.to_array(constants[name]) for name in node.input[1:]),
            tuple(node.input[1:]),
            results[node.output[0]],
        )
        for node in int8.graph.node
        if node.op_type == "QuantizeLinear" and node.input[0] not in constants
    }


def quantize_only(
    fp32: ModelProto, int8: ModelProto, tensor: str, quantizer: Quantizer
) -> ModelProto:
    """Fp32 graph in which one activation tensor and the weights that multiply it are quantized."""
    partial = copy.deepcopy(fp32)
    weights = {name for node in readers(fp32, tensor) for name in node.input if name != tensor}
    for constant in partial.graph.initializer:
        if constant.name in weights:
            constant.CopyFrom(_through_integers(int8, constant))
    partial.graph.initializer.extend(_constants(int8)[name] for name in quantizer.parameters)
    before = f"{tensor}/before"
    place = _rename_source(partial, tensor, before)
    for offset, (operator, source, result) in enumerate(
        [
            ("QuantizeLinear", before, f"{tensor}/integers"),
            ("DequantizeLinear", f"{tensor}/integers", tensor),
        ]
    ):
        node = onnx.helper.make_node(operator, [source, *quantizer.parameters], [result])
        partial.graph.node.insert(place + offset, node)
    return partial


def source_layer(fp32: ModelProto, tensor: str) -> NodeProto | None:
    """Convolution or product whose output channels are those of ``tensor``; None for the input."""
    makers = {name: node for node in fp32.graph.node for name in node.output}
    node = makers.get(tensor)
    while node is not None and node.op_type not in LAYER_OPERATORS:
        inputs = [name for name in node.input if name in makers or name == INPUT]
        # A gate scales the channels of what it gates; it does not own them.
        owners = [n for n in inputs if n == INPUT or makers[n].op_type not in _GATES] or inputs
        node = makers.get(owners[0]) if owners else None
    return node


def layer_name(node: NodeProto | None) -> str:
    """Return the module path of a layer's node: ``/features/features.0/Conv`` is ``features.0``."""
    if node is None:
        return INPUT
    parts: list[str] = []
    for scope in node.name.strip("/").split("/")[:-1]:
        if parts and scope.startswith(f"{parts[-1]}."):
            parts.pop()
        parts.append(scope)
    return ".".join(parts) or node.name


def layer_width(fp32: ModelProto, node: NodeProto | None) -> int | None:
    """Output channels of a layer, where its weight is a constant."""
    weight = _constants(fp32).get(node.input[1]) if node is not None else None
    if weight is None:
        return None
    transposed = any(a.name == "transB" and a.i for a in node.attribute)
    return weight.dims[0 if node.op_type == "Conv" or transposed else -1]


def readers(fp32: ModelProto, tensor: str) -> list[NodeProto]:
    """Nodes that take ``tensor`` as an input."""
    return [node for node in fp32.graph.node if tensor in node.input]


def nodes_around(fp32: ModelProto, layer: str) -> set[str]:
    """Nodes that write or read any tensor with the channels of ``layer``."""
    names = {name for node in fp32.graph.node for name in (*node.input, *node.output)}
    touched = {n for n in names if layer_name(source_layer(fp32, n)) == layer}
    return {node.name for node in fp32.graph.node if touched & {*node.input, *node.output}}


def _through_integers(int8: ModelProto, constant: onnx.TensorProto) -> onnx.TensorProto:
    """Return a weight as its int8 form stands for it; a weight that stayed in float as it is."""
    constants = _constants(int8)
    for node in int8.graph.node:
        if _dequantizes(node) and node.input[0] == f"{constant.name}_quantized":
            values, scale, zero = (numpy_helper.to_array(constants[n]) for n in node.input)
            axis = next((a.i for a in node.attribute if a.name == "axis"), 1)
            shape = [-1 if i == axis and scale.size > 1 else 1 for i in range(values.ndim)]
            steps = values.astype(np.float32) - zero.reshape(shape).astype(np.float32)
            real = (steps * scale.reshape(shape)).astype(np.float32)
            return numpy_helper.from_array(real, constant.name)
    return constant


def _rename_source(model: ModelProto, tensor: str, name: str) -> int:
    """Let what makes ``tensor`` write ``name``; return the place of the next node."""
    for entry in model.graph.input:
        if entry.name == tensor:
            entry.name = name
            return 0
    for place, node in enumerate(model.graph.node):
        if tensor in node.output:
            node.output[list(node.output).index(tensor)] = name
            return place + 1
    raise ValueError(f"tensor {tensor!r} is not in the fp32 graph")


def _dequantizes(node: NodeProto) -> bool:
    return node.op_type == "DequantizeLinear"


def _constants(model: ModelProto) -> dict[str, onnx.TensorProto]:
    return {constant.name: constant for constant in model.graph.initializer}
