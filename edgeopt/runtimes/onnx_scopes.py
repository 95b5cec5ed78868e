"""Which nodes of an ONNX graph belong to which module of the network it was exported from."""

from collections.abc import Collection, Iterator

from onnx import GraphProto, NodeProto

LAYER_OPERATORS = ("Conv", "Gemm", "MatMul")
_GATES = ("Sigmoid", "HardSigmoid")


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
