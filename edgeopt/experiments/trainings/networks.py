"""The trained networks of a run: unpruned, pruned, fine-tuned and from scratch, each made once."""

import itertools
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import Executor
from contextlib import closing
from functools import cache, partial

from torch import Tensor

from edgeopt.experiments.trainings.plan import Training, TrainingPlan, train_recipe
from edgeopt.experiments.trainings.recipes import Recipe
from edgeopt.model import network_digest
from edgeopt.system import ByValue, Store, run_when_ready


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
    missing.sort(key=lambda recipe: recipe.pruning_level)  # the longest first: no core waits long
    needs = {r: {*plans[r.model].needs(r)} & {*missing} for r in missing}
    known = partial(_known, plans=plans, found=found)
    made = run_when_ready(_train, needs, arguments=known, executor=executor, desc="trainings")
    with closing(made):  # so that an error here ends what is waiting
        for recipe, result in made:
            store.write(recipe.name, result["training"], digest=digests[recipe])
            found[recipe] = result["training"]
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
    recipe: Recipe, *, plans: Mapping[str, TrainingPlan], found: Mapping[Recipe, Training]
) -> tuple[Recipe, TrainingPlan, dict[str, Tensor] | None, int | None]:
    """Arguments of a training: with weights that it begins with, and the epochs of its pacemaker.

    Weights of a file are read here: workers may not have it.
    """
    plan = plans[recipe.model]
    if recipe.parent:
        return recipe, plan, ByValue(found[recipe.parent].state), None
    if recipe.kind == "pretrained" and plan.weights:
        given = plan.first_network(recipe.seed, weights=plan.weights)
        return recipe, plan, ByValue(given.state_dict()), None
    paced = len(found[recipe.pacemaker].history) if plan.rises(recipe) else None
    return recipe, plan, None, paced


def _train(
    recipe: Recipe, plan: TrainingPlan, parent: dict[str, Tensor] | None, paced: int | None
) -> ByValue:
    return ByValue(training=train_recipe(recipe, plan, parent=parent, paced=paced))
