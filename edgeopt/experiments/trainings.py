"""The trained networks of a run: unpruned, pruned, fine-tuned and from scratch, each made once."""

import itertools
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import Executor
from functools import cache

from torch import Tensor

from edgeopt.experiments.recipes import Recipe
from edgeopt.experiments.training_plan import Training, TrainingPlan, train_recipe
from edgeopt.model import network_digest
from edgeopt.system import ByValue, Store, run_as_completed


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
    wanted = {own: None for recipe in recipes for own in _lineage(recipe, plans)}
    digests = _digests(wanted, plans)
    found = {r: store.read(r.name, digest=digests[r]) for r in wanted}
    missing = [recipe for recipe in wanted if found[recipe] is None]
    while missing:
        ready = [r for r in missing if not {*plans[r.model].needs(r)} & {*missing}]
        jobs = [(r, plans[r.model], *_known(r, plans[r.model], found)) for r in ready]
        for number, made in run_as_completed(_train, jobs, executor=executor, desc="trainings"):
            recipe, training = ready[number], made["training"]
            store.write(recipe.name, training, digest=digests[recipe])
            found[recipe] = training
        missing = [recipe for recipe in missing if recipe not in ready]
    return {recipe: found[recipe] for recipe in recipes}


def _lineage(recipe: Recipe, plans: Mapping[str, TrainingPlan]) -> list[Recipe]:
    """List what a recipe needs, the first of it first, and the recipe."""
    before = [_lineage(own, plans) for own in plans[recipe.model].needs(recipe)]
    return [*itertools.chain.from_iterable(before), recipe]


def _digests(recipes: Iterable[Recipe], plans: Mapping[str, TrainingPlan]) -> dict[Recipe, str]:
    """Digest every recipe; the first weights of a network and seed are made once."""

    @cache
    def first(model: str, seed: int, weights: str | None) -> str:
        return network_digest(plans[model].first_network(seed, weights=weights))

    def start(recipe: Recipe) -> str:
        given = None if recipe.kind == "scratch" else plans[recipe.model].weights
        return first(recipe.model, recipe.seed, given)

    return {r: plans[r.model].digest(r, start=start) for r in recipes}


def _known(
    recipe: Recipe, plan: TrainingPlan, found: Mapping[Recipe, Training]
) -> tuple[dict[str, Tensor] | None, int | None]:
    """Weights that a training begins with, where others made them, and the epochs of its pacemaker.

    Weights of a file are read here: workers may not have it.
    """
    if recipe.parent:
        return found[recipe.parent].state, None
    if recipe.kind == "pretrained" and plan.weights:
        return plan.first_network(recipe.seed, weights=plan.weights).state_dict(), None
    return None, len(found[recipe.pacemaker].history) if plan.rises(recipe) else None


def _train(
    recipe: Recipe, plan: TrainingPlan, parent: dict[str, Tensor] | None, paced: int | None
) -> ByValue:
    return ByValue(training=train_recipe(recipe, plan, parent=parent, paced=paced))
