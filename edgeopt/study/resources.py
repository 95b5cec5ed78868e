"""What a run will take of this machine: time, memory and disk, estimated before it begins."""

import math
import shutil
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from edgeopt.config import ConfigError, ExperimentConfig
from edgeopt.data import (
    FOLDER_PREFIX,
    Preprocessing,
    class_count,
    image_counts,
    picture_shape,
)
from edgeopt.experiments import Schedule, grid
from edgeopt.model import build_model, check_network
from edgeopt.schema import MIB, PRUNED_RECIPES, UNPRUNED_RECIPES, significant
from edgeopt.study.folder import reports_folder
from edgeopt.study.images import image_shape
from edgeopt.study.study import Study
from edgeopt.system import available_bytes, folder_bytes, shortened, status_bytes, usable_cores

GIB = 1024 * MIB
HOUR = 3600
SUBSETS = {"train": "train_subset", "validation": "val_subset", "test": "test_subset"}
PROBE_PIXELS, PROBE_IMAGES = 2**16, 64  # at most, of the images that a network is tried on
PROBE_SECONDS = 0.1
STATES = 4  # of a weight in training: itself, its gradient, and the two moments of Adam
# Parameters that decide most of it.
TAKES_TIME = ("models", "seeds", "epochs", "finetune_epochs", "rounds", "calls_per_round")
TAKES_MEMORY = ("models", "batch_size", "image_size")
TAKES_DISK = ("models", "seeds", "dataset", "image_size")
COPIES = 2  # of a file: one for the runs that follow, one in the folder of this


@dataclass(frozen=True)
class ImageCost:
    """What one image costs a network on one thread of this machine, tried on random ones."""

    train_seconds: float
    call_seconds: float
    activation_bytes: float
    weight_bytes: int


@dataclass(frozen=True)
class Resources:
    """What a run that has nothing yet takes: estimates. Exports and figures come on top.

    ``memory_bytes`` is of all processes together, ``disk_bytes`` of images, weights and artifacts.
    """

    training_hours: float
    timing_hours: float
    memory_bytes: float
    disk_bytes: float

    def __str__(self) -> str:
        """Say it in a line, as an estimate."""
        return (
            f"estimated: {_time(self.training_hours)} of training, {_time(self.timing_hours)} of "
            f"timing, {_memory(self.memory_bytes)}, {_disk(self.disk_bytes)}"
        )


def subset_sizes(config: ExperimentConfig) -> dict[str, int]:
    """Count the images of each role of a run, without reading one.

    ``ConfigError`` for a subset of fewer images than there are classes, or of more than there are.
    """
    try:
        sizes = image_counts(config.dataset, calibration_images=config.calibration_images)
    except ValueError as error:
        raise ConfigError(str(error)) from error
    classes = class_count(config.dataset)
    for role, name in SUBSETS.items():
        size = getattr(config, name)
        if size is not None and not classes <= size <= sizes[role]:
            raise ConfigError(
                f"{name} is {size}; allowed: {classes}, one a class, to {sizes[role]}, all that "
                f"{config.dataset} has"
            )
        sizes[role] = size or sizes[role]
    if config.benchmark_batch_size > sizes["validation"]:
        raise ConfigError(
            f"benchmark_batch_size is {config.benchmark_batch_size}; allowed: 1 to "
            f"{sizes['validation']}, the validation images that are timed"
        )
    return sizes


