"""The trained networks of a study: baselines, pruned, fine-tuned and from scratch, many at once."""

import copy
import multiprocessing
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import Executor, ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Any

import pandas as pd
import torch
from torch import nn

from edgeopt.data import Split
from edgeopt.host import usable_cores
from edgeopt.model import SmallCNN, set_deterministic
from edgeopt.pruning import count_macs, prune_channels
from edgeopt.schema import CRITERIA, PRUNED_RECIPES, RECIPES, require_known
from edgeopt.training import fit, predict_logits


@dataclass(frozen=True)
class Schedule:
    """How long and how fast to train, with the learning rate annealed to zero by a cosine."""

    epochs: int
    finetune_epochs: int
    learning_rate: float
    batch_size: int


@dataclass(frozen=True)
class Recipe:
    """How one network of the study comes to be."""

    pruning_level: float
    kind: str
    seed: int = 0
    criterion: str = "l1"

    def __post_init__(self) -> None:
        require_known(self.kind, allowed=RECIPES, what="recipe")
        require_known(self.criterion, allowed=CRITERIA, what="criterion")
        if (self.kind in PRUNED_RECIPES) != (self.pruning_level > 0):
            raise ValueError(
                f"recipe {self.kind!r} at pruning level {self.pruning_level}; "
                "allowed: pretrained and baseline at level 0, the others above it"
            )

    @property
    def parent(self) -> "Recipe":
        """The unpruned network that this one is made from."""
        return Recipe(0.0, "baseline" if self.kind == "one-shot" else "pretrained", self.seed)

    @property
    def file_name(self) -> str:
        """Where a run keeps this network's weights."""
        return f"weights/{self.kind}-p{100 * self.pruning_level:g}-seed{self.seed}.pt"


def study_recipes(
    pruning_levels: Iterable[float],
    seeds: Iterable[int],
    *,
    kinds: Sequence[str] = PRUNED_RECIPES,
) -> list[Recipe]:
    """Every kind at every level above zero, for every seed."""
    levels = [level for level in pruning_levels if level > 0]
    return [Recipe(level, kind, seed) for seed in seeds for level in levels for kind in kinds]


@dataclass(frozen=True, eq=False)
class Baseline:
    """An unpruned network: ``pretrained``, which pruning starts from, and trained on as long.

    ``model`` continues ``pretrained`` for the epochs that a pruned network is fine-tuned for, by
    the same schedule, so that what pruning loses is not confused with what those epochs gain.
    ``history`` has one row per epoch of both, with ``stage`` (pretrained or baseline).
    """

    pretrained: nn.Module
    model: nn.Module
    history: pd.DataFrame


def train_baselines(
    model: nn.Module,
    train: Split,
    *,
    validation: Split,
    seeds: Iterable[int],
    schedule: Schedule,
    executor: Executor | None = None,
) -> dict[int, Baseline]:
    """Train one network of ``model``'s architecture per seed; weights start from the seed."""
    seeds = list(seeds)
    task = partial(_train_baseline, model=model, train=train, validation=validation, plan=schedule)
    return dict(zip(seeds, _map(executor)(task, seeds), strict=True))


def train_recipes(
    recipes: Sequence[Recipe],
    unpruned: Mapping[Recipe, SmallCNN],
    train: Split,
    *,
    schedule: Schedule,
    executor: Executor | None = None,
) -> dict[Recipe, SmallCNN]:
    """Make the network of every recipe from the unpruned ones of its seed."""
    task = partial(train_recipe, train=train, schedule=schedule)
    own = [unpruned[recipe.parent] for recipe in recipes]
    return dict(zip(recipes, _map(executor)(task, recipes, own), strict=True))


