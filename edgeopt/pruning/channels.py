"""Channel pruning: a trained model in, a smaller model out; the input is never changed."""

import copy
import itertools
import logging
import math
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial

import torch
import torch_pruning as tp
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode, sdpa_flop_count

from edgeopt.model import SmallCNN
from edgeopt.pruning.groups import (
    WRITERS,
    channel_widths,
    fixed_groups,
    group_name,
    group_parts,
    group_sizes,
    pruning_groups,
)
from edgeopt.pruning.probing import run_named, runs, trains
from edgeopt.schema import CRITERIA, require_at_least, require_known

logger = logging.getLogger(__name__)

TAYLOR_BATCHES = 10
Kept = Callable[[str, int, int], int]  # of a group's name, channels a part, and parts


def structured_channel_prune(model: SmallCNN, pruning_level: float) -> SmallCNN:
    """Keep the filters of ``conv1`` and ``conv2`` with the largest L1 norm (arXiv:1608.08710).

    Each layer of C filters keeps ``max(1, round(C * (1 - pruning_level)))`` of them, in their
    order, the first of equals. ``conv2`` loses the matching inputs; ``classifier`` keeps the
    spatial block (7x7) of every kept channel. It is :func:`prune_channels` by ``l1``, off the grid.

    Raises
    ------
    ValueError
        When ``pruning_level`` is not a number in [0, 1).
    TypeError
        When ``model`` is not a SmallCNN.
    """
    if not isinstance(model, SmallCNN):
        raise TypeError(
            f"structured_channel_prune takes a SmallCNN, not {type(model).__name__}; "
            "prune_channels takes any model"
        )
    image = model.conv1.weight.new_zeros(1, 1, 28, 28)
    return prune_channels(model, pruning_level, example_input=image, criterion="l1", round_to=1)


def prune_channels(
    model: nn.Module,
    pruning_level: float,
    *,
    example_input: Tensor,
    criterion: str = "l1",
    round_to: int = 8,
    loader: Iterable[tuple[Tensor, Tensor]] | None = None,
    seed: int = 0,
) -> nn.Module:
    """Prune any classifier through Torch-Pruning's dependency graph (arXiv:2301.12900).

    Every group of layers that share C channels (residual, depthwise, squeeze-and-excitation)
    keeps the same ``max(1, round(C * (1 - pruning_level)))`` of them, whatever the criterion. A
    channel counts as much as the filters that write it, on average over the layers that do; what
    reads it is not asked. Of equal channels the first stay. The layer that makes the logits is
    left whole, and so are, with a warning, groups whose channels the network's own code counts, as
    ``x.view(-1, 400)`` does. All parameters of the result can be trained.

    Parameters
    ----------
    example_input : Tensor
        Images [B, C, H, W] of the size that the model serves.
    criterion : str
        What a filter w counts: ``l1``, its sum of abs(w) (arXiv:1608.08710); ``l2``, the root of
        its sum of w**2; ``taylor``, its sum of abs(w * dLoss/dw) (arXiv:1906.10771, takes
        ``loader``); ``random``, the control, drawn from ``seed``.
    round_to : int
        Kept channels are rounded to the nearest multiple of it, at least one. A convolution in
        groups, and a group norm, keep as many channels in each of their groups.
    loader : iterable of (images, labels), optional
        Batches for ``taylor``, the first 10 of which are used.

    Raises
    ------
    ValueError
        For a bad option, or naming the module that the dependency graph cannot take.
    """
    is_number = isinstance(pruning_level, int | float) and not isinstance(pruning_level, bool)
    if not is_number or not 0 <= pruning_level < 1:
        raise ValueError(f"pruning_level is {pruning_level!r}; allowed: a number in [0, 1)")
    require_at_least(1, round_to=round_to)
    kept = partial(_kept_at_level, pruning_level=pruning_level, round_to=round_to)
    options = {"criterion": criterion, "loader": loader, "seed": seed}
    pruned, widths = _pruned(model, kept if pruning_level else None, example_input, **options)
    if pruning_level:
        _check_widths(widths, round_to=round_to)
    if runs(pruned, example_input):
        return _as_many_logits(pruned, model, example_input)
    fixed = fixed_groups(model, example_input)
    if len(fixed) in (0, len(widths)):
        run_named(pruned, example_input)  # raises
    logger.warning(
        "%s: left whole, because its code counts their channels: %s",
        type(model).__name__,
        ", ".join(sorted(fixed)),
    )
    rest = partial(_kept_beside, fixed=fixed, kept=kept)
    pruned, _ = _pruned(model, rest, example_input, **options)
    return _as_many_logits(pruned, model, example_input)


