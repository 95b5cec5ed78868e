"""Groups of layers that share channels, by Torch-Pruning's dependency graph (arXiv:2301.12900)."""

import copy
import math
import re
import warnings
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import torch
import torch_pruning as tp
from torch import Tensor, nn

from edgeopt.pruning.probing import GRAPH_ERRORS, last_layer, module_without_graph, runs

WRITERS = (nn.modules.conv._ConvNd, nn.Linear)
SHOWN_NAMES = 3  # of parameters in a message
LOOKS = 10  # of a group, for each dependency of the network; DenseNet's groups take less than one


@dataclass(frozen=True)
class LayerChannels:
    """Which groups a convolution or linear layer reads and writes, and how often each.

    A linear layer behind 7x7 pixels reads every channel 49 times.
    """

    inputs: Mapping[str, float]
    outputs: Mapping[str, float]


class _Graph(tp.DependencyGraph):
    """A dependency graph that gives up a group which it would follow without end.

    Where channels are added to a part of others, as in ReXNet, a group comes back to its layers
    with ever other channels.
    """

    def watched(self) -> "_Graph":
        """Count from here on how often the layers' dependencies are looked at."""
        for node in self.module2node.values():
            node.dependencies = _Watched(node.dependencies, self._look)
        return self

    def get_pruning_group(self, *args: Any, **options: Any) -> tp.Group:
        """Find what is pruned with a layer's channels; ``ValueError`` where that has no end."""
        self._looks = LOOKS * sum(len(node.dependencies) for node in self.module2node.values())
        return super().get_pruning_group(*args, **options)

    def _look(self) -> None:
        self._looks -= 1
        if self._looks < 0:
            raise ValueError("its channels are tied to parts of others' without end")


class _Watched(list):
    def __init__(self, own: Iterable, look: Callable[[], None]) -> None:
        super().__init__(own)
        self.look = look

    def __iter__(self) -> Iterator:
        self.look()
        return super().__iter__()


@contextmanager
def pruning_groups(
    model: nn.Module, example_input: Tensor
) -> Iterator[tuple[tp.DependencyGraph, list[tp.Group]]]:
    """Find the groups of layers that share channels; what cannot be taken is named."""
    whole = list(last_layer(model, example_input).modules())
    with warnings.catch_warnings(), torch.enable_grad():
        warnings.filterwarnings("error", message="Unwrapped parameters detected")
        try:
            graph = _Graph().build_dependency(model, example_inputs=example_input).watched()
            yield (
                graph,
                list(graph.get_all_groups(ignored_layers=whole, root_module_types=WRITERS)),
            )
        except UserWarning as warning:
            loose = sorted(re.findall(r"'(.+?)'", str(warning).splitlines()[0]))
            more = f" and {len(loose) - SHOWN_NAMES} more" if len(loose) > SHOWN_NAMES else ""
            raise ValueError(
                f"{type(model).__name__} holds parameters outside a known layer, which the "
                f"dependency graph cannot prune: {', '.join(loose[:SHOWN_NAMES])}{more}"
            ) from warning
        except GRAPH_ERRORS as error:
            name = module_without_graph(model, example_input)
            raise ValueError(f"the dependency graph cannot take {name}: {error}") from error


def group_name(model: nn.Module, group: tp.Group) -> str:
    """First layer of the network that writes a group's channels."""
    writing = tp.DependencyGraph().is_out_channel_pruning_fn
    writers = {
        id(item.dep.target.module)
        for item in group
        if isinstance(item.dep.target.module, WRITERS) and writing(item.dep.handler)
    }
    return next(name for name, module in model.named_modules() if id(module) in writers)


def group_parts(graph: tp.DependencyGraph, group: tp.Group) -> int:
    """Count the equal parts into which grouped convolutions and norms divide the channels."""
    parts = [1]
    for dependency, _ in group:
        layer = dependency.target.module
        pruner = graph.get_pruner_of_module(layer)
        if isinstance(pruner, tp.function.DepthwiseConvPruner):
            continue  # It loses a group with each channel.
        if graph.is_out_channel_pruning_fn(dependency.handler):
            parts.append(pruner.get_out_channel_groups(layer))
        else:
            parts.append(pruner.get_in_channel_groups(layer))
    return math.lcm(*parts)


def group_sizes(model: nn.Module, example_input: Tensor) -> dict[str, tuple[int, int]]:
    """Channels and parts of every group, by name."""
    probed = copy.deepcopy(model).eval().requires_grad_()
    with pruning_groups(probed, example_input) as (graph, groups):
        found = {group_name(probed, g): (len(g[0].idxs), group_parts(graph, g)) for g in groups}
    order = [name for name, _ in probed.named_modules()]
    return dict(sorted(found.items(), key=lambda item: order.index(item[0])))