def train_recipe(recipe: Recipe, parent: SmallCNN, *, train: Split, schedule: Schedule) -> SmallCNN:
    """Make the network of one recipe: a pure, picklable function of its arguments.

    All have as many epochs behind them as the baseline: ``one-shot`` prunes the baseline,
    ``fine-tuned`` prunes the pretrained network and trains on for ``finetune_epochs``, ``scratch``
    trains the pruned architecture from new weights for ``epochs + finetune_epochs`` (Liu et al.,
    2019, arXiv:1810.05270).
    """
    if recipe.kind not in PRUNED_RECIPES:
        return parent
    set_deterministic(recipe.seed)
    loader = train.loader(schedule.batch_size, shuffle=True, seed=recipe.seed)
    pruned = _prune(recipe, parent, train=train, schedule=schedule)
    if recipe.kind == "one-shot":
        return pruned
    epochs = schedule.finetune_epochs
    if recipe.kind == "scratch":
        pruned = reinitialised(pruned, seed=recipe.seed)
        epochs += schedule.epochs
    rate = schedule.learning_rate
    return fit(pruned, loader, epochs=epochs, learning_rate=rate, cosine=True, progress=False).model


def reinitialised(model: nn.Module, *, seed: int) -> nn.Module:
    """Return the same architecture with new random weights."""
    fresh = copy.deepcopy(model)
    set_deterministic(seed)
    for module in fresh.modules():
        if hasattr(module, "reset_parameters"):
            module.reset_parameters()
    return fresh


def accuracy_table(networks: dict[Recipe, nn.Module], split: Split) -> pd.DataFrame:
    """One row per network: which it is, how large, how accurate.

    Columns: ``seed, pruning_level, recipe, criterion``; ``channels``, those of each convolution in
    turn, as in ``8/16``, ``macs`` of one image and ``parameters``; ``accuracy``.
    """
    rows = [
        {
            "seed": recipe.seed,
            "pruning_level": recipe.pruning_level,
            "recipe": recipe.kind,
            "criterion": recipe.criterion,
            "channels": _channels(model),
            "macs": count_macs(model, example_input=split.images[:1]),
            "parameters": sum(p.numel() for p in model.parameters()),
            "accuracy": _accuracy(model, split),
        }
        for recipe, model in networks.items()
    ]
    keys, sizes = ["seed", "pruning_level", "recipe", "criterion"], ["channels", "macs"]
    return pd.DataFrame(rows, columns=[*keys, *sizes, "parameters", "accuracy"])


def process_pool(workers: int | None = None) -> ProcessPoolExecutor:
    """Workers with one torch thread each, as many as there are usable cores unless told.

    They are forked from a server that has imported the package once, and has no threads.
    """
    workers = workers or usable_cores()
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["edgeopt.candidates", "edgeopt.recipes"])
    return ProcessPoolExecutor(
        workers, mp_context=context, initializer=torch.set_num_threads, initargs=(1,)
    )


def _train_baseline(
    seed: int, *, model: nn.Module, train: Split, validation: Split, plan: Schedule
) -> Baseline:
    options = {
        "learning_rate": plan.learning_rate,
        "val_loader": validation.loader(256),
        "cosine": True,
        "progress": False,
    }
    stages, network = {}, reinitialised(model, seed=seed)
    for stage, epochs in (("pretrained", plan.epochs), ("baseline", plan.finetune_epochs)):
        set_deterministic(seed)
        loader = train.loader(plan.batch_size, shuffle=True, seed=seed)
        stages[stage] = fit(network, loader, epochs=epochs, **options)
        network = stages[stage].model
    first, second = (trained.history.assign(stage=stage) for stage, trained in stages.items())
    second["epoch"] += plan.epochs
    history = pd.concat([first, second], ignore_index=True) if len(second) else first
    return Baseline(stages["pretrained"].model, network, history)


def _prune(recipe: Recipe, parent: SmallCNN, *, train: Split, schedule: Schedule) -> SmallCNN:
    return prune_channels(
        parent,
        recipe.pruning_level,
        example_input=train.images[:1],
        criterion=recipe.criterion,
        round_to=1,
        loader=train.loader(schedule.batch_size, shuffle=True, seed=recipe.seed),
        seed=recipe.seed,
    )


def _channels(model: nn.Module) -> str:
    return "/".join(str(m.out_channels) for m in model.modules() if isinstance(m, nn.Conv2d))


def _accuracy(model: nn.Module, split: Split) -> float:
    return (predict_logits(model, split.images).argmax(1) == split.labels).float().mean().item()


def _map(executor: Executor | None) -> Callable[..., Iterable[Any]]:
    return executor.map if executor else map
