"""A network's graph by torch.fx: what each node does to channels."""

import operator
from collections.abc import Collection
from typing import Any

from torch import fx, nn
from torch.nn import functional

BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d)
LAYERS = (nn.Conv2d, nn.Linear, *BATCH_NORMS)
NORMALIZATIONS = (nn.LayerNorm, nn.GroupNorm, nn.InstanceNorm2d)  # by each image's own statistics
# What a node does, by the modules, functions and tensor methods that do it. A gate is a barrier
# whose result multiplies another tensor; what is spatial works inside each channel, and gives s
# times as much for s times as much.
OPERATIONS: dict[str, tuple[Any, ...]] = {
    "layer": LAYERS,
    "rectifier": (nn.ReLU, nn.LeakyReLU, nn.PReLU, "relu", "relu_", functional.leaky_relu, "abs"),
    "identity": (
        *(nn.Identity, nn.Dropout, nn.Dropout1d, nn.Dropout2d, functional.dropout),
        *(functional.dropout2d, "contiguous", "clone", "detach", "stochastic_depth"),
    ),
    "gate": (nn.Sigmoid, nn.Hardsigmoid, "sigmoid", functional.hardsigmoid),
    "barrier": (
        *(nn.Hardswish, nn.SiLU, nn.GELU, nn.ReLU6, nn.Hardtanh, nn.ELU, nn.Mish, nn.Tanh),
        *(functional.hardswish, functional.silu, functional.gelu, functional.relu6),
        *(functional.hardtanh, functional.elu, functional.mish, "tanh"),
        *(nn.SELU, nn.CELU, nn.Softplus, nn.Softsign, functional.selu, functional.celu),
        *(functional.softplus, functional.softsign, "clamp", "clip"),
    ),
    "spatial": (
        *(nn.MaxPool2d, nn.AvgPool2d, nn.AdaptiveMaxPool2d, nn.AdaptiveAvgPool2d),
        *("max_pool2d", "avg_pool2d", "adaptive_max_pool2d", "adaptive_avg_pool2d"),
        *(nn.ZeroPad2d, nn.ReflectionPad2d, nn.ReplicationPad2d, functional.pad),
        *(nn.Upsample, nn.UpsamplingNearest2d, nn.UpsamplingBilinear2d, functional.interpolate),
        *("upsample_nearest2d", "upsample_bilinear2d"),
    ),
    "moving": (
        *(nn.Flatten, nn.Unflatten, nn.ChannelShuffle, nn.PixelShuffle, nn.PixelUnshuffle),
        *("view", "reshape", "flatten", "permute", "transpose", "chunk", "split", "squeeze"),
        *("unsqueeze", "unbind", "expand", "cat", "concat", "stack", operator.getitem),
        *("slice", "select", "split_with_sizes"),
    ),
    "mean": ("mean",),
    "sum": (operator.add, operator.iadd, operator.sub, "add", "add_", "sub"),
    "product": (operator.mul, operator.imul, "mul", "mul_"),
    "quotient": (operator.truediv, "div"),
}

CALLS = {"__call__", "__getattr__", "__getattribute__", "__setattr__"}
_MODULES = {known for kind in OPERATIONS.values() for known in kind if isinstance(known, type)}


class _Tracer(fx.Tracer):
    """Leaves modules that say so (``traced_as_one``), as torch's own, in one piece."""

    def is_leaf_module(self, module: nn.Module, name: str) -> bool:
        whole = getattr(module, "traced_as_one", False) or isinstance(module, nn.LayerNorm)
        return whole or torch_class(module) in _MODULES or super().is_leaf_module(module, name)


def trace(model: nn.Module) -> fx.Graph:
    """Trace a network with torch.fx; raises ``ValueError`` where that cannot be done."""
    try:
        return _Tracer().trace(model)
    except Exception as error:  # tracing runs a user's code on stand-ins
        raise ValueError(f"torch.fx cannot trace {type(model).__name__}: {error}") from error


def torch_class(module: nn.Module) -> type:
    """Class of torch that a layer is, where classes derived from it change nothing that it does.

    Its own class where they change a method, a property or a parameter, or it is no such layer.
    """
    own = [kind for kind in type(module).__mro__ if not kind.__module__.startswith("torch.nn.")]
    given = next(kind for kind in type(module).__mro__ if kind not in own)
    says = {name for name in dir(given) if not name.startswith("__")} | {"weight", "bias"}
    does = (says | CALLS) - {"extra_repr", "reset_parameters"}
    added = {name: value for kind in own[:-1] for name, value in vars(kind).items()}
    changed = does & {*added} or any(isinstance(value, property) for value in added.values())
    return given if given in _MODULES and not changed else type(module)


def channel_axis(layer: nn.Module, dims: int) -> int:
    """Axis of the channels in what a layer reads and writes, a tensor of so many axes."""
    last = isinstance(layer, nn.Linear) or type(layer) is nn.LayerNorm
    return dims - 1 if last else 1


def submodule_of(model: nn.Module, node: object) -> nn.Module | None:
    """Return the module that a node calls; None where it calls something else."""
    is_call = isinstance(node, fx.Node) and node.op == "call_module"
    return model.get_submodule(node.target) if is_call else None


def operation_of(model: nn.Module, node: fx.Node) -> str:
    """Say what a node does to channels: ``normalization`` or a key of :data:`OPERATIONS`.

    A module may say it itself, as ``channel_operation``; "" where it is not known.
    """
    module = submodule_of(model, node)
    if isinstance(module, NORMALIZATIONS):  # torchvision's LayerNorm2d too
        return "normalization"
    if module is not None:
        does = (kind for kind, known in OPERATIONS.items() if torch_class(module) in known)
        return next(does, getattr(module, "channel_operation", ""))
    if node.target is functional.pad and (node.kwargs.get("value") or any(node.args[3:])):
        return ""  # what it pads with is no multiple of what is there
    # torch.relu is called "relu", and what torch.export leaves of its own, "slice.Tensor".
    names = {node.target, getattr(node.target, "__name__", "").partition(".")[0]}
    own = node.op in ("call_function", "call_method")
    return next((kind for kind, known in OPERATIONS.items() if own and names & {*known}), "")


def with_readers(model: nn.Module, layers: Collection[str]) -> set[str]:
    """Layers, and the layers that read what these write, as far as the network can be traced."""
    if not layers:
        return set()
    try:
        graph = trace(model)
    except ValueError:
        return set(layers)
    found = set(layers)
    open_nodes = [node for node in graph.nodes if node.target in layers]
    seen = {*open_nodes}
    while open_nodes:
        for user in {*open_nodes.pop().users} - seen:
            seen.add(user)
            is_layer = operation_of(model, user) == "layer"
            if is_layer:
                found.add(user.target)
            if not is_layer or isinstance(submodule_of(model, user), BATCH_NORMS):
                open_nodes.append(user)  # a BatchNorm is one with the layer before it
    return found
