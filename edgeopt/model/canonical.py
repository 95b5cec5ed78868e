"""The form of a network that every rewrite starts from: layers as modules, BatchNorms folded."""

import copy
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn import functional
from torch.nn.utils.fusion import fuse_conv_bn_eval, fuse_linear_bn_eval

from edgeopt.model.exported import exported
from edgeopt.model.tracing import submodule_of, torch_class, trace

Values = Mapping[str, Any]


def layers_as_modules(model: nn.Module, *, example: Tensor | None = None) -> nn.Module:
    """Return a copy in eval mode whose convolutions, linear layers and BatchNorms are modules.

    A ``forward`` may call ``functional.batch_norm`` with its own parameters, as timm's
    ``BatchNormAct2d`` does, or compute a convolution's weights from others (weight
    standardization, arXiv:1903.10520). Such a call becomes a module, whose weights are what they
    are now; the copy is then a ``torch.fx.GraphModule``. Weights that several calls share stay.
    A layer of a class derived from torch's that changes nothing is of torch's class there.

    Parameters
    ----------
    example : Tensor, optional
        Images [N, C, H, W]. With them a network that torch.fx cannot trace, because its code asks
        for sizes, is traced by torch.export.

    Raises
    ------
    ValueError
        When the network cannot be traced.
    """
    own = copy.deepcopy(model).eval()
    for name, module in [*own.named_modules()][1:]:
        if (plain := torch_class(module)) is not type(module):
            own.set_submodule(name, _of_class(module, plain))
    try:
        graph = trace(own)
    except ValueError:
        if example is None:
            raise
        traced = exported(own, example=example)
    else:
        if not any(node.target in _LAYERS for node in graph.nodes):
            return own
        traced = fx.GraphModule(own, graph, class_name=type(model).__name__)
    return _with_modules(traced, owners=own)


def _of_class(module: nn.Module, plain: type) -> nn.Module:
    """Return a module as its parent's class, for tools that ask for a class and no other."""
    changed = plain.__new__(plain)
    changed.__dict__ = module.__dict__
    return changed


def _with_modules(traced: fx.GraphModule, *, owners: nn.Module) -> fx.GraphModule:
    graph, constants = traced.graph, _constants(traced)
    for node in [n for n in graph.nodes if n.target in _LAYERS and n not in constants]:
        names, make = _LAYERS[node.target]
        given = dict(zip(names, node.args, strict=False)) | node.kwargs
        hidden = given.pop("input")
        values = {name: _value(argument, constants) for name, argument in given.items()}
        attributes = _attributes(graph, node, hidden)
        if attributes and fx.Node not in map(type, values.values()):
            owner = attributes[0].rpartition(".")[0]
            if layer := make(values, owners.get_submodule(owner)):
                _replace(traced, node, hidden, layer, name=f"{owner}.{node.name}".lstrip("."))
    graph.eliminate_dead_code()
    return fx.GraphModule(traced, graph, class_name=type(owners).__name__).eval()


def fold_batch_norm(model: nn.Module, *, example: Tensor | None = None) -> nn.Module:
    """Return a copy in eval mode with each BatchNorm folded into the layer before it.

    Its layers are those of :func:`layers_as_modules`, which takes ``example`` and raises too.
    """
    folded = layers_as_modules(model, example=example)
    graph = trace(folded)
    calls = Counter(node.target for node in graph.nodes if node.op == "call_module")
    for node in graph.nodes:
        norm = submodule_of(folded, node)
        is_norm = isinstance(norm, nn.modules.batchnorm._BatchNorm) and norm.track_running_stats
        before = node.args[0] if is_norm else None
        layer = submodule_of(folded, before)
        if isinstance(layer, (nn.Conv2d, nn.Linear)) and (
            len(_readers(before)) == 1 and calls[before.target] == 1
        ):
            fuse = fuse_linear_bn_eval if isinstance(layer, nn.Linear) else fuse_conv_bn_eval
            folded.set_submodule(before.target, fuse(layer, norm))
            folded.set_submodule(node.target, nn.Identity())
    return folded


