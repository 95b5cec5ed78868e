"""Int8 collapses made to order: channels planted far out of their tensors' ranges."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from edgeopt.model import FIXED, channel_groups, fold_batch_norm
from edgeopt.quantization.rescaling import barrier_groups, rescale


def plant_collapse(
    model: nn.Module,
    layer: str,
    channels: int | Sequence[int],
    factor: float,
    *,
    example: Tensor,
) -> nn.Module:
    """Multiply output channels of ``layer`` by ``factor`` and divide what reads them by it.

    The fp32 function stays the same (BatchNorm is folded first); with a large factor static int8
    collapses, because one scale must hold both the planted channels and the others. Through an
    activation such as Hardswish, which is nearly linear for large values only, the factor is passed
    on as well: there the function changes a little.

    Parameters
    ----------
    example : Tensor
        One image [1, C, H, W].

    Raises
    ------
    ValueError
        When the layer cannot be rescaled, a channel does not exist, or ``factor`` is not a
        positive number.
    """
    if not (isinstance(factor, (int, float)) and math.isfinite(factor) and factor > 0):
        raise ValueError(f"factor is {factor!r}; allowed: a positive number")
    folded = fold_batch_norm(model, example=example)
    groups = channel_groups(folded, example=example)
    allowed = [name for name, ports in groups.layers.items() if (ports.outputs != FIXED).any()]
    if layer not in allowed:
        raise ValueError(f"layer {layer!r} cannot be rescaled; allowed: {', '.join(allowed)}")
    outputs = groups.layers[layer].outputs
    chosen = [channels] if isinstance(channels, int) else list(channels)
    if not chosen or not all(0 <= channel < len(outputs) for channel in chosen):
        raise ValueError(f"channels of {layer} are {channels!r}; allowed: 0 to {len(outputs) - 1}")
    scale = torch.ones(groups.count)
    scale[outputs[chosen]] = factor
    for ports in groups.barriers.values():
        if ports.inputs.shape == ports.outputs.shape:
            scale[ports.outputs[torch.isin(ports.inputs, outputs[chosen])]] = factor
    scale[FIXED] = 1
    return rescale(folded, groups, scale)


@dataclass(frozen=True, eq=False)
class Specimen:
    """A network with one planted channel; in fp32 ``model`` computes what its original does."""

    model: nn.Module
    layer: str
    channel: int


def plant_specimen(model: nn.Module, *, channel: int, factor: float, example: Tensor) -> Specimen:
    """Plant a collapse in the first layer that can be rescaled, at ``channel`` or its last one.

    Raises ``ValueError`` where the network cannot be traced, or no layer can be rescaled.
    """
    groups = channel_groups(fold_batch_norm(model, example=example), example=example)
    held = barrier_groups(groups)
    held[FIXED] = True
    free = {n: p.outputs for n, p in groups.layers.items() if not held[p.outputs].any()}
    if not free:
        raise ValueError(f"no layer of {type(model).__name__} can be rescaled")
    layer, outputs = next(iter(free.items()))
    channel = min(channel, len(outputs) - 1)
    planted = plant_collapse(model, layer, channel, factor, example=example)
    return Specimen(planted, layer, channel)