def channel_widths(model: nn.Module, *, example_input: Tensor) -> dict[str, int]:
    """Count the channels of every group of layers that can be pruned, in the network's order.

    A group is named by the first layer that writes it. ``ValueError`` as :func:`prune_channels`.
    """
    sizes, fixed = group_sizes(model, example_input), fixed_groups(model, example_input)
    return {name: width for name, (width, _) in sizes.items() if name not in fixed}


def width_steps(model: nn.Module, *, example_input: Tensor) -> dict[str, int]:
    """Count the equal parts of every group of :func:`channel_widths`, which lose the same channels.

    A width of the group is a multiple of them.
    """
    sizes = group_sizes(model, example_input)
    return {name: sizes[name][1] for name in channel_widths(model, example_input=example_input)}


def checked_choices(
    choices: Mapping[str, Sequence[int]],
    whole: Mapping[str, int],
    *,
    steps: Mapping[str, int] = MappingProxyType({}),
) -> dict[str, list[int]]:
    """Return the widths that each group can have, in the network's order and each once.

    ``whole`` is :func:`channel_widths`, ``steps`` :func:`width_steps`. Raises ``ValueError`` unless
    there are choices for all groups, the unpruned width and multiples of the step among them.
    """
    if not whole:
        raise ValueError("no channel of the network can be removed")
    if {*choices} != {*whole}:
        raise ValueError(f"widths are given for {[*choices]}; allowed: {', '.join(whole)}")
    for name, own in choices.items():
        step = steps.get(name, 1)
        if whole[name] not in own or any(not 1 <= w <= whole[name] or w % step for w in own):
            words = f"multiples of {step} up to" if step > 1 else "1 to"
            raise ValueError(
                f"{name} is to have {list(own)} channels; allowed: {words} {whole[name]}, with the "
                f"unpruned network's {whole[name]} among them"
            )
    return {name: sorted({*choices[name]}) for name in whole}


def fixed_groups(model: nn.Module, example_input: Tensor) -> set[str]:
    """Name the groups whose channels the network's own code counts, as ``x.view(-1, 400)`` does.

    It fails when they lose some, which no dependency graph can see.
    """
    names = {*group_sizes(model, example_input)}
    if _runs_without(names, model, example_input):
        return set()
    return {name for name in names if not _runs_without({name}, model, example_input)}


def _runs_without(names: Collection[str], model: nn.Module, example_input: Tensor) -> bool:
    """Tell whether a network runs when groups have lost half of the channels of each part.

    Groups that the dependency graph cannot cut so are not judged.
    """
    cut = copy.deepcopy(model).eval().requires_grad_()
    try:
        with pruning_groups(cut, example_input) as (graph, groups):
            chosen = [group for group in groups if group_name(cut, group) in names]
            for group, channels in [(group, _half(graph, group)) for group in chosen]:
                if channels:
                    group.prune(channels)
    except ValueError:
        return True
    return runs(cut, example_input)


def _half(graph: tp.DependencyGraph, group: tp.Group) -> list[int]:
    parts = group_parts(graph, group)
    each = len(group[0].idxs) // parts
    return [part * each + channel for part in range(parts) for channel in range(each // 2)]


def layer_channels(model: nn.Module, *, example_input: Tensor) -> dict[str, LayerChannels]:
    """Tell for every convolution and linear layer which groups its channels are of.

    A layer whose channels are of no group is left out. ``ValueError`` as :func:`prune_channels`.
    """
    probed = copy.deepcopy(model).eval().requires_grad_()
    names = {module: name for name, module in probed.named_modules() if isinstance(module, WRITERS)}
    found = {name: LayerChannels(Counter(), Counter()) for name in names.values()}
    with pruning_groups(probed, example_input) as (graph, groups):
        for group in groups:
            own, width = group_name(probed, group), len(group[0].idxs)
            for item in group:
                if (layer := item.dep.target.module) in names:
                    writes = graph.is_out_channel_pruning_fn(item.dep.handler)
                    side = found[names[layer]].outputs if writes else found[names[layer]].inputs
                    side[own] += len(item.idxs) / width
    for name, layer in ((n, m) for m, n in names.items()):
        if getattr(layer, "groups", 1) == getattr(layer, "in_channels", 0) > 1:  # depthwise
            found[name].inputs.update(found[name].outputs - found[name].inputs)
    return {
        name: LayerChannels(dict(own.inputs), dict(own.outputs))
        for name, own in found.items()
        if own.inputs or own.outputs
    }