def prune_to_widths(
    model: nn.Module,
    widths: Mapping[str, int],
    *,
    example_input: Tensor,
    criterion: str = "l1",
    loader: Iterable[tuple[Tensor, Tensor]] | None = None,
    seed: int = 0,
) -> nn.Module:
    """Prune groups of layers to widths of their own, by the rules of :func:`prune_channels`.

    Parameters
    ----------
    widths : mapping
        Channels to keep, by the names of :func:`channel_widths`; groups left out stay whole.

    Raises
    ------
    ValueError
        For an unknown group, a width that it cannot have, or as :func:`prune_channels` does.
    """
    sizes = group_sizes(model, example_input)
    for name, width in widths.items():
        require_known(name, allowed=sizes, what="channel group")
        whole, parts = sizes[name]
        if not 1 <= width <= whole or width % parts:
            allowed = f"1 to {whole}" + (f", multiples of {parts}" if parts > 1 else "")
            raise ValueError(f"{name} is to keep {width} channels; allowed: {allowed}")
    kept = partial(_kept_of_widths, widths=widths)
    options = {"criterion": criterion, "loader": loader, "seed": seed}
    pruned, _ = _pruned(model, kept, example_input, **options)
    return _as_many_logits(pruned, model, example_input)


def _pruned(
    model: nn.Module,
    kept: Kept | None,
    example_input: Tensor,
    *,
    criterion: str,
    loader: Iterable[tuple[Tensor, Tensor]] | None,
    seed: int,
) -> tuple[nn.Module, list[int]]:
    """Return a pruned copy, and how many channels its groups had; a plain copy without a rule.

    The copy is in eval mode.
    """
    require_known(criterion, allowed=CRITERIA, what="criterion")
    # A frozen network leaves no trace for the dependency graph.
    pruned = copy.deepcopy(model).eval().requires_grad_()
    run_named(pruned, example_input)  # raises, where the images do not fit
    if kept is None:
        return pruned, []
    if criterion == "taylor":
        _accumulate_gradients(pruned, loader)
    score = partial(_score, criterion=criterion, generator=torch.Generator().manual_seed(seed))
    weakest = partial(_weakest, pruned, score=score, kept=kept)
    widths = _prune_in_place(pruned, example_input, weakest=weakest)
    pruned.zero_grad(set_to_none=True)
    return pruned, widths


def _as_many_logits(pruned: nn.Module, model: nn.Module, example_input: Tensor) -> nn.Module:
    """Return a pruned network, in the mode of its parent: it runs, trains and lost no class."""
    whole = copy.deepcopy(model).eval()
    before, after = (run_named(own, example_input)[0].shape[1] for own in (whole, pruned))
    if after != before:
        raise ValueError(
            f"pruning cut the {before} logits to {after}; allowed: one layer makes all"
        )
    if trains(model, example_input) and not trains(pruned, example_input):
        raise ValueError(
            f"{type(model).__name__} has parts that run in training only, where pruning does not "
            "reach; allowed: a network without them, e.g. without auxiliary heads"
        )
    return pruned.train(model.training)


def count_macs(model: nn.Module, *, example_input: Tensor) -> int:
    """Multiply-accumulates of convolutions and matrix products for one image."""
    counter = FlopCounterMode(display=False, custom_mapping=_ON_CPU)
    with _attention_by_parts(), counter, torch.no_grad():
        copy.deepcopy(model).eval()(example_input[:1])
    return counter.get_total_flops() // 2


# Flops of what torch computes in one operator on CPUs, for which FlopCounterMode has no rule: of
# the shapes of query, key, value, and of a sequence [T, B, C] and two weights.
_ON_CPU = {
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: (
        lambda query, key, value, *_, **__: sdpa_flop_count(query, key, value)
    ),
    torch.ops.aten.mkldnn_rnn_layer: (
        lambda given, first, second, *_, **__: (
            2 * math.prod(given[:2]) * (math.prod(first) + math.prod(second))
        )
    ),
}


@contextmanager
def _attention_by_parts() -> Iterator[None]:
    """Keep torch from computing a whole layer of attention in one operator, which none counts."""
    before = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(before)


