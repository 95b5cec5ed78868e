"""Channel groups: the channels of a network that can only be rescaled together.

Multiplying output channel k of a layer by s > 0 and dividing what reads it by s keeps the function
where only positively homogeneous operations lie between them. Additions tie the channels of their
summands, concatenations and shuffles move them, a depthwise layer ends one group and begins
another, and a LayerNorm or GroupNorm begins one by its affine weights. Every element of every
tensor carries the number of its group: moving the numbers as the network moves its activations
finds all of this, whatever the network looks like.
"""

from collections import Counter
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn

from edgeopt.model.tracing import (
    LAYERS,
    NORMALIZATIONS,
    channel_axis,
    operation_of,
    submodule_of,
    trace,
)

FIXED = 0  # the group of all channels that no factor may touch


@dataclass(frozen=True, eq=False)
class Ports:
    """Groups of the channels that go into a layer or barrier, and of those that come out."""

    inputs: Tensor
    outputs: Tensor


@dataclass(frozen=True, eq=False)
class ChannelGroups:
    """Which groups every layer reads and writes, and which every tensor holds.

    Attributes
    ----------
    layers : dict
        Convolutions, linear layers, free BatchNorms and other normalizations by module name;
        ``inputs`` [C_in] and ``outputs`` [C_out] hold group numbers, 0 where no factor may pass.
    barriers : dict
        Activations through which no factor passes, and the network's input, by node; the group
        numbers are shaped to be broadcast over the tensor.
    tensors : dict
        Group numbers of every tensor that a node makes, shaped to be broadcast over it.
    count : int
        Groups, the fixed one included.
    """

    layers: dict[str, Ports]
    barriers: dict[fx.Node, Ports]
    tensors: dict[fx.Node, Tensor]
    count: int

    def of_module(self, name: str) -> Tensor:
        """Group numbers of what a module writes; empty where the graph does not call it."""
        own = (t for n, t in self.tensors.items() if n.op == "call_module" and n.target == name)
        return next(own, torch.empty(0, dtype=torch.long))


def channel_groups(model: nn.Module, *, example: Tensor) -> ChannelGroups:
    """Find the channel groups of a network in eval mode.

    Parameters
    ----------
    example : Tensor
        One image [1, C, H, W] of the size that the network will serve.

    Raises
    ------
    ValueError
        When torch.fx cannot trace the network.
    """
    return _Numbering(model).groups(example)


