"""The trained networks of a run: unpruned, pruned, fine-tuned and from scratch, each made once."""

import copy
import hashlib
import inspect
import sys
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass, replace
from typing import Annotated, Any

import pandas as pd
import torch
import torch_pruning
from pydantic import Field
from torch import Tensor, nn

from edgeopt.data import Split
from edgeopt.model import build_model, fit, last_layer, network_digest, set_deterministic, training
from edgeopt.pruning import channels as pruning
from edgeopt.pruning import prune_channels
from edgeopt.schema import (
    CRITERIA,
    PRUNED_RECIPES,
    RECIPES,
    Positive,
    PositiveFloat,
    checked_spec,
    file_stem,
    require_known,
)
from edgeopt.system import Store, from_bytes, run_as_completed, to_bytes

# torchvision's mobile networks average their BatchNorm statistics with a momentum of 0.01, which
# takes more steps to settle than a short training has: they would be served half initialised.
NORM_MOMENTUM = 0.1
# Its EfficientNets begin with logits in the tens, which a short training spends epochs to undo.
HEAD_STD = 0.01
_BATCH_NORM = nn.modules.batchnorm._BatchNorm


@checked_spec
class Schedule:
    """How long and how fast to train, with the learning rate annealed to zero by a cosine."""

    epochs: Annotated[int, Field(ge=0)] = 6
    finetune_epochs: Annotated[int, Field(ge=0)] = 2
    learning_rate: PositiveFloat = 3e-3
    batch_size: Positive = 64


@dataclass(frozen=True, eq=False)
class Training:
    """What a training gave: the state dict, and one row per epoch as in :func:`training.fit`."""

    state: dict[str, Tensor]
    history: pd.DataFrame

    def to_dict(self) -> dict[str, Any]:
        """Return what a :class:`edgeopt.system.Store` keeps."""
        return {"state": self.state, "history": self.history.to_dict("list")}

    @classmethod
    def from_dict(cls, kept: Mapping[str, Any]) -> "Training":
        """Build it from what was kept."""
        return cls(kept["state"], pd.DataFrame(kept["history"]))


@dataclass(frozen=True)
class Recipe:
    """How one network of the study comes to be."""

    model: str
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
    def parent(self) -> "Recipe | None":
        """The network that this one is made from; None where it starts from first weights."""
        parents = {"baseline": "pretrained", "one-shot": "baseline", "fine-tuned": "pretrained"}
        if self.kind not in parents:
            return None
        return replace(self, pruning_level=0.0, kind=parents[self.kind], criterion="l1")

    @property
    def network(self) -> tuple[str, int, float]:
        """Model, seed and pruning level, which candidates know their network by."""
        return self.model, self.seed, self.pruning_level

    @property
    def name(self) -> str:
        """What the network is, in a form that file names can hold."""
        criterion = "" if self.criterion == "l1" else f"-{self.criterion}"
        level = f"p{100 * self.pruning_level:g}{criterion}"
        return f"{file_stem(self.model)}-{self.kind}-{level}-seed{self.seed}"

    @property
    def file_name(self) -> str:
        """Where a run keeps this network's weights."""
        return f"weights/{self.name}.pt"


def pruned_recipes(
    models: Iterable[str],
    pruning_levels: Iterable[float],
    seeds: Iterable[int],
    *,
    kinds: Sequence[str] = PRUNED_RECIPES,
    criteria: Sequence[str] = ("l1",),
) -> list[Recipe]:
    """Every kind by every criterion at every level above zero, for every network and seed."""
    levels = [level for level in pruning_levels if level > 0]
    return [
        Recipe(model, level, kind, seed, criterion)
        for model in models
        for seed in seeds
        for level in levels
        for criterion in criteria
        for kind in kinds
    ]


