"""Rescaling channels between layers without changing the fp32 function.

A quantizer gives a whole tensor one scale: a channel far wider than the others takes all of it, and
int8 collapses. Multiplying a channel group (:mod:`edgeopt.model.channel_groups`) by a factor in all
that write it and dividing it in all that read it gives the quantizer another network to meet.
"""

import copy
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from torch import Tensor, fx, nn

from edgeopt.model import (
    FIXED,
    ChannelGroups,
    channel_groups,
    fold_batch_norm,
    require_same_function,
    trace,
)
from edgeopt.quantization.inserted import insert_scales
from edgeopt.quantization.offsets import OffsetMap, absorb_offsets

OUTLIER = 20.0  # times the median channel of its tensor
RANGE_BATCH = 64
_MAX_SWEEPS = 50
_CONVERGED = 1e-3  # largest remaining correction, as a natural logarithm


@torch.no_grad()
def rescale(model: nn.Module, groups: ChannelGroups, scale: Tensor) -> nn.Module:
    """Return a copy in which the channels of group g are multiplied by ``scale[g]``.

    The function stays where the factors of :data:`FIXED` and of barriers are 1.
    """
    scaled = copy.deepcopy(model)
    for name, ports in groups.layers.items():
        layer = scaled.get_submodule(name)
        written, read = scale[ports.outputs], scale[ports.inputs]
        if isinstance(layer, nn.Linear):
            layer.weight.mul_(written[:, None] / read)
        elif isinstance(layer, nn.Conv2d):
            grouped = layer.weight.unflatten(0, (layer.groups, -1))  # [G, O/G, I/G, kH, kW]
            weight = (grouped / read.view(layer.groups, 1, -1, 1, 1)).flatten(0, 1)
            layer.weight.copy_(weight * written.view(-1, 1, 1, 1))
        elif layer.weight is not None:
            layer.weight.mul_(written / read)
            if getattr(layer, "running_mean", None) is not None:
                layer.running_mean.mul_(read)
        if layer.bias is not None:
            layer.bias.mul_(written)
    for name, module in scaled.named_modules():
        if isinstance(module, OffsetMap):
            module.offset.mul_(scale[groups.of_module(name)])
    return scaled


@dataclass(frozen=True, eq=False)
class ChannelRanges:
    """Smallest and largest value of each channel group in one tensor, all [groups there]."""

    groups: Tensor
    low: Tensor
    high: Tensor

    @property
    def magnitude(self) -> Tensor:
        """Largest absolute value of each group."""
        return torch.maximum(self.low.abs(), self.high.abs())


def channel_ranges(
    model: nn.Module, groups: ChannelGroups, *, images: Tensor
) -> dict[str, ChannelRanges]:
    """Observe every tensor of a network, by its node's name, group by group.

    Raises ``ValueError`` naming the tensor where a value is not finite.
    """
    observer = _Observer(model, groups)
    with torch.no_grad():
        for batch in images.split(RANGE_BATCH):
            observer.run(batch)
    return observer.found


class _Observer(fx.Interpreter):
    """Runs a network and keeps what each channel group spans in each tensor."""

    def __init__(self, model: nn.Module, groups: ChannelGroups) -> None:
        super().__init__(fx.GraphModule(model, trace(model)))
        self._places = {
            node.name: (numbers, *numbers.flatten().unique(return_inverse=True))
            for node, numbers in groups.tensors.items()
            if node.op != "get_attr"
        }
        self.found: dict[str, ChannelRanges] = {}

    def run_node(self, node: fx.Node) -> object:
        value = super().run_node(node)
        if node.name in self._places and value.is_floating_point():
            self._record(node.name, value)
        return value

    def _record(self, name: str, value: Tensor) -> None:
        if not value.isfinite().all():
            raise ValueError(f"tensor {name!r} holds values that are not finite")
        shaped, numbers, places = self._places[name]
        # The batch is one of the axes along which all numbers are alike.
        alike = [axis for axis, size in enumerate(shaped.shape) if size == 1]
        low = value.new_full((len(numbers),), math.inf)
        low.scatter_reduce_(0, places, value.amin(alike).flatten(), "amin")
        high = value.new_full((len(numbers),), -math.inf)
        high.scatter_reduce_(0, places, value.amax(alike).flatten(), "amax")
        if name in self.found:
            low = torch.minimum(low, self.found[name].low)
            high = torch.maximum(high, self.found[name].high)
        self.found[name] = ChannelRanges(numbers, low, high)


def barrier_groups(groups: ChannelGroups) -> Tensor:
    """Mask [groups] of those that begin or end at an activation through which nothing passes."""
    mask = torch.zeros(groups.count, dtype=torch.bool)
    for ports in groups.barriers.values():
        mask[ports.inputs] = True
        mask[ports.outputs] = True
    mask[FIXED] = False
    return mask


def outlier_ratios(
    groups: ChannelGroups, ranges: Iterable[ChannelRanges], *, scale: Tensor | None = None
) -> Tensor:
    """How many times wider than its tensor's median channel each group is, at its worst [groups].

    0 for a group that is dead in every tensor. ``scale`` multiplies the groups beforehand.
    """
    ratios = torch.zeros(groups.count)
    scale = torch.ones(groups.count) if scale is None else scale
    for own in ranges:
        wide = own.magnitude * scale[own.groups]
        ratios.scatter_reduce_(0, own.groups, wide / _typical(wide), "amax")
    return ratios


