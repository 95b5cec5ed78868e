"""What a model or artifact occupies in weights, in bytes."""

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

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