@dataclass(frozen=True, eq=False)
class TrainingPlan:
    """All that decides how one network of a run is trained; picklable.

    Parameters
    ----------
    model : str
        A name that :func:`edgeopt.model.build_model` takes.
    train, validation : Split
        Images as this network expects them; validation is scored after each epoch only.
    weights : str, optional
        What training starts from, as :func:`edgeopt.model.build_model` takes it; random from the
        seed when omitted.
    channel_multiple : int
        Pruned layers keep a multiple of it.
    """

    model: str
    train: Split
    validation: Split
    num_classes: int
    schedule: Schedule
    weights: str | None = None
    channel_multiple: int = 1
    conv1_channels: int = 16
    conv2_channels: int = 32

    @property
    def example(self) -> Tensor:
        """One training image [1, C, H, W]."""
        return self.train.take(1)

    def first_network(self, seed: int, *, weights: str | None = None) -> nn.Module:
        """Build the network with its first weights, random from the seed or those given."""
        set_deterministic(seed)
        model = build_model(
            self.model,
            num_classes=self.num_classes,
            conv1_channels=self.conv1_channels,
            conv2_channels=self.conv2_channels,
            weights=weights,
        )
        if weights is None and self.model != "small_cnn":
            nn.init.normal_(last_layer(model.eval(), self.example).weight, std=HEAD_STD)
        return model.train()

    def architecture(self, pruning_level: float) -> nn.Module:
        """Build the network with as many channels as a level leaves; its weights mean nothing."""
        model = self.first_network(0)
        return self.pruned(model, pruning_level) if pruning_level else model

    def pruned(self, model: nn.Module, pruning_level: float, **options: Any) -> nn.Module:
        """Prune a network of this plan; ``options`` are those of :func:`prune_channels`."""
        grid = {"round_to": self.channel_multiple, "example_input": self.example}
        return prune_channels(model, pruning_level, **grid, **options)

    def network(self, recipe: Recipe, state: Mapping[str, Tensor]) -> nn.Module:
        """Build the network of a recipe with the weights that its training left, in eval mode."""
        model = self.architecture(recipe.pruning_level)
        model.load_state_dict(state)
        return model.eval()

    def epochs(self, kind: str) -> int:
        """Count the epochs that a recipe of this kind is trained for, beyond its parent's."""
        schedule = self.schedule
        return {
            "pretrained": schedule.epochs,
            "baseline": schedule.finetune_epochs if schedule.epochs else 0,
            "one-shot": 0,
            "fine-tuned": schedule.finetune_epochs,
            "scratch": schedule.epochs + schedule.finetune_epochs,
        }[kind]

    def digest(self, recipe: Recipe, *, start: str) -> str:
        """SHA-256 over all that decides the weights of a recipe; ``start`` is of the first ones."""
        parent = self.digest(recipe.parent, start=start) if recipe.parent else start
        schedule = (self.epochs(recipe.kind), self.schedule.learning_rate, self.schedule.batch_size)
        facts = (recipe, schedule, self.channel_multiple, self.train.digest, parent)
        return hashlib.sha256(repr((facts, _code_digest())).encode()).hexdigest()

    def start_digest(self, seed: int, *, weights: str | None) -> str:
        """SHA-256 over the network's source and its first weights."""
        return network_digest(self.first_network(seed, weights=weights))


def train_networks(
    recipes: Sequence[Recipe],
    plans: Mapping[str, TrainingPlan],
    *,
    store: Store[Training],
    executor: Executor | None = None,
) -> dict[Recipe, Training]:
    """Make the network of every recipe, or read what the very same training left in the store.

    ``plans`` has one plan per network. A training is kept as soon as it ends, so that a run that
    is killed loses no more than the trainings it was in. What recipes are made from is made first.

    Raises
    ------
    ValueError
        When a network cannot be built, takes other images, or cannot be pruned.
    """
    parents = {recipe.parent for recipe in recipes if recipe.parent} - set(recipes)
    known = train_networks([*parents], plans, store=store, executor=executor) if parents else {}
    digests = _digests(recipes, plans)
    found = {r: store.read(r.name, digest=digests[r]) for r in recipes}
    for wave in _waves([recipe for recipe in recipes if found[recipe] is None]):
        jobs = [(r, plans[r.model], _state(r.parent, found, known)) for r in wave]
        done = run_as_completed(_train, jobs, executor=executor, desc="trainings")
        for number, content in done:
            found[wave[number]] = Training.from_dict(from_bytes(content))
            store.write(wave[number].name, found[wave[number]], digest=digests[wave[number]])
    return found


def _digests(recipes: Sequence[Recipe], plans: Mapping[str, TrainingPlan]) -> dict[Recipe, str]:
    """Digest every recipe; the first weights of a network and seed are made once."""
    starts: dict[tuple[str, int, str | None], str] = {}
    digests = {}
    for recipe in recipes:
        plan = plans[recipe.model]
        weights = None if recipe.kind == "scratch" else plan.weights
        key = (recipe.model, recipe.seed, weights)
        if key not in starts:
            starts[key] = plan.start_digest(recipe.seed, weights=weights)
        digests[recipe] = plan.digest(recipe, start=starts[key])
    return digests


