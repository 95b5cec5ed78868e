"""What a model or artifact occupies: bytes of weights and of peak activations."""

import copy
from collections import Counter
from collections.abc import Iterator
from itertools import accumulate
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, fx, nn
from torch.utils._pytree import tree_leaves

from edgeopt._upstream import import_extra, known_noise_silenced
from edgeopt.energy import energy_model_j, energy_proxy_j, measured_energy_unavailable
from edgeopt.schema import RUNTIMES, require_known

if TYPE_CHECKING:
    from edgeopt.artifact import Artifact

__all__ = [
    "artifact_weight_bytes",
    "energy_model_j",
    "energy_proxy_j",
    "measured_energy_unavailable",
    "peak_activation_bytes",
    "weight_bytes",
]


def weight_bytes(model: nn.Module) -> int:
    """Bytes of everything the model holds between two calls, shared tensors counted once.

    Parameters, buffers and the packed weights of quantized torch modules, which no
    ``state_dict`` shows as tensors: int8 values, float bias, and per-channel scales (8 bytes
    each) and zero points (8 bytes each). Takes a TorchScript module too, frozen or not.
    """
    held: dict[tuple[int, int], int] = {}
    for tensor in (*model.parameters(), *model.buffers(), *_script_constants(model)):
        held[tensor.data_ptr() or id(tensor), tensor.nbytes] = tensor.nbytes
    return sum(held.values()) + sum(map(_packed_bytes, _packed_objects(model)))


def artifact_weight_bytes(artifact: "Artifact") -> int:
    """Bytes of the tensors stored in an artifact, as they lie in the file.

    ONNX: initializers and constant nodes, int8 values and scales as they are. TorchScript: see
    ``weight_bytes``. ExecuTorch: constant and named data, the delegates' weights among them. A
    runtime that repacks or casts weights on loading (OpenVINO in bf16) holds other numbers.
    """
    require_known(artifact.runtime, allowed=RUNTIMES, what="runtime")
    if artifact.runtime == "torch":
        with known_noise_silenced():
            return weight_bytes(torch.jit.load(artifact.path, map_location="cpu"))
    if artifact.runtime == "executorch":
        return _pte_weight_bytes(artifact.path)
    return _onnx_weight_bytes(artifact.path)


def peak_activation_bytes(model: nn.Module, *, input_shape: tuple[int, ...]) -> int:
    """Largest sum of activation bytes that are needed at the same time, input included.

    A tensor lives from the node that makes it to the last node that reads it, in the order of
    the torch.fx graph; views and in-place results share the storage of their source and count
    once. Scratch memory inside an operator is not included. ``input_shape`` has a batch size.
    Raises ``ValueError`` when torch.fx cannot trace the model.
    """
    try:
        graph_module = fx.symbolic_trace(copy.deepcopy(model).eval())
    except fx.proxy.TraceError as error:
        raise ValueError(f"{type(model).__name__} cannot be traced by torch.fx: {error}") from error
    recorder = _StorageRecorder(graph_module, garbage_collect_values=False)
    with torch.no_grad():
        recorder.run(torch.zeros(input_shape, dtype=_float_dtype(model)))
    return _peak_of_lifetimes(recorder.storages)


def _packed_objects(model: nn.Module) -> Iterator[torch.ScriptObject]:
    for module in model.modules():
        packed = getattr(module, "_packed_params", None)
        if isinstance(packed, torch.ScriptObject):
            yield packed
    yield from (value for value in _graph_constants(model) if isinstance(value, torch.ScriptObject))


def _packed_bytes(packed: torch.ScriptObject) -> int:
    weight, bias = packed.unpack()
    if weight.qscheme() in (torch.per_channel_affine, torch.per_channel_affine_float_qparams):
        scheme = weight.q_per_channel_scales().nbytes + weight.q_per_channel_zero_points().nbytes
    else:
        scheme = 8 + 8  # one double scale, one int64 zero point
    return weight.numel() * weight.element_size() + scheme + (0 if bias is None else bias.nbytes)


def _script_constants(model: nn.Module) -> list[Tensor]:
    return [value for value in _graph_constants(model) if isinstance(value, Tensor)]


def _graph_constants(model: nn.Module) -> list[Any]:
    # torch.jit.freeze turns parameters and packed weights into constants of the graph
    if not isinstance(model, torch.jit.ScriptModule):
        return []
    graph = model.inlined_graph  # its nodes die with it
    return [node.output().toIValue() for node in graph.findAllNodes("prim::Constant")]


def _onnx_weight_bytes(path: Path) -> int:
    import onnx

    graph = onnx.load(path).graph
    constants = (a.t for node in graph.node for a in node.attribute if a.HasField("t"))
    return sum(onnx.numpy_helper.to_array(t).nbytes for t in (*graph.initializer, *constants))


def _pte_weight_bytes(path: Path) -> int:
    program = import_extra("executorch.exir._serialize._program", extra="executorch")
    with known_noise_silenced():
        file = program.deserialize_pte_binary(Path(path).read_bytes())
    named = file.named_data.buffers if file.named_data else []
    return sum(len(entry.storage) for entry in file.program.constant_buffer) + sum(map(len, named))


class _StorageRecorder(fx.Interpreter):
    """Runs a graph and notes which storages (address -> bytes) each node returns."""

    def __init__(self, module: fx.GraphModule, **options: Any) -> None:
        super().__init__(module, **options)
        weights = (*module.parameters(), *module.buffers())
        self.weights = {tensor.untyped_storage().data_ptr() for tensor in weights}
        self.storages: dict[fx.Node, dict[int, int]] = {}

    def run_node(self, n: fx.Node) -> Any:
        result = super().run_node(n)
        tensors = [leaf for leaf in tree_leaves(result) if isinstance(leaf, Tensor)]
        found = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in tensors}
        self.storages[n] = {key: size for key, size in found.items() if key not in self.weights}
        return result


def _peak_of_lifetimes(storages: dict[fx.Node, dict[int, int]]) -> int:
    position = {node: index for index, node in enumerate(storages)}
    size, first, last = {}, {}, Counter()
    for node, buffers in storages.items():
        for key, count in buffers.items():
            size[key] = count
            first.setdefault(key, position[node])
            last[key] = max(last[key], position[node], *(position[user] for user in node.users))
    change = Counter()
    for key, count in size.items():
        change[first[key]] += count
        change[last[key] + 1] -= count
    return max(accumulate(change[index] for index in range(len(storages))))


def _float_dtype(model: nn.Module) -> torch.dtype:
    floats = (p.dtype for p in model.parameters() if p.is_floating_point())
    return next(floats, torch.float32)
