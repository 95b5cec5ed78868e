"""How the network of a recipe is trained: the schedule, all that decides it, and the training."""

import copy
import hashlib
import inspect
import itertools
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Annotated, Any

import pandas as pd
import torch
import torch_pruning
from pydantic import Field
from torch import Tensor, nn
from torch.optim.swa_utils import update_bn

from edgeopt.data import Split
from edgeopt.experiments.trainings.recipes import Recipe
from edgeopt.model import (
    build_model,
    factory_digest,
    fit,
    fit_while_rising,
    set_deterministic,
    training,
)
from edgeopt.pruning import channels as pruning
from edgeopt.pruning import last_layer, prune_channels, prune_to_widths
from edgeopt.schema import Positive, checked_spec

# torchvision's mobile networks average their BatchNorm statistics with a momentum of 0.01, which
# takes more steps to settle than a short training has: they would be served half initialised.
NORM_MOMENTUM = 0.1
STATISTICS_BATCHES = 10  # of training images, for the BatchNorms of a pruned network
# Its EfficientNets begin with logits in the tens, which a short training spends epochs to undo.
HEAD_STD = 0.01
RISING = ("baseline", "fine-tuned", "scratch")  # with a patience
_BATCH_NORM = nn.modules.batchnorm._BatchNorm


@checked_spec
class Schedule:
    """How long and how fast to train, with the learning rate annealed to zero by a cosine.

    With a ``finetune_patience``, fine-tuning goes on while validation accuracy rises, for at most
    ``finetune_epochs``: see :func:`edgeopt.model.fit_while_rising`.
    """

    epochs: Annotated[int, Field(ge=0)] = 6
    finetune_epochs: Annotated[int, Field(ge=0)] = 2
    finetune_patience: Positive | None = None
    learning_rate: Annotated[float, Field(gt=0, le=10)] = 3e-3
    batch_size: Positive = 64

    def most_epochs(self, kind: str) -> int:
        """Count the epochs that a recipe of this kind is trained for at most, beyond its parent's.

        With a patience, ``scratch`` has those of its fine-tuned network after its first ``epochs``.
        """
        return {
            "pretrained": self.epochs,
            "baseline": self.finetune_epochs if self.epochs else 0,
            "one-shot": 0,
            "fine-tuned": self.finetune_epochs,
            "one-epoch": 1,
            "scratch": self.epochs + self.finetune_epochs,
        }[kind]


@dataclass(frozen=True, eq=False)
class Training:
    """What a training gave: the state dict, and a row per epoch as in :func:`edgeopt.model.fit`."""

    state: dict[str, Tensor]
    history: pd.DataFrame

    def to_dict(self) -> dict[str, Any]:
        """Return what a :class:`edgeopt.system.Store` keeps."""
        return {"state": self.state, "history": self.history.to_dict("list")}

    @classmethod
    def from_dict(cls, kept: Mapping[str, Any]) -> "Training":
        """Build it from what was kept."""
        return cls(kept["state"], pd.DataFrame(kept["history"]))


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
        return (self.with_small_head(model) if weights is None else model).train()

    def with_small_head(self, model: nn.Module) -> nn.Module:
        """Draw new head weights near zero, in place, of torchvision's networks.

        Those of ``small_cnn`` are small enough, those of a user's own are the user's.
        """
        if self.model != "small_cnn" and ":" not in self.model:
            nn.init.normal_(last_layer(model.eval(), self.example).weight, std=HEAD_STD)
        return model

    def architecture(self, recipe: Recipe) -> nn.Module:
        """Build the network with the channels that a recipe keeps; its weights mean nothing."""
        model = self.first_network(0)
        return self.pruned(model, recipe) if recipe.pruning_level else model

    def pruned(self, model: nn.Module, recipe: Recipe, **options: Any) -> nn.Module:
        """Prune a network as a recipe says; ``options`` are those of :func:`prune_channels`."""
        options["example_input"] = self.example
        if recipe.widths:
            return prune_to_widths(model, dict(recipe.widths), **options)
        return prune_channels(
            model, recipe.pruning_level, round_to=self.channel_multiple, **options
        )

    def network(self, recipe: Recipe, state: Mapping[str, Tensor]) -> nn.Module:
        """Build the network of a recipe with the weights that its training left, in eval mode."""
        model = self.architecture(recipe)
        model.load_state_dict(state)
        return model.eval()

    def digest(self, recipe: Recipe, *, start: Callable[[Recipe], str]) -> str:
        """SHA-256 over all that decides a recipe's weights; ``start`` gives that of first ones."""
        parent = self.digest(recipe.parent, start=start) if recipe.parent else start(recipe)
        schedule = (
            self.schedule.most_epochs(recipe.kind),
            self.schedule.learning_rate,
            self.schedule.batch_size,
        )
        facts = (recipe, schedule, self.channel_multiple, self.train.digest, parent)
        facts += (factory_digest(self.model),)
        if self.rises(recipe) or not recipe.pruning_level:  # which tells of validation as it goes
            facts += (self.validation.digest,)
        if self.rises(recipe):
            facts += (self.patience(recipe),)
            facts += tuple(self.digest(own, start=start) for own in self.needs(recipe))
        return hashlib.sha256(repr((facts, _code_digest())).encode()).hexdigest()

    def rises(self, recipe: Recipe) -> bool:
        """Whether a network is trained while validation accuracy rises."""
        patient = self.schedule.finetune_patience and self.schedule.finetune_epochs
        return (
            bool(patient) and recipe.kind in RISING and self.schedule.most_epochs(recipe.kind) > 0
        )

    def patience(self, recipe: Recipe) -> int | None:
        """How many epochs without a higher accuracy end a training; None where none does."""
        return self.schedule.finetune_patience if recipe.kind == "fine-tuned" else None

    def needs(self, recipe: Recipe) -> list[Recipe]:
        """List what has to be trained before a recipe: its parent, or what it is paced by."""
        pacemaker = recipe.pacemaker if self.rises(recipe) else None
        return [own for own in (recipe.parent, pacemaker) if own]


