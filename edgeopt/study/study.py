"""A run that is open: its parameters, its folder, its networks and the images of each."""

import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import Executor
from dataclasses import asdict, dataclass, replace
from functools import cached_property, partial
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from scipy.stats import binomtest
from torch import nn

from edgeopt.config import ExperimentConfig, SearchSpec
from edgeopt.data import (
    ROLE_NAMES,
    Preprocessing,
    Split,
    Splits,
    class_count,
)
from edgeopt.devices import Device, DeviceError, DeviceResults, device_named
from edgeopt.experiments import (
    Candidate,
    Recipe,
    Schedule,
    Training,
    TrainingPlan,
    floor_images,
    measure_candidates,
    train_networks,
)
from edgeopt.model import build_model, check_network, dump_weights, input_channels, load_weights
from edgeopt.quantization import quantization_aware_train
from edgeopt.study.folder import RunFolder, open_run
from edgeopt.study.images import image_shape, load_images, test_warning, with_pictures_of
from edgeopt.study.layout import measured_file
from edgeopt.system import Int8Scheme, Store, int8_scheme, open_scheduler, process_pool

logger = logging.getLogger(__name__)

SMALL_CNN_SIDE = 28
CHANCE_LEVEL = 0.01  # of the test that a network is better than chance


@dataclass(frozen=True, eq=False)
class Study:
    """A run's parameters, its folder, and the images of every network as that network takes them.

    Made by :func:`open_study`.
    """

    config: ExperimentConfig
    folder: RunFolder
    preprocessing: Mapping[str, Preprocessing]

    @property
    def heading(self) -> str:
        """What the numbers of a notebook are of: run, data, seeds and machine."""
        config, facts = self.config, self.device_facts
        cpu = ", ".join(own["cpu"] for own in facts.values())
        seeds = ", ".join(map(str, config.seeds))
        return f"Run {config.run}: {config.dataset}, seed(s) {seeds}, measured on {cpu}."

    @cached_property
    def splits(self) -> dict[str, Splits]:
        """Images in four roles, by network; networks that take the same images share them."""
        loaded: dict[Preprocessing, Splits] = {}
        for model, spec in self.preprocessing.items():
            if spec not in loaded:
                first = next(iter(loaded.values()), None)
                loaded[spec] = with_pictures_of(load_images(self.config, spec), first)
            if image_shape(self.config, spec) is None:  # not known before the images were read
                classes = len(loaded[spec].class_names)
                network = _network(self.config, model, classes)
                shape = (1, *loaded[spec].train.shape)
                check_network(network, name=model, input_shape=shape, num_classes=classes)
        if warning := test_warning(self.config, next(iter(loaded.values()))):
            logger.warning("test images: %s", warning)
        return {model: loaded[spec] for model, spec in self.preprocessing.items()}

    @property
    def _first(self) -> Splits:
        """The first network's images, whose classes and counts are those of all networks."""
        return next(iter(self.splits.values()))

    @property
    def class_names(self) -> tuple[str, ...]:
        """Names of the classes, in the order of the logits."""
        return self._first.class_names

    @property
    def validation_labels(self) -> np.ndarray:
        """Classes [N] of the validation images, the same for all networks."""
        return self.labels("validation")

    def labels(self, role: str) -> np.ndarray:
        """Classes [N] of the images of a role, the same for all networks."""
        return getattr(self._first, role).labels.numpy()

    def role(self, name: str) -> dict[str, Split]:
        """Images of one role, by network."""
        return {model: getattr(splits, name) for model, splits in self.splits.items()}

    def batches(self, size: int) -> dict[str, np.ndarray]:
        """First ``size`` validation images of every network, which it is timed on."""
        return {m: split.take(size).numpy() for m, split in self.role("validation").items()}

    @cached_property
    def devices(self) -> dict[str, Device]:
        """Devices of the run by their names, the one that decides first."""
        config = self.config
        names = sorted(config.devices, key=lambda name: name != config.decides)
        options = {"python": config.device_python, "wheels": config.device_wheels}
        return {name: device_named(name, **options) for name in names}

    @cached_property
    def device_facts(self) -> dict[str, dict[str, Any]]:
        """What each device is; ``DeviceError`` for one that cannot be reached, or cannot decide."""
        facts = {name: device.facts() for name, device in self.devices.items()}
        if facts[self.config.decides]["emulated"]:
            raise DeviceError(
                f"decide_on is {self.config.decides}, which is emulated: its latencies are not the "
                f"device's; allowed: one of {[n for n in facts if not facts[n]['emulated']]}"
            )
        return facts

    def measure(
        self, candidates: Sequence[Candidate], *, stage: str, floors: Sequence[Candidate] = ()
    ) -> dict[str, DeviceResults]:
        """Measure candidates, and the smallest networks with them, on every device of the run.

        What a ``stage`` of the run measured stays in its folder, and is not measured again for a
        change of gates or budgets.
        """
        config, images = self.config, self.role("validation")
        counts = {"rounds": config.rounds, "calls_per_round": config.calls_per_round}
        timed = ([*candidates, *floors], images | floor_images(images))
        counts["threads"] = config.threads
        kept = {name: self.folder.path(measured_file(stage, name)) for name in self.devices}
        return {
            name: measure_candidates(*timed, device=device, kept=kept[name], **counts)
            for name, device in self.devices.items()
        }

    @property
    def int8_scheme(self) -> Int8Scheme:
        """Integer types of static int8 that suit the device that decides."""
        return int8_scheme(self.device_facts[self.config.decides]["isa"])

    def preparation(self, folder: str) -> dict[str, Any]:
        """Arguments that preparing any candidate of the run takes; artifacts go to ``folder``."""
        batch, calibration = self.config.batch_size, self.role("calibration")
        return {
            "validation": self.role("validation"),
            "calibration": {model: split.loader(batch) for model, split in calibration.items()},
            "batch_size": self.config.benchmark_batch_size,
            "directory": self.folder.folder(folder),
            "scheme": self.int8_scheme,
        }

    @cached_property
    def workers(self) -> Executor:
        """Who trains and prepares: processes here, or the workers of the run's scheduler.

        They stay for all that this process asks of them: importing an exporter takes seconds.
        """
        if self.config.scheduler is None:
            return process_pool()
        cluster = open_scheduler(self.config.scheduler)
        for model in self.config.models:
            if ":" in model:
                cluster.bring(model.partition(":")[0])
        return cluster

    @property
    def prepared(self) -> Path:
        """Where candidates are kept that were prepared before, by this run or another."""
        return self.config.data_folder / "prepared"

    @property
    def search(self) -> SearchSpec:
        """What the run searches for, none of it left open; ``ValueError`` where it does not."""
        if self.config.search is None:
            raise ValueError("search is null; allowed: what params/search.yaml has, or {}")
        own = self.config.search
        given = {"model": own.model or self.config.models[0], "runtime": self.config.clocked}
        return own.model_copy(update=given)

    @cached_property
    def plans(self) -> dict[str, TrainingPlan]:
        """All that decides how each network is trained."""
        config = self.config
        return {
            model: TrainingPlan(
                model,
                splits.train,
                splits.validation,
                len(splits.class_names),
                config.part(Schedule),
                weights=config.weights,
                channel_multiple=self.channel_multiples[model],
                conv1_channels=config.conv1_channels,
                conv2_channels=config.conv2_channels,
            )
            for model, splits in self.splits.items()
        }

    @property
    def channel_multiples(self) -> dict[str, int]:
        """Grid that pruned layers keep, by network: 1 for ``small_cnn``, else 8, unless set."""
        usual = {model: 1 if model == "small_cnn" else 8 for model in self.config.models}
        return {model: self.config.channel_multiple or grid for model, grid in usual.items()}

    def train(
        self, recipes: Iterable[Recipe], *, executor: Executor | None = None
    ) -> dict[Recipe, Training]:
        """Make the network of every recipe, or read it from the store in the data folder."""
        store = Store(self.config.data_folder / "trained", Training)
        return train_networks([*recipes], self.plans, store=store, executor=executor)

    @property
    def quantized_training(self) -> dict[str, Callable[[nn.Module], nn.Module]]:
        """One epoch under simulated int8, by network: a remedy of a collapsed int8.

        At a thirtieth of the learning rate, because the weights are trained already.
        """
        rate, size = self.config.learning_rate / 30, self.config.batch_size
        how = {"epochs": 1, "learning_rate": rate, "progress": False}
        return {
            model: partial(
                quantization_aware_train,
                train_loader=splits.train.loader(size, shuffle=True),
                **how,
            )
            for model, splits in self.splits.items()
        }

    def networks(self, trainings: Mapping[Recipe, Training]) -> dict[Recipe, nn.Module]:
        """Build the networks of trainings, in eval mode."""
        return {
            recipe: self.plans[recipe.model].network(recipe, training.state)
            for recipe, training in trainings.items()
        }

    def keep(self, networks: Mapping[Recipe, nn.Module]) -> None:
        """Write the networks' weights into the run's folder, for the notebooks that follow."""
        for recipe, network in networks.items():
            self.folder.write_bytes(recipe.file_name, dump_weights(network))

    def kept(self, recipes: Iterable[Recipe]) -> dict[Recipe, nn.Module]:
        """Build networks from the weights that an earlier notebook left in the run's folder.

        A missing file is a ``FileNotFoundError`` that names the notebook that makes it.
        """
        return {
            recipe: load_weights(
                self.plans[recipe.model].architecture(recipe),
                self.folder.require(recipe.file_name),
            ).eval()
            for recipe in recipes
        }

    def baselines(self, *, kind: str = "baseline") -> list[Recipe]:
        """List the unpruned network of every model and seed."""
        pairs = product(self.config.models, self.config.seeds)
        return [Recipe(model, 0.0, kind, seed) for model, seed in pairs]

    def history(self, trainings: Mapping[Recipe, Training]) -> pd.DataFrame:
        """One row per epoch of every training; the baseline's epochs follow the pretrained one's.

        Columns: ``model, seed, stage`` and those of :func:`edgeopt.model.fit`.
        """
        before = {"pretrained": 0, "baseline": self.config.epochs}
        tables = [
            training.history.assign(
                model=recipe.model,
                seed=recipe.seed,
                stage=recipe.kind,
                epoch=training.history["epoch"] + before[recipe.kind],
            )
            for recipe, training in trainings.items()
        ]
        return pd.concat(tables, ignore_index=True)

    def seen_images(self) -> pd.DataFrame:
        """Say how each network sees its images: shape, scaling, and the range that arrives.

        Columns: ``model, height, width, channels, resize, interpolation, mean, std, minimum,
        maximum``, the last two over at most 256 training images.
        """
        rows = []
        for model, spec in self.preprocessing.items():
            some = self.splits[model].train.take(256)
            channels, height, width = some.shape[1:]
            size = {"height": height, "width": width, "channels": channels}
            how = {name: getattr(spec, name) for name in ("resize", "interpolation", "mean", "std")}
            ends = {"minimum": some.min().item(), "maximum": some.max().item()}
            rows.append({"model": model, **size, **how, **ends})
        return pd.DataFrame(rows)

    def image_counts(self) -> pd.DataFrame:
        """Count the images of each role: one row per role, one column."""
        counts = {role: len(getattr(self._first, role)) for role in ROLE_NAMES}
        return pd.Series(counts, name="images").to_frame()

    def data_facts(self) -> dict[str, Any]:
        """Describe the data: name, checksum, counts, roles, and how networks see the images."""
        return {
            "name": self._first.name,
            "checksum": self._first.checksum,
            "roles": self._first.origin,
            "counts": self.image_counts()["images"].to_dict(),
            "class_names": list(self.class_names),
            "preprocessing": {m: asdict(spec) for m, spec in self.preprocessing.items()},
            "test_warning": self.test_warning,
        }

    @property
    def test_warning(self) -> str:
        """Say that test images may be ones the given weights were trained on; empty otherwise."""
        return test_warning(self.config, self._first)

    def require_better_than_chance(self, hits: Mapping[str, int], *, images: int) -> None:
        """Stop a run whose given weights answer no better than chance on validation images.

        ``hits`` counts right answers by network. One-sided exact binomial test at 1% against one
        in as many as there are classes; only with ``epochs`` 0, and not with ``allow_chance``.
        """
        if self.config.epochs or self.config.allow_chance:
            return
        classes = len(self.class_names)
        for model, right in hits.items():
            if binomtest(right, images, 1 / classes, "greater").pvalue > CHANCE_LEVEL:
                raise ValueError(
                    f"{model} is right on {right} of {images} validation images, no better than "
                    f"chance among {classes} classes: are the order of classes (class_names), mean "
                    "and std, channels and interpolation those it was trained with? "
                    "allow_chance: true goes on all the same"
                )


def open_study(config: ExperimentConfig) -> Study:
    """Open a run: check its networks and how they take images, and make its folder.

    No image is loaded yet. ``ValueError`` for a network that cannot be built or does not take the
    run's images and classes, weights that do not fit, or numbers of ``mean`` and ``std`` that are
    not as many as its channels; ``OSError`` for weights that are not there.
    """
    classes = class_count(config.dataset)
    preprocessing = {}
    for model in config.models:
        network = _network(config, model, classes)
        channels = input_channels(network)
        spec = config.part(Preprocessing)
        if model == "small_cnn":
            spec = replace(spec, image_size=SMALL_CNN_SIDE, channels=channels)
        preprocessing[model] = replace(spec, channels=spec.channels or channels)
        if shape := image_shape(config, preprocessing[model]):
            check_network(network, name=model, input_shape=(1, *shape), num_classes=classes)
    return Study(config, open_run(config.run), preprocessing)


def _network(config: ExperimentConfig, model: str, classes: int) -> nn.Module:
    return build_model(
        model,
        num_classes=classes,
        conv1_channels=config.conv1_channels,
        conv2_channels=config.conv2_channels,
        weights=config.weights,
    )
