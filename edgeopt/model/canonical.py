"""The form of a network that every rewrite starts from: layers as modules, BatchNorms folded."""

import copy
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from itertools import count
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn import functional
from torch.nn.utils.fusion import fuse_conv_bn_eval, fuse_linear_bn_eval
from torch.nn.utils.parametrize import is_parametrized

from edgeopt.model.exported import exported
from edgeopt.model.same_function import require_same_function
from edgeopt.model.tracing import submodule_of, torch_class, trace

CHECKED_IMAGES = 8

Values = Mapping[str, Any]


def layers_as_modules(model: nn.Module, *, example: Tensor | None = None) -> nn.Module:
    """Return a copy in eval mode whose convolutions, linear layers and BatchNorms are modules.

    A ``forward`` may call ``functional.batch_norm`` with its own parameters, as timm's
    ``BatchNormAct2d`` does, or compute a convolution's weights from others (weight
    standardization, arXiv:1903.10520). Such a call becomes a module, whose weights are what they
    are now, and a layer of a class derived from torch's that changes nothing is of torch's class.
    Where there is such a layer the copy is a ``torch.fx.GraphModule``, without the methods of the
    network's class. Weights that several calls share stay as they are.

    Parameters
    ----------
    example : Tensor, optional
        Images [N, C, H, W], on which the copy is compared with the network. With them a network
        that torch.fx cannot trace, because its code asks for sizes, is traced by torch.export: for
        images of this size, and without its dropouts.

    Raises
    ------
    ValueError
        When the network cannot be traced.
    RewriteError
        When the copy computes something else.
    """
    own = copy.deepcopy(model).eval()
    try:
        graph = trace(own)
    except ValueError:
        if example is None:
            raise
        traced = exported(own, example=example)
    else:
        if not any(_is_to_change(own, node) for node in graph.nodes):
            return own
        traced = fx.GraphModule(own, graph, class_name=type(model).__name__)
    if own._forward_hooks or own._forward_pre_hooks:
        raise ValueError(f"{type(model).__name__} has hooks, which its graph would not call")
    with _rewriting(model):
        changed = _with_modules(traced, owners=own)
        _check(changed, model, example)
    return changed


def _is_to_change(model: nn.Module, node: fx.Node) -> bool:
    layer = submodule_of(model, node)
    return node.target in _LAYERS if layer is None else torch_class(layer) is not type(layer)


@contextmanager
def _rewriting(model: nn.Module) -> Iterator[None]:
    """Tell as ``ValueError`` whatever a user's code, of which only a part is left, ends in."""
    try:
        yield
    except ValueError:
        raise
    except Exception as error:
        raise ValueError(f"{type(model).__name__} cannot be rewritten: {error}") from error


def _check(changed: nn.Module, model: nn.Module, example: Tensor | None) -> None:
    if example is not None:
        parent = copy.deepcopy(model).eval()
        require_same_function(changed, parent, images=example[:CHECKED_IMAGES])


def _with_modules(traced: fx.GraphModule, *, owners: nn.Module) -> fx.GraphModule:
    graph, constants = traced.graph, _constants(traced)
    for node in [n for n in graph.nodes if n.target in _LAYERS and n not in constants]:
        _make_module(traced, node, constants, owners)
    for name in {node.target for node in graph.nodes if node.op == "call_module"}:
        layer = traced.get_submodule(name)
        if (plain := torch_class(layer)) is not type(layer):
            traced.set_submodule(name, _of_class(layer, plain))
    return fx.GraphModule(traced, graph, class_name=type(owners).__name__).eval()


def _of_class(module: nn.Module, plain: type) -> nn.Module:
    """Return a module as its parent's class, for tools that ask for a class and no other."""
    changed = plain.__new__(plain)
    changed.__dict__ = module.__dict__
    return changed


def _make_module(
    traced: fx.GraphModule, node: fx.Node, constants: Mapping[fx.Node, Any], owners: nn.Module
) -> None:
    """Put a module in the place of a call, where its weights are its own and constant."""
    names, make = _LAYERS[node.target]
    given = dict(zip(names, node.args, strict=False)) | node.kwargs
    hidden = given.pop("input")
    behind = _behind(node, hidden)
    attributes = [source.target for source in behind if source.op == "get_attr"]
    if not attributes or not _only_there(node, behind) or not constants.keys() >= {*behind}:
        return
    owner = attributes[0].rpartition(".")[0]
    layer = make(fx.node.map_arg(given, constants.__getitem__), owners.get_submodule(owner))
    if layer is None:
        return
    name = _free_name(traced, f"{owner}.{node.name}".lstrip("."), owners)
    traced.add_submodule(name, layer)
    with traced.graph.inserting_before(node):
        node.replace_all_uses_with(traced.graph.call_module(name, (hidden,)))
    for unused in (node, *sorted(behind, reverse=True)):
        traced.graph.erase_node(unused)