def image_cost(network: nn.Module, shape: tuple[int, int, int]) -> ImageCost:
    """Try a network on random images [C, H, W], forwards and backwards."""
    count = max(1, min(PROBE_IMAGES, PROBE_PIXELS // math.prod(shape[1:])))
    images, labels = torch.rand(count, *shape), torch.zeros(count, dtype=torch.long)
    kept: dict[int, int] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        kept[tensor.data_ptr()] = tensor.nbytes
        return tensor

    def step() -> None:
        kept.clear()
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            nn.functional.cross_entropy(network(images), labels).backward()

    network, threads = network.eval().requires_grad_(True), torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        training = _seconds(step)
        with torch.inference_mode():
            calls = _seconds(lambda: network(images[:1]))
    finally:
        torch.set_num_threads(threads)
    weights = [*network.parameters(), *network.buffers()]
    for weight in weights:
        kept.pop(weight.data_ptr(), None)
    size = sum(weight.nbytes for weight in weights)
    return ImageCost(training / count, calls, sum(kept.values()) / count, size)


def _seconds(call: Callable[[], object]) -> float:
    """Time a call; one that takes long, once only."""
    best, spent = math.inf, 0.0
    while spent < PROBE_SECONDS:
        start = time.perf_counter()
        call()
        seconds = time.perf_counter() - start
        best, spent = min(best, seconds), spent + seconds
    return best


def estimate(study: Study, *, sizes: Mapping[str, int]) -> Resources:
    """Add up what a run takes that has as many images of each role as ``sizes`` says."""
    config = study.config
    shapes = {model: _shape(config, spec) for model, spec in study.preprocessing.items()}
    costs = [image_cost(_untrained(config, model, shape), shape) for model, shape in shapes.items()]
    candidates = len(grid(config.pruning_levels, config.precisions, config.runtimes))
    calls = candidates * config.rounds * config.calls_per_round * config.benchmark_batch_size
    cores, batch = usable_cores(), min(config.batch_size, sizes["train"])
    training = sum(own.train_seconds for own in costs) * _epochs(config) * sizes["train"]
    largest = max(STATES * own.weight_bytes + batch * own.activation_bytes for own in costs)
    networks = len(UNPRUNED_RECIPES) + len(PRUNED_RECIPES) * len(config.pruning_levels)
    files = COPIES * len(config.seeds) * (networks + candidates)
    pixels = {spec: math.prod(shapes[model]) for model, spec in study.preprocessing.items()}
    return Resources(
        training_hours=training / cores / HOUR,
        timing_hours=sum(own.call_seconds for own in costs) * calls / HOUR,
        memory_bytes=status_bytes("VmRSS") + cores * largest,
        disk_bytes=files * sum(own.weight_bytes for own in costs)
        + sum(sizes.values()) * sum(pixels.values()),
    )


def _epochs(config: ExperimentConfig) -> float:
    """Count the epochs of a network's trainings, were none cut short by patience.

    An epoch of a pruned network counts as the share of channels that it has.
    """
    count = config.part(Schedule).most_epochs
    kept = sum(1 - level for level in config.pruning_levels if level)
    whole, pruned = (sum(map(count, kinds)) for kinds in (UNPRUNED_RECIPES, PRUNED_RECIPES))
    contest = len(config.pruning_criteria) * count("one-epoch") * kept
    return len(config.seeds) * (whole + kept * pruned) + contest


def _shape(config: ExperimentConfig, spec: Preprocessing) -> tuple[int, int, int]:
    folder = config.dataset.removeprefix(FOLDER_PREFIX)
    return image_shape(config, spec) or picture_shape(folder, spec)


def _untrained(config: ExperimentConfig, model: str, shape: tuple[int, int, int]) -> nn.Module:
    """Build a network that takes such images; ``ValueError`` where it does not."""
    channels = {"conv1_channels": config.conv1_channels, "conv2_channels": config.conv2_channels}
    classes = class_count(config.dataset)
    network = build_model(model, num_classes=classes, **channels)
    check_network(network, name=model, input_shape=(1, *shape), num_classes=classes)
    return network


def require_resources(config: ExperimentConfig, needed: Resources) -> None:
    """Raise ``ConfigError`` where a run needs more than the machine has, or than ``max_hours``.

    What the run's folders hold already counts as free. With ``ignore_estimates`` nothing is raised.
    """
    hours = needed.training_hours + needed.timing_hours
    room = min(map(_room, (config.data_folder, reports_folder())))
    checked = (
        (hours, _time, "max_hours allows", config.max_hours, TAKES_TIME),
        (needed.memory_bytes, _memory, "this machine has", available_bytes(), TAKES_MEMORY),
        (needed.disk_bytes, _disk, "there is room for", room, TAKES_DISK),
    )
    for wanted, told, limit, has, names in () if config.ignore_estimates else checked:
        if wanted > has:
            values = ", ".join(f"{name} {shortened(getattr(config, name))}" for name in names)
            raise ConfigError(
                f"the run is estimated to take {told(wanted)} with {values}; allowed: what takes "
                f"less, as {limit} {told(has)}, or ignore_estimates: true"
            )


def _room(folder: Path) -> int:
    """Bytes that a folder holds, or that could still be written to it."""
    there = next(path for path in (folder, *folder.parents) if path.exists())
    return shutil.disk_usage(there).free + folder_bytes(folder)


def _time(hours: float) -> str:
    if hours < 1:
        return f"{significant(round(60 * hours, 1))} minutes"
    return f"{significant(round(hours, 1))} hours"


def _memory(count: float) -> str:
    return f"{_size(count)} of memory"


def _disk(count: float) -> str:
    return f"{_size(count)} of disk"


def _size(count: float) -> str:
    return f"{significant(count / GIB)} GiB" if count >= GIB else f"{count / MIB:.0f} MiB"