def _readers(node: fx.Node) -> list[fx.Node]:
    """Nodes that read the values of another, not its size alone."""
    sizes = ("size", "dim", "ndim", "shape")
    return [u for u in node.users if not any(word in sizes for word in (u.target, *u.args[1:2]))]


def _constants(traced: fx.GraphModule) -> dict[fx.Node, Any]:
    """Values of the nodes that the input does not reach."""
    found: dict[fx.Node, Any] = {}
    interpreter = fx.Interpreter(traced)
    for node in traced.graph.nodes:
        inputs = node.all_input_nodes
        if node.op not in ("placeholder", "output") and all(source in found for source in inputs):
            args, kwargs = fx.node.map_arg((node.args, node.kwargs), found.__getitem__)
            with torch.no_grad():
                found[node] = getattr(interpreter, node.op)(node.target, args, kwargs)
    return found


def _value(argument: Any, constants: Mapping[fx.Node, Any]) -> Any:
    return constants.get(argument, argument) if isinstance(argument, fx.Node) else argument


def _attributes(graph: fx.Graph, node: fx.Node, hidden: fx.Node) -> list[str]:
    """Parameters and buffers behind a call's weights; none where anything else reads them."""
    behind: list[fx.Node] = []
    sources = [source for source in node.all_input_nodes if source is not hidden]
    while sources:
        if (source := sources.pop(0)) not in behind:
            behind.append(source)
            sources += source.all_input_nodes
    found = [source.target for source in behind if source.op == "get_attr"]
    readers = {user for source in behind for user in source.users} - {node, *behind}
    others = {n.target for n in graph.nodes if n.op == "get_attr" and n not in behind}
    return [] if readers or others & {*found} else found


def _convolution(values: Values, owner: nn.Module) -> nn.Module:
    own = dict(values)
    weight, bias = own.pop("weight"), own.pop("bias", None)
    inputs, kernel = weight.shape[1] * own.get("groups", 1), tuple(weight.shape[2:])
    layer = nn.Conv2d(inputs, len(weight), kernel, bias=bias is not None, **own)
    return _filled(layer, weight=weight, bias=bias)


def _linear(values: Values, owner: nn.Module) -> nn.Module:
    weight, bias = values["weight"], values.get("bias")
    layer = nn.Linear(weight.shape[1], len(weight), bias=bias is not None)
    return _filled(layer, weight=weight, bias=bias)


def _batch_norm(values: Values, owner: nn.Module) -> nn.Module | None:
    """Make a BatchNorm of its owner's kind; None where it is not one that keeps statistics."""
    kind = next((k for k in (nn.BatchNorm1d, nn.BatchNorm2d) if isinstance(owner, k)), None)
    if kind is None or values.get("training") or values.get("running_mean") is None:
        return None
    kept = {name: values[name] for name in ("weight", "bias", "running_mean", "running_var")}
    affine = kept["weight"] is not None
    layer = kind(len(kept["running_mean"]), eps=values.get("eps", 1e-5), affine=affine)
    return _filled(layer, **kept)


def _filled(layer: nn.Module, **values: Tensor | None) -> nn.Module:
    with torch.no_grad():
        for name, value in values.items():
            if value is not None:
                getattr(layer, name).copy_(value)
    return layer


def _replace(
    traced: fx.GraphModule, node: fx.Node, hidden: fx.Node, layer: nn.Module, *, name: str
) -> None:
    traced.add_submodule(name, layer)
    with traced.graph.inserting_before(node):
        call = traced.graph.call_module(name, (hidden,))
    node.replace_all_uses_with(call)
    traced.graph.erase_node(node)


# By function: the names of its arguments, and what makes the module.
_LAYERS: dict[Any, tuple[tuple[str, ...], Callable[[Values, nn.Module], nn.Module | None]]] = {
    functional.conv2d: (
        ("input", "weight", "bias", "stride", "padding", "dilation", "groups"),
        _convolution,
    ),
    functional.linear: (("input", "weight", "bias"), _linear),
    functional.batch_norm: (
        ("input", "running_mean", "running_var", "weight", "bias", "training", "momentum", "eps"),
        _batch_norm,
    ),
    torch.batch_norm: (
        ("input", "weight", "bias", "running_mean", "running_var", "training", "momentum", "eps"),
        _batch_norm,
    ),
}
