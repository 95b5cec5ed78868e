"""Channel pruning: a trained model in, a smaller model out; the input is never changed."""

import copy
import itertools
import warnings
from collections.abc import Iterable, Sequence
from typing import Any

import torch
import torch_pruning as tp
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from edgeopt.model import SmallCNN
from edgeopt.probing import last_layer, module_named, module_without_graph, run_named
from edgeopt.schema import CRITERIA, require_known

_SEARCH_STEPS = 8


def structured_channel_prune(model: SmallCNN, pruning_level: float) -> SmallCNN:
    """Keep the filters of ``conv1`` and ``conv2`` with the largest L1 norm (arXiv:1608.08710).

    Each layer of C filters keeps ``max(1, round(C * (1 - pruning_level)))`` of them, in their
    order. ``conv2`` loses the matching inputs; ``classifier`` keeps the spatial block (7x7) of
    every kept channel.

    Raises
    ------
    ValueError
        When ``pruning_level`` is not a number in [0, 1).
    """
    check_pruning_level(pruning_level)
    if not isinstance(model, SmallCNN):
        raise TypeError(
            f"structured_channel_prune takes a SmallCNN, not {type(model).__name__}; "
            "prune_channels takes any model"
        )
    kept1 = _strongest_filters(model.conv1.weight, pruning_level)
    kept2 = _strongest_filters(model.conv2.weight, pruning_level)
    weight = model.classifier.weight.detach()
    blocks = weight.unflatten(1, (model.conv2.out_channels, -1))  # [classes, C2, 49]
    state = {
        "conv1.weight": model.conv1.weight.detach()[kept1],
        "conv1.bias": model.conv1.bias.detach()[kept1],
        "conv2.weight": model.conv2.weight.detach()[kept2][:, kept1],
        "conv2.bias": model.conv2.bias.detach()[kept2],
        "classifier.weight": blocks[:, kept2].flatten(1),
        "classifier.bias": model.classifier.bias.detach(),
    }
    pruned = SmallCNN(len(kept1), len(kept2), model.classifier.out_features).to(weight)
    pruned.load_state_dict(state)
    return pruned.train(model.training)


def check_pruning_level(pruning_level: float) -> None:
    """Raise ``ValueError`` unless ``pruning_level`` is a number in [0, 1)."""
    is_number = isinstance(pruning_level, (int, float)) and not isinstance(pruning_level, bool)
    if not is_number or not 0 <= pruning_level < 1:
        raise ValueError(f"pruning_level is {pruning_level!r}; allowed: a number in [0, 1)")


def _strongest_filters(weight: Tensor, pruning_level: float) -> Tensor:
    count = max(1, round(len(weight) * (1 - pruning_level)))
    norms = weight.detach().abs().flatten(1).sum(dim=1)
    return norms.argsort(descending=True, stable=True)[:count].sort().values


def prune_channels(
    model: nn.Module,
    pruning_level: float,
    *,
    example_input: Tensor,
    criterion: str = "l1",
    ignored: Sequence[str] = (),
    round_to: int = 8,
    loader: Iterable[tuple[Tensor, Tensor]] | None = None,
    taylor_batches: int = 10,
    seed: int = 0,
) -> nn.Module:
    """Prune any classifier through Torch-Pruning's dependency graph (arXiv:2301.12900).

    Every group of layers that share channels (residual, depthwise, squeeze-and-excitation)
    loses the same ones, ranked by the importance averaged over the group. The layer that makes
    the logits is left whole.

    Parameters
    ----------
    example_input : Tensor
        Images [B, C, H, W] of the size that the model serves.
    criterion : str
        ``l1`` or ``l2`` norm, ``taylor`` (arXiv:1906.10771, takes ``loader``), or ``random``.
    ignored : sequence of str
        Names of modules that keep their channels.
    round_to : int
        Kept channels are rounded down to a multiple of it, but never below one such multiple.
    loader : iterable of (images, labels), optional
        Batches for ``taylor``, the first ``taylor_batches`` of which are used.

    Raises
    ------
    ValueError
        For a bad option, or naming the module that the dependency graph cannot take.
    """
    check_pruning_level(pruning_level)
    require_known(criterion, allowed=CRITERIA, what="criterion")
    if isinstance(round_to, bool) or not isinstance(round_to, int) or round_to < 1:
        raise ValueError(f"round_to is {round_to!r}; allowed: a whole number, 1 or more")
    pruned = copy.deepcopy(model).eval()
    classes = run_named(pruned, example_input).shape[1]
    if pruning_level == 0:
        return pruned.train(model.training)
    kept = [module_named(pruned, name) for name in ignored]
    kept.append(last_layer(pruned, example_input))
    if criterion == "taylor":
        _accumulate_gradients(pruned, loader, batches=taylor_batches)
    _prune_in_place(
        pruned,
        example_input,
        seed=seed,
        importance=_importance(criterion),
        pruning_ratio=pruning_level,
        round_to=round_to,
        ignored_layers=kept,
    )
    pruned.zero_grad(set_to_none=True)
    _check_pruned(pruned, model, example_input, classes=classes)
    return pruned.train(model.training)