def _waves(recipes: Sequence[Recipe]) -> Iterable[list[Recipe]]:
    """Split into groups that can be trained together, each after what it is made from."""
    waiting = list(recipes)
    while waiting:
        ready = [recipe for recipe in waiting if recipe.parent not in waiting]
        yield ready
        waiting = [recipe for recipe in waiting if recipe not in ready]


def _state(parent: Recipe | None, *known: Mapping[Recipe, Training]) -> dict[str, Tensor] | None:
    made = [trainings[parent] for trainings in known if trainings.get(parent)]
    return made[0].state if made else None


def _train(recipe: Recipe, plan: TrainingPlan, parent: dict[str, Tensor] | None) -> bytes:
    return to_bytes(train_recipe(recipe, plan, parent=parent).to_dict())


def train_recipe(
    recipe: Recipe, plan: TrainingPlan, *, parent: Mapping[str, Tensor] | None = None
) -> Training:
    """Make the network of one recipe: a pure, picklable function of its arguments.

    ``parent`` is the state dict that :attr:`Recipe.parent` left. All networks have as many epochs
    behind them as the baseline: ``one-shot`` prunes the baseline, ``fine-tuned`` prunes the
    pretrained network and trains on for ``finetune_epochs``, ``scratch`` trains the pruned
    architecture from new weights for ``epochs + finetune_epochs`` (Liu et al., 2019,
    arXiv:1810.05270). With ``epochs`` 0 the baseline is the first weights, as they are.
    """
    model = _start(recipe, plan, parent)
    set_deterministic(recipe.seed)
    unpruned = recipe.kind not in PRUNED_RECIPES
    trained = fit(
        _quick_to_settle(model),
        _loader(plan, recipe, model),
        epochs=plan.epochs(recipe.kind),
        learning_rate=plan.schedule.learning_rate,
        val_loader=plan.validation.loader(256) if unpruned else None,
        cosine=True,
        progress=False,
    )
    return Training(trained.model.state_dict(), trained.history)


def _start(recipe: Recipe, plan: TrainingPlan, parent: Mapping[str, Tensor] | None) -> nn.Module:
    """Build what the training of a recipe begins with."""
    if recipe.kind == "pretrained":
        return plan.first_network(recipe.seed, weights=plan.weights)
    if recipe.kind == "scratch":
        return _reinitialized(plan.architecture(recipe.pruning_level), plan, seed=recipe.seed)
    model = plan.first_network(recipe.seed)
    model.load_state_dict(parent)
    if recipe.kind == "baseline":
        return model
    options = {"criterion": recipe.criterion, "seed": recipe.seed}
    loader = _loader(plan, recipe, model)
    return plan.pruned(model, recipe.pruning_level, loader=loader, **options)


def _reinitialized(model: nn.Module, plan: TrainingPlan, *, seed: int) -> nn.Module:
    """Give an architecture new random weights."""
    fresh = reinitialized(model, seed=seed)
    if plan.model != "small_cnn":
        nn.init.normal_(last_layer(fresh.eval(), plan.example).weight, std=HEAD_STD)
    return fresh


def reinitialized(model: nn.Module, *, seed: int) -> nn.Module:
    """Return the same architecture with new random weights."""
    fresh = copy.deepcopy(model)
    set_deterministic(seed)
    for module in fresh.modules():
        if hasattr(module, "reset_parameters"):
            module.reset_parameters()
    return fresh


def _loader(plan: TrainingPlan, recipe: Recipe, model: nn.Module) -> Any:
    """Shuffled batches of the training images, drawn by the seed.

    A last batch that is not full would leave BatchNorm on the statistics of a few images.
    """
    batch = plan.schedule.batch_size
    normalized = any(isinstance(module, _BATCH_NORM) for module in model.modules())
    whole = normalized and len(plan.train) >= batch
    return plan.train.loader(batch, shuffle=True, seed=recipe.seed, drop_last=whole)


def _quick_to_settle(model: nn.Module) -> nn.Module:
    quick = copy.deepcopy(model)
    for module in quick.modules():
        if isinstance(module, _BATCH_NORM):
            module.momentum = NORM_MOMENTUM
    return quick


def _code_digest() -> str:
    """SHA-256 over the code that trains and prunes, and the versions of what it uses."""
    modules = (training, pruning, sys.modules[__name__])
    seen = hashlib.sha256(repr((torch.__version__, torch_pruning.__version__)).encode())
    for module in modules:
        seen.update(inspect.getsource(module).encode())
    return seen.hexdigest()