def balancing_scale(
    model: nn.Module, groups: ChannelGroups, ranges: Sequence[ChannelRanges]
) -> Tensor:
    """Find the factor [groups] that gives each free group as much of its tensors as of its weights.

    Group k is scaled so that its range in the activations, over its tensor's median channel, is
    that of the weights that read it, over their median (SmoothQuant, arXiv:2211.10438, equation 4,
    for channels that have several writers). Weights count beside the others of their own filter,
    because each filter has its own scale in int8. A group that only depthwise layers read is made
    as wide as the median.
    """
    free = ~barrier_groups(groups)
    free[FIXED] = False
    readers = _dense_readers(model, groups)
    together = _components(groups, ranges)
    scale = torch.ones(groups.count)
    for _ in range(_MAX_SWEEPS):
        ratios = outlier_ratios(groups, ranges, scale=scale)
        weights = _weight_ratios(groups, readers, scale)
        target = torch.where(weights > 0, (weights / ratios).sqrt(), 1 / ratios)
        alive = free & (ratios > 0)
        step = torch.where(alive, target, 1.0).log()
        # Both are shares of their tensor, so that nothing else holds a tensor as a whole.
        step = torch.where(alive, step - _mean_by(together, step, where=alive), 0.0).exp()
        scale = scale * step
        if step.log().abs().max() < _CONVERGED:
            break
    return scale


def _components(groups: ChannelGroups, ranges: Sequence[ChannelRanges]) -> Tensor:
    """Give each group the number of the set that shares tensors with it, directly or not."""
    firsts = np.concatenate([own.groups[:-1].numpy() for own in ranges])
    seconds = np.concatenate([own.groups[1:].numpy() for own in ranges])
    movable = (firsts != FIXED) & (seconds != FIXED)
    edges = coo_array((movable[movable], (firsts[movable], seconds[movable])), [groups.count] * 2)
    return torch.from_numpy(connected_components(edges, directed=False)[1]).long()


def _mean_by(together: Tensor, values: Tensor, *, where: Tensor) -> Tensor:
    """Mean of ``values`` over each set, of the groups ``where``, for every group of it."""
    total = torch.zeros(int(together.max()) + 1)
    count = torch.zeros_like(total)
    total.index_add_(0, together[where], values[where])
    count.index_add_(0, together[where], torch.ones(int(where.sum())))
    return (total / count.clamp(min=1))[together]


def _dense_readers(model: nn.Module, groups: ChannelGroups) -> dict[str, Tensor]:
    """Largest weight by filter and input channel [O, I], 0 where a filter does not read it."""
    found = {}
    for name in groups.layers:
        layer = model.get_submodule(name)
        if isinstance(layer, nn.Linear):
            found[name] = layer.weight.detach().abs()
        elif isinstance(layer, nn.Conv2d) and layer.weight.shape[1] > 1:
            own = layer.weight.detach().abs().flatten(2).amax(2)
            blocks = own.chunk(layer.groups)
            found[name] = torch.block_diag(*blocks) if layer.groups > 1 else own
    return found


def _weight_ratios(groups: ChannelGroups, readers: dict[str, Tensor], scale: Tensor) -> Tensor:
    """Root mean square over filters of each group's weight, over the median of its layer."""
    ratios = torch.zeros(groups.count)
    for name, weights in readers.items():
        read = groups.layers[name].inputs
        scaled = weights / scale[read]
        share = scaled / scaled.amax(1, keepdim=True).clamp(min=torch.finfo().tiny)
        width = share.square().mean(0).sqrt()
        ratios.scatter_reduce_(0, read, width / _typical(width), "amax")
    return ratios


def _typical(widths: Tensor) -> Tensor:
    """Median of the live channels; 1 where none is."""
    live = widths[widths > 0]
    return live.median() if len(live) else widths.new_ones(())


def equalize(model: nn.Module, *, images: Tensor, inserted: bool = False) -> nn.Module:
    """Give every channel group a fair part of its tensors' range; fp32 is unchanged.

    BatchNorm is folded, constant offsets are absorbed, and every group that can be rescaled is
    balanced between its activations and the weights that read it. With ``inserted`` the outliers
    that only an inserted scale can reach get one.

    Parameters
    ----------
    images : Tensor
        Calibration images [N, C, H, W].

    Raises
    ------
    ValueError
        When the network cannot be traced, or its values are not finite.
    RewriteError
        When the rewritten network's logits differ from its parent's.
    """
    folded = absorb_offsets(fold_batch_norm(model, example=images), images=images)
    groups = channel_groups(folded, example=images[:1])
    ranges = [*channel_ranges(folded, groups, images=images).values()]
    scale = balancing_scale(folded, groups, ranges)
    if inserted:
        ratios = outlier_ratios(groups, ranges, scale=scale)
        scale = torch.where(barrier_groups(groups) & (ratios > OUTLIER), scale / ratios, scale)
    changed = insert_scales(rescale(folded, groups, scale), groups, scale)
    parent = copy.deepcopy(model).eval()
    require_same_function(changed, parent, images=images[:RANGE_BATCH])
    return changed
