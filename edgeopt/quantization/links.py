"""Which layers' channels can be rescaled: tracing a model with torch.fx."""

import copy
import operator
from collections import Counter
from dataclasses import dataclass

import torch
from torch import fx, nn
from torch.nn import functional
from torch.nn.utils.fusion import fuse_conv_bn_eval, fuse_linear_bn_eval

_HOMOGENEOUS_MODULES = (
    nn.ReLU,
    nn.LeakyReLU,
    nn.MaxPool2d,
    nn.AvgPool2d,
    nn.AdaptiveMaxPool2d,
    nn.AdaptiveAvgPool2d,
    nn.Identity,
    nn.Dropout,
    nn.Dropout2d,
    nn.Flatten,
)
_HOMOGENEOUS_FUNCTIONS = {
    torch.relu,
    functional.relu,
    functional.leaky_relu,
    functional.max_pool2d,
    functional.avg_pool2d,
    functional.adaptive_max_pool2d,
    functional.adaptive_avg_pool2d,
    functional.dropout,
    torch.flatten,
    "relu",
    "flatten",
    "contiguous",
}
_SPATIAL_AXES = {2, 3, -1, -2}


@dataclass(frozen=True)
class Link:
    """A layer, and the layers that read its channels through homogeneous operations alone."""

    source: str
    readers: tuple[str, ...]


def fold_batch_norm(model: nn.Module) -> nn.Module:
    """Return a copy in eval mode with each BatchNorm folded into the layer before it."""
    folded = copy.deepcopy(model).eval()
    graph = _trace(folded)
    calls = Counter(node.target for node in graph.nodes if node.op == "call_module")
    for node in graph.nodes:
        norm = _module(folded, node)
        is_norm = isinstance(norm, nn.modules.batchnorm._BatchNorm) and norm.track_running_stats
        before = node.args[0] if is_norm else None
        layer = _module(folded, before)
        if _is_layer(layer) and len(before.users) == 1 and calls[before.target] == 1:
            fuse = fuse_linear_bn_eval if isinstance(layer, nn.Linear) else fuse_conv_bn_eval
            folded.set_submodule(before.target, fuse(layer, norm))
            folded.set_submodule(node.target, nn.Identity())
    return folded


def find_links(model: nn.Module) -> list[Link]:
    """Find every layer whose output channels can be rescaled, in the order in which they run."""
    graph = _trace(model)
    calls = Counter(node.target for node in graph.nodes if node.op == "call_module")
    links = []
    for node in graph.nodes:
        if _is_layer(_module(model, node)):
            readers = _readers(model, graph, node)
            if readers and all(calls[name] == 1 for name in (node.target, *readers)):
                links.append(Link(node.target, tuple(readers)))
    return links


def _readers(model: nn.Module, graph: fx.Graph, source: fx.Node) -> list[str]:
    """Names of the layers that end the scaled region; empty where something else reads it."""
    scaled, readers = {source}, []
    for node in graph.nodes:
        inputs = [n for n in node.all_input_nodes if n in scaled]
        if not inputs or node is source:
            continue
        if _is_layer(_module(model, node)):
            readers.append(node.target)
        elif _is_homogeneous(model, node) or (_is_product(node) and len(inputs) == 1):
            scaled.add(node)
        elif not _reads_shape(node):
            return []
    return readers


def _is_homogeneous(model: nn.Module, node: fx.Node) -> bool:
    if node.op == "call_module":
        return isinstance(_module(model, node), _HOMOGENEOUS_MODULES)
    if node.target in ("view", "reshape"):
        return len(node.args) == 3 and node.args[2] == -1  # x.view(batch, -1)
    if node.target in ("mean", torch.mean):
        axes = node.kwargs.get("dim", node.args[1] if len(node.args) > 1 else ())
        axes = (axes,) if isinstance(axes, int) else axes
        return bool(axes) and set(axes) <= _SPATIAL_AXES
    return node.target in _HOMOGENEOUS_FUNCTIONS


def _is_product(node: fx.Node) -> bool:
    return node.target in (operator.mul, torch.mul, "mul") and len(node.all_input_nodes) == 2


def _reads_shape(node: fx.Node) -> bool:
    return node.target == "size" or (node.target is getattr and node.args[1] == "shape")


def _is_layer(module: nn.Module | None) -> bool:
    return isinstance(module, (nn.Conv2d, nn.Linear))


def _module(model: nn.Module, node: fx.Node | None) -> nn.Module | None:
    is_call = isinstance(node, fx.Node) and node.op == "call_module"
    return model.get_submodule(node.target) if is_call else None


def _trace(model: nn.Module) -> fx.Graph:
    try:
        return fx.symbolic_trace(model).graph
    except Exception as error:  # tracing runs a user's code on stand-ins
        raise ValueError(f"torch.fx cannot trace {type(model).__name__}: {error}") from error