def channel_importance(
    model: nn.Module,
    *,
    example_input: Tensor,
    criterion: str = "taylor",
    loader: Iterable[tuple[Tensor, Tensor]] | None = None,
) -> dict[str, Tensor]:
    """Score the channels [C] of every group of layers, the highest first.

    By ``taylor`` they are estimates of one loss, so that those of different groups compare; the
    groups and the rules are those of :func:`prune_channels`.
    """
    require_known(criterion, allowed=CRITERIA, what="criterion")
    probed = copy.deepcopy(model).eval().requires_grad_()
    if criterion == "taylor":
        _accumulate_gradients(probed, loader)
    score = partial(_score, criterion=criterion, generator=torch.Generator().manual_seed(0))
    with pruning_groups(probed, example_input) as (graph, groups), torch.no_grad():
        found = {
            group_name(probed, g): _importance(graph, g, score=score).sort(descending=True).values
            for g in groups
        }
    return {name: found[name] for name in channel_widths(model, example_input=example_input)}


def _accumulate_gradients(model: nn.Module, loader: Iterable[tuple[Tensor, Tensor]] | None) -> None:
    batches = list(itertools.islice(loader or (), TAYLOR_BATCHES))
    if not batches:
        raise ValueError(
            "criterion 'taylor' ranks channels by gradients: give it a loader of batches"
        )
    for images, labels in batches:
        nn.functional.cross_entropy(model(images), labels).backward()


def _prune_in_place(
    model: nn.Module, example_input: Tensor, *, weakest: Callable[..., list[int]]
) -> list[int]:
    """Prune the network itself, and return how many channels each group of layers had."""
    with pruning_groups(model, example_input) as (graph, groups):
        # All are ranked before the first is cut: a cut takes weights from filters that read.
        for group, channels in [(group, weakest(graph, group)) for group in groups]:
            if channels:
                group.prune(channels)
    return [len(group[0].idxs) for group in groups]


@torch.no_grad()
def _weakest(
    model: nn.Module,
    graph: tp.DependencyGraph,
    group: tp.Group,
    *,
    score: Callable[[nn.Module], Tensor],
    kept: Kept,
) -> list[int]:
    """List the channels that a group of layers loses, the same ones in each of its parts."""
    parts = group_parts(graph, group)
    importance = _importance(graph, group, score=score).unflatten(0, (parts, -1)).mean(dim=0)
    width = len(importance)
    count = kept(group_name(model, group), width, parts)
    lost = importance.argsort(descending=True, stable=True)[count:].tolist()
    return [part * width + channel for part in range(parts) for channel in lost]


def _kept_at_level(
    name: str, width: int, parts: int, *, pruning_level: float, round_to: int
) -> int:
    """Apply the documents' rule in each part, then take the nearest number on the grid."""
    step = math.lcm(round_to, parts) // parts
    return step * max(1, math.floor(round(width * (1 - pruning_level)) / step + 0.5))


def _kept_beside(name: str, width: int, parts: int, *, fixed: Collection[str], kept: Kept) -> int:
    """Apply a rule to all groups but the fixed ones."""
    return width if name in fixed else kept(name, width, parts)


def _kept_of_widths(name: str, width: int, parts: int, *, widths: Mapping[str, int]) -> int:
    return widths.get(name, width * parts) // parts


def _importance(
    graph: tp.DependencyGraph, group: tp.Group, *, score: Callable[[nn.Module], Tensor]
) -> Tensor:
    """Average the scores of the filters that write a channel, for each channel of the group."""
    total, writers = torch.zeros(2, len(group[0].idxs), dtype=torch.float64)
    for item in group:
        layer = item.dep.target.module
        if isinstance(layer, WRITERS) and graph.is_out_channel_pruning_fn(item.dep.handler):
            channels = torch.tensor(item.root_idxs)
            total.index_add_(0, channels, score(layer)[item.idxs].double().cpu())
            writers.index_add_(0, channels, torch.ones(len(channels), dtype=torch.float64))
    return total / writers


def _score(layer: nn.Module, *, criterion: str, generator: torch.Generator) -> Tensor:
    """Score every output filter of a layer."""
    weight = layer.weight * layer.weight.grad if criterion == "taylor" else layer.weight
    if getattr(layer, "transposed", False):
        weight = weight.unflatten(0, (layer.groups, -1)).transpose(1, 2).flatten(0, 1)
    filters = weight.flatten(1)
    if criterion == "random":
        return torch.rand(len(filters), generator=generator)
    return filters.square().sum(dim=1).sqrt() if criterion == "l2" else filters.abs().sum(dim=1)


def _check_widths(widths: list[int], *, round_to: int) -> None:
    if not widths:
        raise ValueError("no channel can be removed: all layers make the logits")
    if round_to > 1 and max(widths) <= round_to:
        raise ValueError(
            f"no channel can be removed: round_to is {round_to}, "
            f"and no layer has more channels than {max(widths)}"
        )
