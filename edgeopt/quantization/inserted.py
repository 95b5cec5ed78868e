"""Per-channel scales put around an activation through which no factor passes.

Behind Hardswish, SiLU or a sigmoid, and behind the network's input, a channel cannot be rescaled by
weights alone. A division before and a multiplication behind the activation can, in float and for
the outliers alone (SmoothQuant inserts such scales into transformers, arXiv:2211.10438).
"""

import copy
from collections import Counter
from collections.abc import Callable
from operator import methodcaller
from typing import Any

import torch
from torch import Tensor, fx, nn

from edgeopt.model import ChannelGroups, trace


class ScaledActivation(nn.Module):
    """``after * activation(x / before)``; every runtime leaves it in float.

    Parameters
    ----------
    activation : nn.Module
        What stood there.
    before, after : Tensor or None
        One number a channel, shaped to be broadcast over the tensor; None where all are 1.
    """

    traced_as_one = True

    def __init__(
        self, activation: nn.Module, *, before: Tensor | None, after: Tensor | None
    ) -> None:
        super().__init__()
        self.activation = activation
        self.register_buffer("before", before)
        self.register_buffer("after", after)

    def forward(self, hidden: Tensor) -> Tensor:
        """Activation of a tensor of any shape that the scales fit."""
        # A division: ONNX Runtime fuses a multiplication into the convolution before it.
        hidden = hidden if self.before is None else hidden / self.before
        hidden = self.activation(hidden)
        return hidden if self.after is None else hidden * self.after


class _Call(nn.Module):
    """A function or method call as a module."""

    def __init__(self, call: Callable[..., Tensor], *rest: Any, **named: Any) -> None:
        super().__init__()
        self._call, self._rest, self._named = call, rest, named

    def forward(self, hidden: Tensor) -> Tensor:
        return self._call(hidden, *self._rest, **self._named)


def float_modules(model: nn.Module) -> list[str]:
    """Names of the modules that every runtime has to leave in float."""
    return [name for name, module in model.named_modules() if isinstance(module, ScaledActivation)]


def inserted_multiplications(model: nn.Module, *, example: Tensor) -> int:
    """Count the multiplications and divisions of inserted scales for one image [1, C, H, W]."""
    found = 0

    def count(scaled: ScaledActivation, _: Any, hidden: Tensor) -> None:
        nonlocal found
        found += hidden.numel() * sum(s is not None for s in (scaled.before, scaled.after))

    hooks = [
        model.get_submodule(name).register_forward_hook(count) for name in float_modules(model)
    ]
    with torch.no_grad():
        model(example)
    for hook in hooks:
        hook.remove()
    return found


def insert_scales(model: nn.Module, groups: ChannelGroups, scale: Tensor) -> nn.Module:
    """Return a copy with scales around the barriers whose groups are not scaled by 1.

    ``model`` is what :func:`edgeopt.quantization.rescaling.rescale` made with the same ``scale``.
    Where an activation is a function, or a module that is called at several places, the copy is an
    ``fx.GraphModule``.
    """
    wanted = {
        node.name: {
            "before": _or_none(scale[ports.inputs]),
            "after": _or_none(scale[ports.outputs]),
        }
        for node, ports in groups.barriers.items()
        if (scale[ports.inputs] != 1).any() or (scale[ports.outputs] != 1).any()
    }
    changed = copy.deepcopy(model)
    nodes = trace(changed).nodes
    times = Counter(node.target for node in nodes if node.op == "call_module")
    calls = [node for node in nodes if node.name in wanted]
    alone = [node for node in calls if times[node.target] == 1]
    for node in alone:
        activation = changed.get_submodule(node.target)
        changed.set_submodule(node.target, ScaledActivation(activation, **wanted[node.name]))
    rest = {node.name for node in calls} - {node.name for node in alone}
    if not rest:
        return changed
    rewritten = fx.GraphModule(changed, trace(changed))
    for node in [node for node in rewritten.graph.nodes if node.name in rest]:
        activation = _module_of(rewritten, node)
        _replace(rewritten, node, ScaledActivation(activation, **wanted[node.name]))
    rewritten.recompile()
    return rewritten


def _or_none(scale: Tensor) -> Tensor | None:
    return None if (scale == 1).all() else scale


def _module_of(model: nn.Module, node: fx.Node) -> nn.Module:
    if node.op == "placeholder":
        return nn.Identity()
    if node.op == "call_module":
        return copy.deepcopy(model.get_submodule(node.target))
    rest, named = node.args[1:], node.kwargs
    if node.op == "call_method":
        return _Call(methodcaller(node.target, *rest, **named))
    return _Call(node.target, *rest, **named)


def _replace(model: fx.GraphModule, node: fx.Node, scaled: nn.Module) -> None:
    """Call a module in the place of a node, or behind the network's input."""
    name = f"scaled_{node.name}"
    model.add_submodule(name, scaled)
    source = node if node.op == "placeholder" else node.args[0]
    with model.graph.inserting_after(node):
        call = model.graph.call_module(name, (source,))
    node.replace_all_uses_with(call, delete_user_cb=lambda user: user is not call)
    if node.op != "placeholder":
        model.graph.erase_node(node)
