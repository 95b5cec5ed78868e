"""Rescaling channels between layers without changing the fp32 function.

Where only positively homogeneous operations (ReLU, pooling, flatten) lie between a layer and all
the layers that read it, output channel k can be multiplied by s > 0 and the readers' input channel
k divided by s. A quantizer, which gives a whole tensor one scale, then meets another network: a bad
choice of s makes int8 collapse, a good one undoes it.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from edgeopt.quantization.links import Link, find_links, fold_batch_norm

_MAX_SWEEPS = 100
_CONVERGED = 1e-3  # largest remaining correction, as a natural logarithm


def plant_collapse(
    model: nn.Module, layer: str, channels: int | Sequence[int], factor: float
) -> nn.Module:
    """Multiply output channels of ``layer`` by ``factor`` and divide their readers' inputs by it.

    The fp32 function stays the same (BatchNorm is folded first); with a large factor static int8
    collapses, because one scale must hold both the planted channels and the others.

    Raises
    ------
    ValueError
        When the layer cannot be rescaled, a channel does not exist, or ``factor`` is not a
        positive number.
    """
    if not (isinstance(factor, (int, float)) and math.isfinite(factor) and factor > 0):
        raise ValueError(f"factor is {factor!r}; allowed: a positive number")
    planted = fold_batch_norm(model)
    links = {link.source: link for link in find_links(planted)}
    if layer not in links:
        raise ValueError(f"layer {layer!r} cannot be rescaled; allowed: {', '.join(links)}")
    width = _channels(planted.get_submodule(layer))
    chosen = [channels] if isinstance(channels, int) else list(channels)
    if not chosen or not all(0 <= channel < width for channel in chosen):
        raise ValueError(f"channels of {layer} are {channels!r}; allowed: 0 to {width - 1}")
    scale = torch.ones(width)
    scale[chosen] = factor
    _rescale(planted, links[layer], scale)
    return planted


@dataclass(frozen=True, eq=False)
class Specimen:
    """A network with one planted channel; in fp32 ``model`` computes what its original does."""

    model: nn.Module
    layer: str
    channel: int


def plant_specimen(model: nn.Module, *, channel: int, factor: float) -> Specimen:
    """Plant a collapse in the first layer that can be rescaled, at ``channel`` or its last one.

    Raises ``ValueError`` where torch.fx cannot trace the network, or no layer can be rescaled.
    """
    folded = fold_batch_norm(model)
    links = find_links(folded)
    if not links:
        raise ValueError(f"no layer of {type(model).__name__} can be rescaled")
    layer = links[0].source
    channel = min(channel, _channels(folded.get_submodule(layer)) - 1)
    return Specimen(plant_collapse(model, layer, channel, factor), layer, channel)


def equalize(model: nn.Module, *, images: Tensor | None = None) -> nn.Module:
    """Balance every rescalable channel between its layer and its readers; fp32 is unchanged.

    Cross-layer equalization (Nagel et al. 2019, doi:10.1109/ICCV.2019.00141): channel k is scaled
    so that its weights' range in the layer equals that in its readers. With ``images`` the range of
    its activations on them takes the place of the layer's weights (as in SmoothQuant,
    arXiv:2211.10438), which suits weights that are quantized per channel.

    Parameters
    ----------
    images : Tensor, optional
        Calibration images [N, C, H, W].
    """
    balanced = fold_batch_norm(model)
    links = find_links(balanced)
    observed = None if images is None else _activation_ranges(balanced, links, images)
    for _ in range(_MAX_SWEEPS):
        corrections = [_balance_link(balanced, link, observed) for link in links]
        if max(corrections, default=0.0) < _CONVERGED:
            break
    return balanced


def _balance_link(model: nn.Module, link: Link, observed: dict[str, Tensor] | None) -> float:
    """Balance one link; the largest logarithm of a correction says how far off it was."""
    layer = model.get_submodule(link.source)
    source = _filter_ranges(layer) if observed is None else observed[link.source]
    scale = _balance(source, _reader_ranges(model, link))
    _rescale(model, link, scale)
    if observed is not None:
        observed[link.source] = source * scale
    return float(scale.log().abs().max())


def _balance(source: Tensor, readers: Tensor) -> Tensor:
    """Scale that makes ``source * scale == readers / scale``; 1 for a dead channel."""
    alive = (source > 0) & (readers > 0)
    return torch.where(alive, (readers / source).sqrt(), 1.0)


def _filter_ranges(layer: nn.Module) -> Tensor:
    weights = layer.weight.detach().flatten(1).abs().amax(dim=1)  # [C]
    if layer.bias is None:
        return weights
    return torch.where(weights > 0, weights, layer.bias.detach().abs())


def _reader_ranges(model: nn.Module, link: Link) -> Tensor:
    width = _channels(model.get_submodule(link.source))
    return torch.stack(
        [
            _by_input_channel(model.get_submodule(name), width).abs().amax(dim=(0, 2))
            for name in link.readers
        ]
    ).amax(dim=0)


def _by_input_channel(layer: nn.Module, width: int) -> Tensor:
    """View a reader's weight as [outputs of a group, input channel, taps]."""
    weight = layer.weight.detach()
    if isinstance(layer, nn.Linear):
        return weight.unflatten(1, (width, -1))  # flatten lays a channel's pixels side by side
    grouped = weight.unflatten(0, (layer.groups, -1)).flatten(3)  # [G, out/G, in/G, taps]
    return grouped.transpose(1, 2).flatten(0, 1).transpose(0, 1)


def _activation_ranges(model: nn.Module, links: list[Link], images: Tensor) -> dict[str, Tensor]:
    """Largest magnitude per output channel of each link's source, as its readers see it."""
    found: dict[str, Tensor] = {}

    def observe(link: Link) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
        width = _channels(model.get_submodule(link.source))

        def record(_: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            ranges = inputs[0].unflatten(1, (width, -1)).flatten(2).abs().amax(dim=(0, 2))
            found[link.source] = torch.maximum(ranges, found.get(link.source, ranges))

        return record

    hooks = [
        model.get_submodule(name).register_forward_pre_hook(observe(link))
        for link in links
        for name in link.readers
    ]
    with torch.no_grad():
        model(images)
    for hook in hooks:
        hook.remove()
    return found


@torch.no_grad()
def _rescale(model: nn.Module, link: Link, scale: Tensor) -> None:
    layer = model.get_submodule(link.source)
    layer.weight.mul_(scale.view(-1, *[1] * (layer.weight.dim() - 1)))
    if layer.bias is not None:
        layer.bias.mul_(scale)
    for name in link.readers:
        reader = model.get_submodule(name)
        if isinstance(reader, nn.Linear):
            reader.weight.div_(scale.repeat_interleave(reader.in_features // len(scale)))
        else:
            per_group = scale.view(reader.groups, 1, -1, 1, 1)
            reader.weight.copy_(
                (reader.weight.unflatten(0, (reader.groups, -1)) / per_group).flatten(0, 1)
            )


def _channels(layer: nn.Module) -> int:
    return layer.weight.shape[0]