def _behind(node: fx.Node, hidden: fx.Node) -> list[fx.Node]:
    """Nodes that a call's weights and options come from."""
    behind: list[fx.Node] = []
    sources = [source for source in node.all_input_nodes if source is not hidden]
    while sources:
        if (source := sources.pop(0)) not in behind:
            behind.append(source)
            sources += source.all_input_nodes
    return behind


def _only_there(node: fx.Node, behind: Collection[fx.Node]) -> bool:
    """Whether nothing but a call reads what is behind its weights."""
    readers = {user for source in behind for user in source.users} - {node, *behind}
    read = {source.target for source in behind if source.op == "get_attr"}
    others = {n.target for n in node.graph.nodes if n.op == "get_attr" and n not in behind}
    modules = {n.target for n in node.graph.nodes if n.op == "call_module"}
    owned = any(name.rpartition(".")[0] in modules for name in read)
    return not readers and not others & read and not owned


def _free_name(traced: nn.Module, name: str, owners: nn.Module) -> str:
    taken = {own for model in (traced, owners) for own, _ in model.named_modules()}
    return next(own for k in count() if (own := f"{name}_{k}" if k else name) not in taken)


def fold_batch_norm(model: nn.Module, *, example: Tensor | None = None) -> nn.Module:
    """Return a copy in eval mode with BatchNorms folded into the layers that they alone read.

    Its layers are those of :func:`layers_as_modules`, which takes ``example`` and raises too.
    """
    folded = layers_as_modules(model, example=example)
    with _rewriting(model):
        _fold(folded)
        _check(folded, model, example)
    return folded


def _fold(folded: nn.Module) -> None:
    graph = trace(folded)
    own = _owned_layers(folded, graph)
    for node in graph.nodes:
        norm = submodule_of(folded, node)
        is_norm = isinstance(norm, nn.modules.batchnorm._BatchNorm) and norm.track_running_stats
        before = node.all_input_nodes[0] if is_norm and node.target in own else None
        layer = submodule_of(folded, before)
        if isinstance(layer, (nn.Conv2d, nn.Linear)) and (
            len(_readers(before)) == 1 and before.target in own
        ):
            fuse = fuse_linear_bn_eval if isinstance(layer, nn.Linear) else fuse_conv_bn_eval
            folded.set_submodule(before.target, fuse(layer, norm))
            folded.set_submodule(node.target, nn.Identity().eval())


def _owned_layers(model: nn.Module, graph: fx.Graph) -> set[str]:
    """Modules that are called once, by one name, and of which nothing else is used."""
    calls = Counter(node.target for node in graph.nodes if node.op == "call_module")
    names = Counter(module for _, module in model.named_modules(remove_duplicate=False))
    read = {node.target.rpartition(".")[0] for node in graph.nodes if node.op == "get_attr"}

    def owned(name: str) -> bool:
        module = model.get_submodule(name)
        hooked = module._forward_hooks or module._forward_pre_hooks or is_parametrized(module)
        return names[module] == 1 and not hooked

    return {
        name for name, times in calls.items() if times == 1 and name not in read and owned(name)
    }


def _readers(node: fx.Node) -> list[fx.Node]:
    """Nodes that read the values of another, not its size alone."""

    def of_size(user: fx.Node) -> bool:
        if user.op == "call_method":
            return user.target in ("size", "dim")
        return user.target is getattr and user.args[1] in ("ndim", "shape")

    return [user for user in node.users if not of_size(user)]


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


def _convolution(values: Values, owner: nn.Module) -> nn.Module:
    own = dict(values)
    weight, bias = own.pop("weight"), own.pop("bias", None)
    inputs, kernel = weight.shape[1] * own.get("groups", 1), tuple(weight.shape[2:])
    layer = nn.Conv2d(inputs, len(weight), kernel, bias=bias is not None, **own)
    return _filled(layer, weight=weight, bias=bias)


def _linear(values: Values, owner: nn.Module) -> nn.Module | None:
    weight, bias = values["weight"], values.get("bias")
    if weight.dim() != 2:
        return None
    layer = nn.Linear(weight.shape[1], len(weight), bias=bias is not None)
    return _filled(layer, weight=weight, bias=bias)


def _batch_norm(values: Values, owner: nn.Module) -> nn.Module | None:
    """Make a BatchNorm of its owner's kind; None where it is not one that keeps statistics."""
    kind = next((k for k in (nn.BatchNorm1d, nn.BatchNorm2d) if isinstance(owner, k)), None)
    if kind is None or values.get("training") or values.get("running_mean") is None:
        return None
    kept = {name: values.get(name) for name in ("weight", "bias", "running_mean", "running_var")}
    affine = kept["weight"] is not None
    if affine != (kept["bias"] is not None):
        return None
    layer = kind(len(kept["running_mean"]), eps=values.get("eps", 1e-5), affine=affine)
    return _filled(layer, **kept)


def _filled(layer: nn.Module, **values: Tensor | None) -> nn.Module:
    given = {name: value for name, value in values.items() if value is not None}
    layer = layer.to(next(iter(given.values())))  # of its type, where it is
    with torch.no_grad():
        for name, value in given.items():
            getattr(layer, name).copy_(value)
    return layer


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