def train_recipe(
    recipe: Recipe,
    plan: TrainingPlan,
    *,
    parent: Mapping[str, Tensor] | None = None,
    paced: int | None = None,
) -> Training:
    """Make the network of one recipe: a pure, picklable function of its arguments.

    ``parent`` is the state dict that :attr:`Recipe.parent` left, or that of given weights. All
    networks have as many epochs behind them as the baseline: ``one-shot`` prunes the baseline,
    ``fine-tuned`` prunes the pretrained network and trains on for ``finetune_epochs``, ``scratch``
    trains the pruned architecture from new weights for ``epochs + finetune_epochs`` (Liu et al.,
    2019, arXiv:1810.05270). With ``epochs`` 0 the baseline is the first weights, as they are.

    With a patience, ``fine-tuned`` is trained while validation accuracy rises, the baseline by the
    same rule for all ``finetune_epochs``, so that no pruned network has more behind it, and
    ``scratch`` for ``epochs`` and the ``paced`` ones that its fine-tuned network took.
    """
    model = _start(recipe, plan, parent)
    for norm in _norms(model):
        norm.momentum = NORM_MOMENTUM
    set_deterministic(recipe.seed)
    loader, validation = _loader(plan, recipe, model), plan.validation.loader(256)
    annealed = {"learning_rate": plan.schedule.learning_rate, "cosine": True, "progress": False}
    if not plan.rises(recipe):
        annealed["val_loader"] = None if recipe.pruning_level else validation
        trained = fit(model, loader, epochs=plan.schedule.most_epochs(recipe.kind), **annealed)
        return Training(trained.model.state_dict(), trained.history)
    first = plan.schedule.epochs if recipe.kind == "scratch" else 0
    before = fit(model, loader, epochs=first, **annealed)
    trained = fit_while_rising(
        before.model,
        loader,
        epochs=paced or plan.schedule.most_epochs(recipe.kind),
        learning_rate=plan.schedule.learning_rate,
        val_loader=validation,
        patience=plan.patience(recipe),
    )
    later = trained.history.assign(epoch=trained.history["epoch"] + first)
    history = pd.concat([before.history, later], ignore_index=True) if first else later
    return Training(trained.model.state_dict(), history)


def _start(recipe: Recipe, plan: TrainingPlan, parent: Mapping[str, Tensor] | None) -> nn.Module:
    """Build what the training of a recipe begins with."""
    if recipe.kind == "pretrained" and parent is None:
        return plan.first_network(recipe.seed, weights=plan.weights)
    if recipe.kind == "scratch":
        fresh = reinitialized(plan.architecture(recipe), seed=recipe.seed)
        return plan.with_small_head(fresh)
    model = plan.first_network(recipe.seed)
    model.load_state_dict(parent)
    if recipe.kind in ("pretrained", "baseline"):
        return model
    options = {"criterion": recipe.criterion, "seed": recipe.seed}
    loader = _loader(plan, recipe, model)
    pruned = plan.pruned(model, recipe, loader=loader, **options)
    # What is left of a layer has other statistics than the whole of it had.
    update_bn(itertools.islice(loader, STATISTICS_BATCHES), pruned)
    return pruned


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
    whole = bool(_norms(model)) and len(plan.train) >= batch
    return plan.train.loader(batch, shuffle=True, seed=recipe.seed, drop_last=whole)


def _norms(model: nn.Module) -> list[nn.Module]:
    return [module for module in model.modules() if isinstance(module, _BATCH_NORM)]


def _code_digest() -> str:
    """SHA-256 over the code that trains and prunes, and the versions of what it uses."""
    modules = (training, pruning, sys.modules[__name__])
    sources = [inspect.getsource(module) for module in modules]
    facts = (torch.__version__, torch_pruning.__version__, sources)
    return hashlib.sha256(repr(facts).encode()).hexdigest()
