"""The latency maps of a run's networks, kept for later runs."""

import logging
import math
from collections.abc import Mapping, Sequence
from concurrent.futures import Executor
from functools import partial

from edgeopt.experiments import preparation_digest
from edgeopt.model import network_digest
from edgeopt.pruning import channel_widths, checked_choices, prune_to_widths, width_steps
from edgeopt.search.bits import FloatLayers, faster_in_float
from edgeopt.search.layer_tables import LayerMap, layer_map
from edgeopt.search.network_map import LatencyMap, latency_map
from edgeopt.search.timing import Bench
from edgeopt.study import Study
from edgeopt.system import Store

logger = logging.getLogger(__name__)

WHOLE_NETWORKS = 2  # groups of layers up to which whole networks are timed, not layers
STEPS = 4  # widths of every group to begin with


def map_networks(
    study: Study,
    model: str,
    *,
    runtime: str,
    precision: str,
    channels: Mapping[str, Sequence[int]] | None = None,
    float_layers: tuple[str, ...] = (),
    executor: Executor | None = None,
) -> LatencyMap | LayerMap:
    """Time a network of the run by its widths, on the device that decides, or read what is known.

    A network with one or two groups of layers is timed whole, a deeper one layer by layer. Raises
    ``ValueError`` where no channel of the network can be removed.
    """
    network = study.plans[model].first_network(0).eval()
    bench, images = bench_of(study, runtime, precision), study.splits[model].validation
    whole = channel_widths(network, example_input=images.take(1))
    grid = study.channel_multiples[model]
    steps = width_steps(network, example_input=images.take(1))
    spread = {name: _spread(width, math.lcm(grid, steps[name])) for name, width in whole.items()}
    choices = checked_choices(channels or spread, whole, steps=steps)
    deep = len(whole) > WHOLE_NETWORKS
    every = math.lcm(grid, *steps.values())  # what any group of a network timed whole can lose
    kind, make = (LayerMap, layer_map) if deep else (LatencyMap, partial(latency_map, grid=every))
    store = Store(study.config.data_folder / "latency", kind)
    facts = (network_digest(network), images.shape, choices, float_layers, grid)
    digest = preparation_digest(facts, bench.facts)
    name = f"{model}-{runtime}-{precision}"
    if (known := store.read(name, digest=digest)) is not None:
        return known
    how = {"images": images, "calibration": calibration_of(study, model), "executor": executor}
    made = make(network, choices, bench, float_layers=float_layers, **how)
    if not made.died:
        store.write(name, made, digest=digest)
    return made


def map_in_float(
    study: Study,
    model: str,
    plain: LatencyMap | LayerMap,
    *,
    runtime: str,
    precision: str,
    executor: Executor | None = None,
) -> dict[tuple[str, ...], LatencyMap | LayerMap]:
    """Find the layers that are faster in float, and time the networks with these in float.

    Empty where there are none. ``plain`` is the map without such layers. The other is brought to
    its clock: two measurements may be days apart, so that the unpruned networks of both are
    compared in the same rounds. What is found is kept.
    """
    network, example = study.plans[model].first_network(0).eval(), study.plans[model].example
    halves = {name: _nearest_half(own) for name, own in plain.choices.items()}
    bench = bench_of(study, runtime, precision)
    store = Store(study.config.data_folder / "latency", FloatLayers)
    digest = preparation_digest(network_digest(network), halves, bench.facts)
    if (found := store.read(model, digest=digest)) is None:
        half = prune_to_widths(network, halves, example_input=example)
        how = {"images": study.splits[model].validation, "executor": executor}
        how["calibration"] = calibration_of(study, model)
        found = faster_in_float([network, half], bench, **how)
        store.write(model, found, digest=digest)
    if not found.names:
        return {}
    own = {"runtime": runtime, "precision": precision, "channels": plain.choices}
    there = map_networks(study, model, **own, float_layers=found.names, executor=executor)
    whole = channel_widths(network, example_input=example)
    return {found.names: there.slower(found.ratio * plain.ms(whole) / there.ms(whole))}


def whole_maps(study: Study, *, executor: Executor | None = None) -> dict[str, LatencyMap]:
    """Time the networks of the run that are timed whole in fp32, by name.

    The runtime is that of :attr:`edgeopt.config.ExperimentConfig.clocked`. A network whose channels
    cannot be removed is left out, which is logged.
    """
    maps = {}
    for model, plan in study.plans.items():
        how = {"runtime": study.config.clocked, "precision": "fp32", "executor": executor}
        try:
            widths = channel_widths(plan.first_network(0).eval(), example_input=plan.example)
            if len(widths) <= WHOLE_NETWORKS:
                maps[model] = map_networks(study, model, **how)
        except ValueError as error:
            logger.warning("%s is not timed by its widths: %s", model, error)
    return maps


def bench_of(study: Study, runtime: str, precision: str) -> Bench:
    """Say what the run times its networks with: the device that decides, and its threads."""
    config = study.config
    return Bench(
        runtime,
        precision,
        study.devices[config.decides],
        scheme=study.int8_scheme,
        batch_size=config.benchmark_batch_size,
        threads=config.threads,
    )


def calibration_of(study: Study, model: str) -> list:
    """Batches of the calibration images of a network, (images, labels) each."""
    return [*study.splits[model].calibration.loader(study.config.batch_size)]


def _spread(width: int, grid: int) -> list[int]:
    """Spread widths evenly up to a group's own, on the grid of channels."""
    shares = (step / STEPS for step in range(1, STEPS))
    found = {grid * max(1, round(width * share / grid)) for share in shares}
    return sorted({own for own in found if own < width} | {width})


def _nearest_half(widths: Sequence[int]) -> int:
    """Choose the width nearest to half: the middle one of all may be off the kernels' blocks."""
    half = max(widths) / 2
    return min(widths, key=lambda width: abs(width - half))
