"""The stages of a run's search: what can be chosen, one epoch of some, all epochs of a few."""

from collections.abc import Mapping, Sequence
from concurrent.futures import Executor
from functools import partial

import pandas as pd
from torch import nn

from edgeopt.config import SearchSpec
from edgeopt.experiments import (
    Candidate,
    CandidateSpec,
    Recipe,
    prepare_candidates,
    pruned_recipes,
    searched_recipe,
    widths_label,
)
from edgeopt.model import predict_logits
from edgeopt.pruning import channel_importance, channel_widths
from edgeopt.runtimes import runtime_named
from edgeopt.search.layer_tables import count_weights, network_layers
from edgeopt.search.maps import map_in_float, map_networks
from edgeopt.search.trials import BITS, Space, promoted
from edgeopt.study import Study

IMPORTANCE_BATCH = 64


def search_space(
    study: Study, baselines: Mapping[Recipe, nn.Module], *, executor: Executor | None = None
) -> Space:
    """Time what the run's search can choose from; ``baselines`` are its unpruned networks.

    For int8, layers that are faster in float are found first, and the networks are timed again with
    these in float.
    """
    spec, model = study.search, study.search.model
    splits, example = study.splits[model], study.plans[model].example
    baseline = next(net for recipe, net in baselines.items() if recipe.model == model)
    own = {"runtime": spec.runtime, "precision": spec.precision, "executor": executor}
    plain = map_networks(study, model, **own, channels=spec.channels)
    latencies = {(): plain}
    if spec.precision == "int8" and runtime_named(spec.runtime).takes_int8_options:
        latencies |= map_in_float(study, model, plain, **own)
    loader = splits.train.loader(IMPORTANCE_BATCH, shuffle=True, seed=0)
    scores = channel_importance(baseline, example_input=example, loader=loader)
    layers = network_layers(baseline, example)
    importance = {name: own.numpy() for name, own in scores.items()}
    return Space(latencies, importance, partial(count_weights, layers))


def one_epoch_accuracy(study: Study, table: pd.DataFrame, *, executor: Executor) -> pd.DataFrame:
    """Train every network of a table of trials for an epoch, and add its validation ``accuracy``.

    It is that of the first seed and of fp32. The unpruned network is the baseline, with all its
    epochs: it is what the others are compared with.
    """
    [seed, *_] = study.config.seeds
    recipes = _recipes(study, table, kind="one-epoch", seeds=[seed])
    networks = study.networks(study.train({*recipes.values()}, executor=executor))
    split = study.splits[study.search.model].validation
    right = {
        recipe: predict_logits(network, split).argmax(1).eq(split.labels).float().mean().item()
        for recipe, network in networks.items()
    }
    accuracy = table["network"].map(lambda label: right[recipes[label, seed]])
    return table.assign(accuracy=accuracy)


def finalists(study: Study, tried: pd.DataFrame) -> pd.DataFrame:
    """Choose what is trained to the end, of the networks that had an epoch.

    Those of the best fronts, without what a pruning level of the run leaves anyway.
    """
    known = tried["network"].isin(_level_widths(study)) & (tried[BITS] == "")
    return promoted(tried[~known], study.search.finalists, score="accuracy")


def prepare_finalists(
    study: Study,
    table: pd.DataFrame,
    baselines: Mapping[Recipe, nn.Module],
    *,
    executor: Executor,
) -> tuple[list[Candidate], list[Candidate]]:
    """Train the finalists with every seed; prepare the uniform levels and them, in this order."""
    config, spec = study.config, study.search
    recipes = _recipes(study, table, kind="fine-tuned", seeds=config.seeds)
    axes = ([spec.model], config.pruning_levels, config.seeds)
    levels = [*baselines, *pruned_recipes(*axes, kinds=["fine-tuned"])]
    trained = study.networks(study.train([*levels, *recipes.values()], executor=executor))
    models = {recipe.network: network for recipe, network in trained.items()}
    uniform = [_spec(recipe, spec) for recipe in levels if recipe.model == spec.model]
    found = [
        _spec(recipe, spec, float_layers=row.float_layers)
        for row in table.itertuples()
        for (label, _), recipe in recipes.items()
        if label == row.network
    ]
    found = [own for own in found if own not in uniform]
    options = study.preparation("artifacts/search") | {"models": models, "executor": executor}
    options["store"] = study.prepared
    prepared = prepare_candidates([*uniform, *found], **options)
    return prepared[: len(uniform)], prepared[len(uniform) :]


def _spec(recipe: Recipe, spec: SearchSpec, *, float_layers: str = "") -> CandidateSpec:
    return CandidateSpec(
        recipe.pruning_level,
        spec.precision,
        spec.runtime,
        recipe.kind,
        recipe.model,
        recipe.seed,
        widths=widths_label(dict(recipe.widths)),
        float_layers=tuple(name for name in float_layers.split("+") if name),
    )


def _recipes(
    study: Study, table: pd.DataFrame, *, kind: str, seeds: Sequence[int]
) -> dict[tuple[str, int], Recipe]:
    """Make the recipe of every network of a table of trials, by its label and seed."""
    plan = study.plans[study.search.model]
    whole = channel_widths(plan.first_network(0).eval(), example_input=plan.example)
    return {
        (row["network"], seed): searched_recipe(
            plan.model, {name: int(row[name]) for name in whole}, whole=whole, kind=kind, seed=seed
        )
        for row in table.to_dict("records")
        for seed in seeds
    }


def _level_widths(study: Study) -> set[str]:
    """Label the widths that the run's pruning levels leave of the searched network, and its own."""
    plan = study.plans[study.search.model]
    recipes = pruned_recipes([plan.model], study.config.pruning_levels, [0], kinds=["fine-tuned"])
    unpruned = Recipe(plan.model, 0.0, "baseline", 0)
    networks = (plan.architecture(recipe).eval() for recipe in [unpruned, *recipes])
    return {widths_label(channel_widths(own, example_input=plan.example)) for own in networks}
