"""The graph that a runtime executes: its operators in order, their tensors and arithmetic."""

import math
from collections.abc import Callable, Iterable, Iterator
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from edgeopt._upstream import known_noise_silenced
from edgeopt.artifact import Artifact
from edgeopt.executed_executorch import executorch_operations
from edgeopt.executed_onnx import onnxruntime_operations
from edgeopt.operations import FLOATS, INTEGER, Operation
from edgeopt.quantization import quantized_engine
from edgeopt.runtimes import load_session

OPENVINO_PRODUCTS = ("FullyConnected", "MatMul")
OPENVINO_CONVOLUTIONS = ("Convolution", "Deconvolution")
OPENVINO_IN_PLACE = ("Eltwise", "Subgraph", "Reshape")
TORCH_PRODUCTS = {"addmm": 1, "mm": 0, "bmm": 0, "matmul": 0}
TORCH_WEIGHTED = ("_convolution", "convolution", "conv2d", "linear", "mkldnn_convolution")
# Elementwise, yet without torch's tag for it: batch norm, some activations, the quantized ones.
TORCH_ELEMENTWISE = (
    *("batch_norm", "native_batch_norm", "hardswish", "relu6", "prelu", "_prelu_kernel"),
    *("selu", "celu", "add", "add_relu", "mul", "sigmoid", "elu", "leaky_relu"),
)


@lru_cache(maxsize=1)
def executed_graph(artifact: Artifact) -> tuple[Operation, ...]:
    """Return the operators that the runtime executes for one batch, input first, output last.

    Read from what each runtime tells of itself: torch's dispatcher, ONNX Runtime's profile and
    optimised model, OpenVINO's runtime model, the XNNPACK graphs in an ExecuTorch program.
    """
    return tuple(_READERS[artifact.runtime](artifact))


def eager_graph(model: nn.Module, images: Tensor) -> list[Operation]:
    """Return the operators that torch executes for one batch, a module's or a TorchScript's."""
    recorder = _TorchRecorder()
    with torch.inference_mode(), recorder:
        outputs = _storages(model(images))
    first = Operation("input", writes=tuple(_storages(images).items()))
    return [first, *recorder.operations, Operation("output", reads=tuple(outputs))]


def _torch_operations(artifact: Artifact) -> list[Operation]:
    with known_noise_silenced():
        script = torch.jit.load(artifact.path, map_location="cpu")
    images = torch.zeros(artifact.input_shape, dtype=_float_type(script))
    with quantized_engine():
        return eager_graph(script, images)


def _float_type(script: torch.jit.ScriptModule) -> torch.dtype:
    """Type of the file's float weights, whatever its label; float32 when it has none."""
    graph = script.inlined_graph  # its nodes die with it
    constants = [node.output().toIValue() for node in graph.findAllNodes("prim::Constant")]
    weights = [v for v in (*script.parameters(), *constants) if isinstance(v, Tensor) and v.dim()]
    return next((w.dtype for w in weights if w.is_floating_point()), torch.float32)


class _TorchRecorder(TorchDispatchMode):
    """Sees every operator that torch calls, packed int8 ones included."""

    def __init__(self) -> None:
        super().__init__()
        self.operations: list[Operation] = []
        self._held: list[Any] = []  # so that an address stays that of one tensor

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        self._held.append(result)
        reads = tuple(_storages((args, kwargs)))
        elementwise = torch.Tag.pointwise in func.tags or func._opname in TORCH_ELEMENTWISE
        self.operations.append(
            Operation(
                func._opname,
                reads,
                tuple(_storages(result).items()),
                reads if elementwise else (),
                *_torch_macs(func, args, result),
            )
        )
        return result


def _storages(values: Any) -> dict[int, int]:
    tensors = [leaf for leaf in tree_leaves(values) if isinstance(leaf, Tensor)]
    storages = [tensor.untyped_storage() for tensor in tensors]
    return {storage.data_ptr(): storage.nbytes() for storage in storages}


def _torch_macs(func: Any, args: tuple, result: Any) -> tuple[int, str]:
    name = func._opname
    if func.namespace == "quantized" and any(isinstance(a, torch.ScriptObject) for a in args[1:2]):
        return result.numel() * math.prod(args[1].unpack()[0].shape[1:]), INTEGER
    if func.namespace == "aten" and name in TORCH_WEIGHTED:
        weight, depth = args[1], math.prod(args[1].shape[1:])
    elif func.namespace == "aten" and name in TORCH_PRODUCTS:
        weight = args[TORCH_PRODUCTS[name]]
        depth = weight.shape[-1]
    else:
        return 0, ""
    return result.numel() * depth, FLOATS.get(weight.dtype, str(weight.dtype))


def _openvino_operations(artifact: Artifact) -> Iterator[Operation]:
    """Operators of the runtime model, without those that constants alone feed."""
    constant = set()
    for node in load_session(artifact).compiled.get_runtime_model().get_ordered_ops():
        kind = node.get_rt_info()["layerType"].astype(str)
        sources = [port.get_source_output() for port in node.inputs()]
        reads = tuple(_openvino_key(s) for s in sources if s.get_node().get_name() not in constant)
        if kind == "Const" or (sources and not reads):
            constant.add(node.get_name())
            continue
        writes = tuple(
            (_openvino_key(port), port.get_element_type().size * math.prod(port.get_shape()))
            for port in (node.outputs() if kind != "Output" else ())
        )
        overwrites = _openvino_overwrites(kind, reads)
        yield Operation(kind, reads, writes, overwrites, *_openvino_macs(node, kind))


def _openvino_key(port: Any) -> tuple[str, int]:
    return port.get_node().get_name(), port.get_index()


def _openvino_overwrites(kind: str, reads: tuple) -> tuple:
    if kind in OPENVINO_CONVOLUTIONS:
        return reads[1:]  # the summand of a fused addition, whose memory gets the sum
    return reads if kind in OPENVINO_IN_PLACE else ()


def _openvino_macs(node: Any, kind: str) -> tuple[int, str]:
    if kind not in (*OPENVINO_CONVOLUTIONS, *OPENVINO_PRODUCTS):
        return 0, ""
    outputs = list(node.output(0).get_shape())
    inputs = [list(port.get_shape()) for port in node.inputs()]
    product = kind in OPENVINO_PRODUCTS
    depth = inputs[0][-1] if product else math.prod(inputs[1]) // outputs[1]
    precision = node.get_rt_info()["runtimePrecision"].astype(str)
    integer = precision in ("u8", "i8")
    return math.prod(outputs) * depth, INTEGER if integer else FLOATS.get(precision, precision)


_READERS: dict[str, Callable[[Artifact], Iterable[Operation]]] = {
    "torch": _torch_operations,
    "onnxruntime": onnxruntime_operations,
    "openvino": _openvino_operations,
    "executorch": executorch_operations,
}
