"""Which nodes of an ONNX graph belong to which module of the network it was exported from."""

import copy
from collections.abc import Collection, Iterator
from pathlib import Path

import onnx
from onnx import GraphProto, NodeProto
from torch import fx, nn

LAYER_OPERATORS = ("Conv", "Gemm", "MatMul")
_GATES = ("Sigmoid", "HardSigmoid")
_DOT = "|"  # in the place of a dot, which no name of an attribute has


def flat(model: nn.Module) -> nn.Module:
    """Return a network that torch.onnx exports with the whole path of each module in node names.

    It names by the last part of the path, and by the modules that are called around it; in a
    ``GraphModule`` there are none. Each is one of its own attributes here, until
    :func:`name_by_path`. Other networks are returned as they are.
    """
    if not isinstance(model, fx.GraphModule):
        return model
    changed = copy.deepcopy(model)
    for node in changed.graph.nodes:
        if node.op == "call_module":
            module, node.target = model.get_submodule(node.target), node.target.replace(".", _DOT)
            changed.add_module(node.target, module)
    changed.recompile()
    return changed


def name_by_path(path: Path) -> None:
    """Give the nodes and tensors of a file the names of modules that :func:`flat` changed."""
    model = onnx.load(path)
    graph = model.graph
    for node in graph.node:
        node.name = node.name.replace(_DOT, ".")
        for names in (node.input, node.output):
            names[:] = [name.replace(_DOT, ".") for name in names]
    for tensor in (*graph.initializer, *graph.value_info):
        tensor.name = tensor.name.replace(_DOT, ".")
    onnx.save(model, path)


def nodes_of_modules(graph: GraphProto, modules: Collection[str]) -> set[str]:
    """Names of the nodes inside modules, those that ONNX Runtime took a function apart into too."""
    readers: dict[str, list[NodeProto]] = {}
    for node in graph.node:
        for name in node.input:
            readers.setdefault(name, []).append(node)

    def inside(node: NodeProto) -> bool:
        scopes = [_module_path(name) for name in (node.name, *node.output) if name.startswith("/")]
        if not scopes:  # made by the preprocessing: it belongs where its result goes
            users = [user for name in node.output for user in readers.get(name, ())]
            return bool(users) and all(inside(user) for user in users)
        return any(scopes[0] == name or scopes[0].startswith(f"{name}.") for name in modules)

    return {node.name for node in graph.node if inside(node)}


def nodes_around(graph: GraphProto, layer: str) -> set[str]:
    """Names of the nodes that write or read any tensor with the channels of a layer."""
    makers = {name: node for node in graph.node for name in node.output}
    touched = {
        name for name in makers for owner in _owners(name, makers) if _layer_name(owner) == layer
    }
    return {node.name for node in graph.node if touched & {*node.input, *node.output}}


def _owners(tensor: str, makers: dict[str, NodeProto]) -> Iterator[NodeProto]:
    """Convolution or product whose output channels are those of a tensor; none for the input."""
    node = makers.get(tensor)
    while node is not None and node.op_type not in LAYER_OPERATORS:
        inputs = [name for name in node.input if name in makers]
        # A gate scales the channels of what it gates; it does not own them.
        owners = [name for name in inputs if makers[name].op_type not in _GATES] or inputs
        node = makers.get(owners[0]) if owners else None
    if node is not None:
        yield node


def _layer_name(node: NodeProto) -> str:
    return _module_path(node.name) or node.name


def _module_path(name: str) -> str:
    """``/features/features.0/Conv`` is ``features.0``."""
    parts: list[str] = []
    for scope in name.strip("/").split("/")[:-1]:
        if parts and scope.startswith(f"{parts[-1]}."):
            parts.pop()
        parts.append(scope)
    return ".".join(parts)
