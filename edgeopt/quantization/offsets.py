"""Constant parts of channels taken out of the activations and put into the biases that follow.

A channel that is always near 200 leaves int8 few steps for what changes in it, and for all other
channels of its tensor. Where what it meets on its way is the identity there (ReLU above 0,
Hardswish above 3), the constant can be subtracted in the layer that writes it and given back to all
that read it: high-bias absorption (Nagel et al. 2019, doi:10.1109/ICCV.2019.00141, section 4.1.3),
here through additions and concatenations too, and exact where a reader pads with zeros.
"""

import copy
from collections.abc import Iterator

import torch
from torch import Tensor, fx, nn

from edgeopt.model import channel_axis, operation_of, submodule_of, trace

ABSORBED = 10.0  # absorbed is what is so many times wider than its tensor's median channel
OBSERVED = 128  # images
# By module or function: the activation is the identity from here on, to float32's rounding.
IDENTITY_ABOVE = {
    **dict.fromkeys(("ReLU", "relu", "relu_", "LeakyReLU", "leaky_relu", "PReLU"), 0.0),
    **dict.fromkeys(("Hardswish", "hardswish"), 3.0),
    **dict.fromkeys(("SiLU", "silu"), 20.0),
    **dict.fromkeys(("GELU", "gelu"), 6.0),
}

Spans = dict[str, tuple[Tensor, Tensor]]  # lowest and highest of every element, by node


class OffsetMap(nn.Module):
    """Adds a constant [1, C, H, W] that is another at the borders, which a layer padded."""

    traced_as_one = True
    channel_operation = "identity"  # its constant is rescaled with the channels that it is added to

    def __init__(self, offset: Tensor) -> None:
        super().__init__()
        self.register_buffer("offset", offset)

    def forward(self, hidden: Tensor) -> Tensor:
        """Sum of a tensor [B, C, H, W] and the constant."""
        return hidden + self.offset


def absorb_offsets(model: nn.Module, *, images: Tensor) -> nn.Module:
    """Return a copy in which no channel carries a constant that dwarfs what changes in its tensor.

    ``model`` has its BatchNorms folded; ``images`` [N, C, H, W] are those of calibration. What
    cannot be passed on exactly is left as it is.
    """
    changed, seen = copy.deepcopy(model), images[:OBSERVED]
    spans = _observe(changed, seen)
    for name, channel in [*_candidates(changed, spans)]:
        wrapped = isinstance(changed.get_submodule(name), nn.Sequential)  # with a map behind it
        flow = _Flow(changed, f"{name}.0" if wrapped else name, channel, seen[:1])
        if offset := flow.largest_offset(spans):
            _move(changed, flow, offset)
            spans = _observe(changed, seen)
    return changed


def _observe(model: nn.Module, images: Tensor) -> Spans:
    observer = _Observer(fx.GraphModule(model, trace(model)))
    with torch.no_grad():
        observer.run(images)
    return observer.spans


class _Observer(fx.Interpreter):
    """Keeps the lowest and highest value of every element of every tensor."""

    def __init__(self, module: fx.GraphModule) -> None:
        super().__init__(module)
        self.spans: Spans = {}

    def run_node(self, node: fx.Node) -> object:
        value = super().run_node(node)
        if isinstance(value, Tensor) and value.dim() > 1 and node.op != "get_attr":
            self.spans[node.name] = value.amin(0, keepdim=True), value.amax(0, keepdim=True)
        return value


def _candidates(model: nn.Module, spans: Spans) -> Iterator[tuple[str, int]]:
    """Layer and channel of every constant that is far above what changes in its tensor."""
    for node in trace(model).nodes:
        dims = spans[node.name][0].dim() if operation_of(model, node) == "layer" else 0
        if dims in (2, 4) and channel_axis(submodule_of(model, node), dims) == 1:
            low, high = _by_channel(*spans[node.name])
            wide = torch.maximum(high.abs(), low.abs())
            constant = torch.maximum(low, -high)
            far = (constant > high - low) & (constant > ABSORBED * wide.median())
            yield from ((node.target, channel) for channel in far.nonzero().flatten().tolist())


def _by_channel(low: Tensor, high: Tensor) -> tuple[Tensor, Tensor]:
    return low[0].reshape(low.shape[1], -1).amin(1), high[0].reshape(low.shape[1], -1).amax(1)


