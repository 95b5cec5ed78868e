"""The latency maps of a run's networks, kept for later runs."""

import logging
from collections.abc import Mapping, Sequence
from concurrent.futures import Executor
from functools import partial

from edgeopt.experiments import preparation_digest
from edgeopt.pruning import channel_widths
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

    A network with one or two groups of layers is timed whole, a deeper one layer by layer.
    """
    network = study.plans[model].first_network(0).eval()
    bench, images = bench_of(study, runtime, precision), study.splits[model].validation
    whole = channel_widths(network, example_input=images.take(1))
    grid = study.channel_multiples[model]
    choices = channels or {name: _spread(width, grid) for name, width in whole.items()}
    deep = len(whole) > WHOLE_NETWORKS
    kind, make = (LayerMap, layer_map) if deep else (LatencyMap, partial(latency_map, grid=grid))
    store = Store(study.config.data_folder / "latency", kind)
    facts = (repr(network), images.shape, sorted(choices.items()), float_layers, grid)
    digest = preparation_digest(facts, bench.facts)
    name = f"{model}-{runtime}-{precision}"
    if (known := store.read(name, digest=digest)) is not None:
        return known
    how = {"images": images, "calibration": calibration_of(study, model), "executor": executor}
    made = make(network, choices, bench, float_layers=float_layers, **how)
    store.write(name, made, digest=digest)
    return made


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