class _Numbering(fx.Interpreter):
    """Runs a graph, and beside every tensor an equally large one of group numbers."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__(fx.GraphModule(model, trace(model)), garbage_collect_values=False)
        self._parents = [FIXED]
        self._numbers: dict[fx.Node, Any] = {}
        self._layers: dict[str, Ports] = {}
        self._barriers: dict[fx.Node, Ports] = {}
        self._shared = _shared_layers(self.module)

    def groups(self, example: Tensor) -> ChannelGroups:
        try:
            with torch.no_grad():
                self.run(example)
        except Exception as error:  # a graph that was traced wrongly
            raise ValueError(f"the traced network does not run: {error}") from error
        roots = torch.tensor([self._root(number) for number in range(len(self._parents))])
        found, compact = roots.unique(return_inverse=True)  # FIXED stays first

        def settled(ports: Ports) -> Ports:
            return Ports(compact[ports.inputs], compact[ports.outputs])

        return ChannelGroups(
            {name: settled(ports) for name, ports in self._layers.items()},
            {node: settled(ports) for node, ports in self._barriers.items()},
            {
                node: compact[_broadcastable(numbers)]
                for node, numbers in self._numbers.items()
                if isinstance(numbers, Tensor)
            },
            len(found),
        )

    def run_node(self, node: fx.Node) -> Any:
        value = super().run_node(node)
        self._numbers[node] = self._number(node, value)
        return value

    def _number(self, node: fx.Node, value: Any) -> Any:
        if node.op == "placeholder":
            outputs = self._fresh(value.shape[1]).view(1, -1, *[1] * (value.dim() - 2))
            self._barriers[node] = Ports(torch.zeros(1, dtype=torch.long), outputs)
            return outputs.expand(value.shape)
        if node.op == "output":
            self._fix(node)
            return None
        module = submodule_of(self.module, node)
        if isinstance(module, (*LAYERS, *NORMALIZATIONS)) and isinstance(value, Tensor):
            known = _axis_is_known(module, value)
            return self._layer(node, module, value) if known else self._unknown(node, value)
        if isinstance(value, Tensor) and not value.is_floating_point():
            return torch.zeros(value.shape, dtype=torch.long)
        if not _holds_tensor(value):  # a size that is read touches no channel
            return None
        return self._operation(node, value)

    def _operation(self, node: fx.Node, value: Any) -> Any:
        kind = operation_of(self.module, node)
        if kind in ("rectifier", "identity"):
            return self._numbers[node.all_input_nodes[0]]
        if kind == "quotient" and not isinstance(node.args[1], fx.Node):
            return self._numbers[node.args[0]]
        rule = {
            "moving": self._moved,
            "spatial": self._spatial,
            "mean": self._mean,
            "sum": self._sum,
            "product": self._product,
            "gate": self._barrier,
            "barrier": self._barrier,
        }.get(kind, self._unknown)
        return rule(node, value)

    def _unknown(self, node: fx.Node, value: Any) -> Any:
        self._fix(node)
        if isinstance(value, Tensor):
            return torch.zeros(value.shape, dtype=torch.long)
        return fx.node.map_aggregate(
            value, lambda v: torch.zeros(v.shape, dtype=torch.long) if isinstance(v, Tensor) else v
        )

    def _moved(self, node: fx.Node, value: Any) -> Any:
        """Move the numbers as the operation moves the values."""
        sources = [n for n in node.all_input_nodes if self._numbers.get(n) is not None]
        if not sources:
            return None
        args, kwargs = fx.node.map_arg(
            (node.args, dict(node.kwargs)),
            lambda n: _contiguous(self._numbers[n]) if n in sources else self.env[n],
        )
        return getattr(self, node.op)(node.target, args, kwargs)

    def _spatial(self, node: fx.Node, value: Tensor) -> Tensor:
        numbers = self._numbers[node.all_input_nodes[0]]
        channels = numbers[..., :1, :1]  # [1, C, 1, 1]
        if value.dim() != 4 or value.shape[1] != numbers.shape[1] or (numbers != channels).any():
            return self._unknown(node, value)
        return channels.expand(value.shape)

    def _mean(self, node: fx.Node, value: Tensor) -> Tensor:
        numbers = self._numbers[node.all_input_nodes[0]]
        axes = node.kwargs.get("dim", node.args[1] if len(node.args) > 1 else None)
        keep = node.kwargs.get("keepdim", node.args[2] if len(node.args) > 2 else False)
        if axes is None:
            return self._unknown(node, value)
        low, high = numbers.amin(axes, keepdim=keep), numbers.amax(axes, keepdim=keep)
        return low if torch.equal(low, high) else self._unknown(node, value)

    def _sum(self, node: fx.Node, value: Tensor) -> Tensor:
        inputs = [self._numbers.get(n) if isinstance(n, fx.Node) else None for n in node.args[:2]]
        if not all(isinstance(numbers, Tensor) for numbers in inputs):
            return self._unknown(node, value)
        first, second = torch.broadcast_tensors(*inputs)
        self._tie(first, second)
        return first

    def _product(self, node: fx.Node, value: Tensor) -> Tensor:
        factors = [n for n in node.args[:2] if isinstance(self._numbers.get(n), Tensor)]
        if len(factors) == 2:
            gate = self._gate(*factors)
            if gate is None:
                return self._unknown(node, value)
            self._tie(self._numbers[gate], torch.zeros(1, dtype=torch.long))
            factors.remove(gate)
        return self._numbers[factors[0]].expand(value.shape)

    def _gate(self, first: fx.Node, second: fx.Node) -> fx.Node | None:
        """Which of two factors gates the other: a sigmoid, or the smaller one."""
        if first is second:
            return None
        for node in (first, second):
            if operation_of(self.module, node) == "gate":
                return node
        sizes = [self.env[node].numel() for node in (first, second)]
        if sizes[0] == sizes[1]:
            fixed = [self._all_fixed(self._numbers[node]) for node in (first, second)]
            return first if fixed[0] else second if fixed[1] else None
        return first if sizes[0] < sizes[1] else second

    def _barrier(self, node: fx.Node, value: Tensor) -> Tensor:
        if len(node.all_input_nodes) > 1:  # clamped by another tensor
            return self._unknown(node, value)
        numbers = _broadcastable(self._numbers[node.all_input_nodes[0]])
        outputs = self._fresh(numbers.numel()).view(numbers.shape)
        self._barriers[node] = Ports(numbers, outputs)
        return outputs.expand(value.shape)

    def _layer(self, node: fx.Node, layer: nn.Module, value: Tensor) -> Tensor:
        numbers = self._numbers[node.all_input_nodes[0]]
        axis = channel_axis(layer, numbers.dim())
        inputs = numbers.movedim(axis, 0).flatten(1)  # [C_in, elements of the channel]
        fresh = self._fresh(value.shape[axis])
        alone = node.target not in self._shared and _by_channel(layer)
        free = alone and bool((inputs == inputs[:, :1]).all())
        if not free or isinstance(layer, NORMALIZATIONS):
            self._fix(node)
        if not free:
            self._tie(fresh, torch.zeros(1, dtype=torch.long))
        self._layers[node.target] = Ports(inputs[:, 0], fresh)
        shape = [-1 if place == axis else 1 for place in range(value.dim())]
        return fresh.view(shape).expand(value.shape)

    def _fresh(self, count: int) -> Tensor:
        start = len(self._parents)
        self._parents.extend(range(start, start + count))
        return torch.arange(start, start + count)

    def _fix(self, node: fx.Node) -> None:
        for source in node.all_input_nodes:
            fx.node.map_aggregate(self._numbers.get(source), self._fix_numbers)

    def _fix_numbers(self, numbers: Any) -> None:
        if isinstance(numbers, Tensor):
            self._tie(numbers, torch.zeros(1, dtype=torch.long))

    def _all_fixed(self, numbers: Tensor) -> bool:
        return all(self._root(number) == FIXED for number in numbers.unique().tolist())

    def _tie(self, first: Tensor, second: Tensor) -> None:
        small = torch.broadcast_tensors(_broadcastable(first), _broadcastable(second))
        pairs = torch.stack(small).flatten(1)
        for one, other in pairs.unique(dim=1).T.tolist():
            low, high = sorted((self._root(one), self._root(other)))
            self._parents[high] = low

    def _root(self, number: int) -> int:
        while self._parents[number] != number:
            self._parents[number] = self._parents[self._parents[number]]
            number = self._parents[number]
        return number


def _holds_tensor(value: Any) -> bool:
    if isinstance(value, (tuple, list)):
        return any(map(_holds_tensor, value))
    return isinstance(value, Tensor)


def _contiguous(numbers: Any) -> Any:
    """Lay numbers out in order, as a view of another shape wants them."""
    return fx.node.map_aggregate(numbers, lambda n: n.contiguous() if isinstance(n, Tensor) else n)


def _broadcastable(numbers: Tensor) -> Tensor:
    """Cut every axis along which the numbers do not change to one element."""
    for axis in range(numbers.dim()):
        first = numbers.narrow(axis, 0, 1)
        if (numbers == first).all():
            numbers = first
    return numbers


def _axis_is_known(layer: nn.Module, value: Tensor) -> bool:
    """Whether the channels' axis is sure: a LayerNorm of the user's own may work on any."""
    own = type(layer).__module__.partition(".")[0] not in (torch.__name__, "torchvision")
    if not (own and isinstance(layer, nn.LayerNorm)):
        return True
    fits = [size == layer.normalized_shape[-1] for size in value.shape[1:]]
    return fits[channel_axis(layer, value.dim()) - 1] and sum(fits) == 1


def _by_channel(layer: nn.Module) -> bool:
    """Whether a normalization has weights a channel, and a BatchNorm its statistics too."""
    if isinstance(layer, nn.LayerNorm):
        return layer.elementwise_affine and len(layer.normalized_shape) == 1
    kept = not isinstance(layer, (nn.BatchNorm1d, nn.BatchNorm2d)) or layer.track_running_stats
    return kept and getattr(layer, "affine", True)


def _shared_layers(graph: fx.GraphModule) -> set[str]:
    """Layers called more than once, or a parameter of which something else reads as well."""
    calls = Counter(node.target for node in graph.graph.nodes if node.op == "call_module")
    read = {node.target for node in graph.graph.nodes if node.op == "get_attr"}
    owners = Counter(
        id(parameter)
        for name in calls
        for parameter in graph.get_submodule(name).parameters(recurse=False)
    )

    def shared(name: str) -> bool:
        own = list(graph.get_submodule(name).named_parameters(recurse=False))
        tied = any(owners[id(parameter)] > 1 for _, parameter in own)
        return calls[name] > 1 or tied or any(f"{name}.{own_name}" in read for own_name, _ in own)

    return {name for name in calls if shared(name)}