class _Flow(fx.Interpreter):
    """Where a constant 1 in one output channel of a layer goes, and what it becomes there.

    ``readers`` has, by layer, what the constant adds to its output, in float64; it is empty where
    the constant meets something that it cannot pass.
    """

    def __init__(self, model: nn.Module, layer: str, channel: int, example: Tensor) -> None:
        super().__init__(fx.GraphModule(model, trace(model)), garbage_collect_values=False)
        self.layer, self.channel = layer, channel
        self.readers: dict[str, Tensor] = {}
        self._source = next(n for n in self.module.graph.nodes if n.target == layer)
        self._constants: dict[fx.Node, Tensor | tuple] = {}
        self._activations: list[tuple[str, Tensor, float]] = []
        calls = [node.target for node in self.module.graph.nodes if node.op == "call_module"]
        self._once = {name for name in calls if calls.count(name) == 1}
        self._passes = layer in self._once
        with torch.no_grad():
            self.run(example)
        if not self._passes:
            self.readers = {}

    def run_node(self, node: fx.Node) -> object:
        value = super().run_node(node)
        if node is self._source:
            constant = torch.zeros_like(value)
            constant[:, self.channel] = 1
            self._constants[node] = constant
        elif any(source in self._constants for source in node.all_input_nodes):
            constant = self._passed(node)
            if constant is not None:
                self._constants[node] = constant
        return value

    def _passed(self, node: fx.Node) -> Tensor | tuple | None:
        source = next(n for n in node.all_input_nodes if n in self._constants)
        constant, kind = self._constants[source], operation_of(self.module, node)
        module = submodule_of(self.module, node)
        if kind == "layer" and node.target in self._once:
            exact, given = copy.deepcopy(module).double(), constant.double()
            self.readers[node.target] = exact(given) - exact(torch.zeros_like(given))
            return None
        name = type(module).__name__ if module else getattr(node.target, "__name__", node.target)
        if name in IDENTITY_ABOVE:
            self._activations.append((source.name, constant, IDENTITY_ABOVE[name]))
            return constant
        if kind == "identity":
            return constant.contiguous()  # one of them makes it so, for a view
        linear = kind in ("moving", "mean") or "avg" in str(name).lower()
        linear |= kind == "sum" and len(node.all_input_nodes) == 2
        if linear or (kind == "spatial" and _flat(constant)):
            return self._applied(node)
        self._passes = kind == "" and not isinstance(constant, Tensor)  # a size that is read
        return None

    def _applied(self, node: fx.Node) -> object:
        """Apply the operation to the constants, 0 where a tensor carries none."""
        args, kwargs = fx.node.map_arg((node.args, dict(node.kwargs)), self._constant_of)
        return getattr(self, node.op)(node.target, args, kwargs)

    def _constant_of(self, node: fx.Node) -> object:
        value = self.env[node]
        other = torch.zeros_like(value) if isinstance(value, Tensor) else value
        return self._constants.get(node, other)

    def largest_offset(self, spans: Spans) -> float:
        """Return what to take out: the middle or, before activations, what keeps them linear."""
        if not self.readers:
            return 0.0
        low, high = (float(end[self.channel]) for end in _by_channel(*spans[self._source.name]))
        if not self._activations:
            return (low + high) / 2
        margin = (high - low) / 2
        rooms = [low - margin]
        for name, constant, above in self._activations:
            there = constant != 0
            rooms.append(float((spans[name][0][there] / constant[there]).min()) - above - margin)
        return max(min(rooms), 0.0)


def _flat(constant: Tensor, *, axis: int = 1) -> bool:
    """Whether a constant, with its channels on an axis, is the same in a whole channel."""
    channels = constant.movedim(axis, 1).reshape(1, constant.shape[axis], -1)
    return bool((channels == channels[..., :1]).all())


@torch.no_grad()
def _move(model: nn.Module, flow: _Flow, offset: float) -> None:
    """Subtract an offset in the layer that writes it, and give it back to those that read it.

    What is given back may be thousands of times what is left, so that float32 would round it away.
    """
    written = _bias(model.get_submodule(flow.layer))
    before = float(written[flow.channel])
    written[flow.channel] -= offset
    moved = before - float(written[flow.channel])
    for name, added in flow.readers.items():
        reader, given = model.get_submodule(name), moved * added
        axis = channel_axis(reader, given.dim())
        middle = [size // 2 for size in given.shape]  # 0 of the one image
        inside = given[(*middle[:axis], slice(None), *middle[axis + 1 :])]
        bias = _bias(reader)
        bias.copy_(bias.double() + inside)
        if not _flat(added, axis=axis):
            rest = given - inside.view(-1, *[1] * (given.dim() - axis - 1))
            model.set_submodule(name, nn.Sequential(reader, OffsetMap(rest.float())))


def _bias(layer: nn.Module) -> Tensor:
    if layer.bias is None:
        layer.bias = nn.Parameter(layer.weight.new_zeros(len(layer.weight)))
    return layer.bias
