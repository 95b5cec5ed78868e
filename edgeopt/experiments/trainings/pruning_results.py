"""What pruning left of each network: channels, multiply-accumulates, accuracy."""

from collections.abc import Mapping
from dataclasses import asdict

import pandas as pd
from torch import nn

from edgeopt.data import Split
from edgeopt.experiments.trainings.recipes import Recipe
from edgeopt.metrics import wilson_interval
from edgeopt.model import predict_logits
from edgeopt.pruning import count_macs

# Of a level: a grid of channels that misses it by more says what was reached instead.
LEVEL_TOLERANCE = 0.25


def accuracy_table(
    networks: Mapping[Recipe, nn.Module], splits: Mapping[str, Split]
) -> pd.DataFrame:
    """One row per network: which it is, how large, how accurate on its network's split.

    Columns: ``model, seed, pruning_level, recipe, criterion``; ``channels``, those of each
    convolution in turn, as in ``8/16``; ``macs`` of one image and ``parameters``; ``accuracy``
    with Wilson's 95% interval, ``accuracy_low, accuracy_high``.
    """
    rows = [
        {
            **asdict(recipe),
            "recipe": recipe.kind,
            "channels": "/".join(map(str, _channels(model))),
            **_size(model, splits[recipe.model]),
            **_accuracy(model, splits[recipe.model]),
        }
        for recipe, model in networks.items()
    ]
    keys = ["model", "seed", "pruning_level", "recipe", "criterion", "channels"]
    numbers = ["macs", "parameters", "accuracy", "accuracy_low", "accuracy_high"]
    return pd.DataFrame(rows, columns=[*keys, *numbers])


def size_table(networks: Mapping[Recipe, nn.Module], splits: Mapping[str, Split]) -> pd.DataFrame:
    """Set what each level leaves of each network beside what was asked for.

    Columns: ``model, pruning_level``; ``level_reached``, the share of all prunable channels that
    were removed; ``channels`` of the network's convolutions, ``macs`` and ``parameters``, with the
    shares that are kept; ``note``, which says so where the level is missed by more than a quarter
    of it: by the grid of channels, or because the network's code counts channels of a layer.
    """
    first = {r.model: model for r, model in networks.items() if not r.pruning_level}
    rows = [
        {
            "model": recipe.model,
            "pruning_level": recipe.pruning_level,
            "level_reached": _level_reached(first[recipe.model], model),
            "note": _left_whole(first[recipe.model], model),
            "channels": sum(_channels(model)),
            **_size(model, splits[recipe.model]),
        }
        for recipe, model in networks.items()
    ]
    table = pd.DataFrame(rows).drop_duplicates(ignore_index=True)
    whole = table.groupby("model")[["macs", "parameters"]].transform("max")
    missed = (table["level_reached"] - table["pruning_level"]).abs()
    off = missed > LEVEL_TOLERANCE * table["pruning_level"]
    reached = table["level_reached"].map("reached {:.0%}".format)
    cause = table.pop("note").map(lambda names: f", with {names} left whole" if names else "")
    note = reached + cause
    return table.assign(
        macs_kept=table["macs"] / whole["macs"],
        parameters_kept=table["parameters"] / whole["parameters"],
        note=note.where(off, ""),
    )


def filter_norms(model: nn.Module, *, layers: int) -> pd.DataFrame:
    """L1 norm of every filter of at most ``layers`` convolutions, spread over the network.

    Columns: ``layer, filter, l1_norm``.
    """
    convolutions = [(name, m) for name, m in model.named_modules() if isinstance(m, nn.Conv2d)]
    step = -(-len(convolutions) // layers)
    rows = [
        (name, index, norm)
        for name, layer in convolutions[:: max(1, step)]
        for index, norm in enumerate(layer.weight.detach().abs().sum(dim=(1, 2, 3)).tolist())
    ]
    return pd.DataFrame(rows, columns=["layer", "filter", "l1_norm"])


def _channels(model: nn.Module) -> list[int]:
    return [m.out_channels for m in model.modules() if isinstance(m, nn.Conv2d)]


def _size(model: nn.Module, split: Split) -> dict[str, int]:
    return {
        "macs": count_macs(model, example_input=split.take(1)),
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
    }


def _level_reached(whole: nn.Module, pruned: nn.Module) -> float:
    """Share of the channels that are gone, over the layers that the head is not one of."""
    before, after = _widths(whole), _widths(pruned)
    return 1 - sum(after.values()) / sum(before.values())


def _left_whole(whole: nn.Module, pruned: nn.Module) -> str:
    """Name the layers that lost no channel."""
    after = _widths(pruned)
    return ", ".join(name for name, width in _widths(whole).items() if after[name] == width)


def _widths(model: nn.Module) -> dict[str, int]:
    """Channels that each layer makes, but the head."""
    layers = [(n, m) for n, m in model.named_modules() if isinstance(m, nn.Conv2d | nn.Linear)]
    return {name: layer.weight.shape[0] for name, layer in layers[:-1]}


def _accuracy(model: nn.Module, split: Split) -> dict[str, float]:
    right = (predict_logits(model, split).argmax(1) == split.labels).sum().item()
    low, high = wilson_interval(right, len(split))
    return {"accuracy": right / len(split), "accuracy_low": low, "accuracy_high": high}