def prune_to_macs(
    model: nn.Module, macs_ratio: float, *, example_input: Tensor, **options: Any
) -> nn.Module:
    """Prune by the lowest level that leaves at most ``macs_ratio`` of the MACs.

    ``options`` are those of :func:`prune_channels`. The level is found by bisection to 1/256.

    Raises
    ------
    ValueError
        When ``macs_ratio`` is not in (0, 1), or lies below what pruning can reach.
    """
    if not 0 < macs_ratio < 1:
        raise ValueError(f"macs_ratio is {macs_ratio!r}; allowed: a number in (0, 1)")
    budget = macs_ratio * count_macs(model, example_input=example_input)
    # How many channels a level leaves does not depend on which, so the search needs no ranking.
    probe = {**options, "criterion": "random", "example_input": example_input}
    low, high = 0.0, 1.0
    for _ in range(_SEARCH_STEPS):
        level = (low + high) / 2
        macs = count_macs(prune_channels(model, level, **probe), example_input=example_input)
        low, high = (low, level) if macs <= budget else (level, high)
    if high == 1.0:
        raise ValueError(
            f"macs_ratio {macs_ratio} cannot be reached; pruning level {low} leaves {macs} MACs "
            f"of the {budget:.0f} allowed"
        )
    return prune_channels(model, high, example_input=example_input, **options)


def count_macs(model: nn.Module, *, example_input: Tensor) -> int:
    """Multiply-accumulates of convolutions and matrix products for one image."""
    was_training = model.training
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model.eval()(example_input[:1])
    model.train(was_training)
    return counter.get_total_flops() // 2


class _Pruner(tp.pruner.BasePruner):
    """Torch-Pruning's pruner, which would leave a group whole where rounding takes all of it."""

    def _round_to(self, n_pruned: int, current_channels: int, round_to: int) -> int:
        multiples = max(1, (current_channels - n_pruned) // round_to)
        return max(0, current_channels - multiples * round_to)


def _importance(criterion: str) -> tp.importance.Importance:
    if criterion == "taylor":
        return tp.importance.GroupTaylorImportance()
    if criterion == "random":
        return tp.importance.RandomImportance()
    return tp.importance.GroupMagnitudeImportance(p={"l1": 1, "l2": 2}[criterion])


def _accumulate_gradients(
    model: nn.Module, loader: Iterable[tuple[Tensor, Tensor]] | None, *, batches: int
) -> None:
    if loader is None:
        raise ValueError("criterion 'taylor' ranks channels by gradients: give it a loader")
    losses = [
        nn.functional.cross_entropy(model(images), labels).backward()
        for images, labels in itertools.islice(loader, batches)
    ]
    if not losses:
        raise ValueError("criterion 'taylor' was given a loader without batches")


def _prune_in_place(model: nn.Module, example_input: Tensor, *, seed: int, **options: Any) -> None:
    # The library's default dictionaries are shared between pruners, so each gets its own.
    fresh = {"in_channel_groups": {}, "out_channel_groups": {}, "num_heads": {}}
    with warnings.catch_warnings(), torch.random.fork_rng(devices=[]), torch.enable_grad():
        warnings.filterwarnings("error", message="Unwrapped parameters detected")
        torch.manual_seed(seed)
        try:
            _Pruner(model, example_input, **options, **fresh).step()
        except UserWarning as warning:
            names = str(warning).splitlines()[0].partition(": ")[2]
            raise ValueError(
                f"{type(model).__name__} holds parameters outside a known layer, which the "
                f"dependency graph cannot prune: {names}"
            ) from warning
        # The library fails on unknown structure with whatever its arithmetic meets.
        except (ArithmeticError, LookupError, TypeError, ValueError, RuntimeError) as error:
            name = module_without_graph(model, example_input)
            raise ValueError(f"the dependency graph cannot take {name}: {error}") from error


def _check_pruned(
    pruned: nn.Module, model: nn.Module, example_input: Tensor, *, classes: int
) -> None:
    width = run_named(pruned, example_input).shape[1]
    if width != classes:
        raise ValueError(f"pruning cut the {classes} logits to {width}; name the head in ignored")
    sizes = [sum(p.numel() for p in m.parameters()) for m in (model, pruned)]
    if sizes[0] == sizes[1]:
        raise ValueError("no channel can be removed: lower round_to or raise pruning_level")
