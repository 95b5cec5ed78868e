"""What can be known of a run before anything is trained."""

import os
from pathlib import Path

from torch import nn

from edgeopt.config import ConfigError, ExperimentConfig, SearchSpec
from edgeopt.experiments import Recipe, grid
from edgeopt.pruning import channel_widths, checked_choices, prune_to_widths, width_steps
from edgeopt.schema import MIB, PRECISIONS
from edgeopt.study.folder import RunFolder, open_run
from edgeopt.study.layout import NEEDS
from edgeopt.study.resources import estimate, require_resources, subset_sizes
from edgeopt.study.study import Study, open_study
from edgeopt.system import open_scheduler


def check_parameters(config: ExperimentConfig) -> int:
    """Count the candidates of a run's grid; ``ConfigError`` for what cannot end well.

    Each notebook's input has to be made by another one of the run, or to lie in its folder; one of
    the runtimes has to run one of the precisions, and the folder of the data has to be writable.
    """
    run = open_run(config.run)
    for notebook in config.notebooks:
        _check_inputs(notebook, config, run)
    try:
        specs = grid(config.pruning_levels, config.precisions, config.runtimes)
    except ValueError as error:
        raise ConfigError(str(error)) from error
    _check_writable(config.data_folder)
    return len(config.models) * len(specs)


def check_run(config: ExperimentConfig) -> str:
    """Check a run's parameters, networks, weights and devices, and say what it would make.

    Nothing is trained, and of a folder of pictures at most one is decoded. What is wrong is raised
    as by :func:`check_parameters`, :func:`edgeopt.study.open_study`,
    :func:`edgeopt.study.resources.subset_sizes` and ``require_resources``; ``DeviceError`` for a
    device that cannot be reached, ``SchedulerError`` for such a scheduler.
    """
    candidates = check_parameters(config)
    if config.scheduler not in (None, "local"):
        open_scheduler(config.scheduler).shutdown()
    sizes, study = subset_sizes(config), open_study(config)
    _check_prunable(study)
    _check_search(study)
    devices = ", ".join(study.device_facts)
    needed = estimate(study, sizes=sizes)
    require_resources(config, needed)
    return (
        f"{len(config.notebooks)} notebooks, {len(config.models)} network(s), "
        f"{len(config.seeds)} seed(s), {candidates} candidates, measured on {devices}; "
        f"{needed}"
    )


def _check_inputs(notebook: str, config: ExperimentConfig, run: RunFolder) -> None:
    for other in NEEDS.get(notebook, ()):
        if other not in config.notebooks and not run.path(f"{other}.ipynb").is_file():
            raise ConfigError(
                f"notebooks hold {notebook}, which reads what {other} makes; allowed: with "
                f"{other}, or after it has run in {run.root}"
            )


def _check_prunable(study: Study) -> None:
    """Prune each network once, untrained."""
    level = max(study.config.pruning_levels)
    for model, plan in study.plans.items() if level else ():
        try:
            plan.architecture(Recipe(model, level, "one-shot"))
        except ValueError as error:
            raise ConfigError(
                f"{model} cannot be pruned to level {level:g}: {error}; allowed for it: "
                "pruning_levels: [0.0]"
            ) from error


def _check_search(study: Study) -> None:
    """Hold the widths that a search may choose against the network's."""
    if study.config.search is None:
        return
    plan = study.plans[study.search.model]
    network = plan.first_network(0).eval()
    try:
        whole = channel_widths(network, example_input=plan.example)
        steps = width_steps(network, example_input=plan.example)
        own = study.search.channels or {name: [width] for name, width in whole.items()}
        choices = checked_choices(own, whole, steps=steps)
    except ValueError as error:
        raise ConfigError(f"{plan.model} cannot be searched: {error}") from error
    if study.search.channels and study.search.max_weights_mb:
        smallest = {name: min(widths) for name, widths in choices.items()}
        _check_weights(study.search, prune_to_widths(network, smallest, example_input=plan.example))


def _check_weights(search: SearchSpec, smallest: nn.Module) -> None:
    """Hold the weights of the smallest network that was asked for against the most allowed."""
    weights = sum(own.numel() for own in smallest.parameters() if own.dim() > 1)
    least = weights * PRECISIONS[search.precision].weight_bytes / MIB
    if least > search.max_weights_mb:
        raise ConfigError(
            f"search: max_weights_mb is {search.max_weights_mb:g}; allowed: {least:.3g} or more, "
            f"which {search.model} holds with the smallest widths that channels give"
        )


def _check_writable(folder: Path) -> None:
    there = next(path for path in (folder, *folder.parents) if path.exists())
    if not there.is_dir() or not os.access(there, os.W_OK):
        raise ConfigError(f"data_dir is {folder}, and {there} cannot be written")
