"""Data sets by name, split into four disjoint roles."""

import logging
from collections.abc import Sequence
from dataclasses import replace
from itertools import accumulate
from pathlib import Path

import torch
from torch.utils.data import DataLoader

from edgeopt.data.decoded import pixel_path, resize_once
from edgeopt.data.folders.folder import folder_counts, load_folder
from edgeopt.data.folders.roles import FOLDER_PREFIX, folder_classes
from edgeopt.data.preprocessing import Preprocessing, require_whole
from edgeopt.data.sets.embedded import EMBEDDED_NAME, IMAGES_PER_CLASS, load_embedded
from edgeopt.data.sets.fetch import combined_checksum, fetch
from edgeopt.data.sets.sources import FULL_SETS
from edgeopt.data.splits import (
    OFFICIAL_TEST,
    SPLIT_SEED,
    Population,
    Split,
    Splits,
    split_off,
    stratified_order,
    without_duplicates,
)
from edgeopt.schema import DATASETS, require_known

logger = logging.getLogger(__name__)

FULL_TRAIN_IMAGES, FULL_TEST_IMAGES = 60_000, 10_000  # official, of MNIST and Fashion-MNIST
FULL_VALIDATION_IMAGES = 10_000
CALIBRATION_IMAGES = 640
AS_THEY_ARE = Preprocessing()


def load_splits(
    dataset_name: str,
    *,
    train_subset: int | None = None,
    calibration_images: int | None = None,
    val_subset: int | None = None,
    test_subset: int | None = None,
    seed: int = 0,
    data_dir: str | Path = "data",
    preprocessing: Preprocessing = AS_THEY_ARE,
    class_names: Sequence[str] | None = None,
) -> Splits:
    """Load a data set and split it into train, calibration, validation and test.

    Calibration is drawn from the training images; train is drawn from the rest. ``seed`` draws
    these two; validation and test stay the same over seeds. Every draw is shuffled, and each of
    its prefixes is stratified.

    Parameters
    ----------
    dataset_name : str
        ``fashion-mnist-20k``, ``fashion-mnist``, ``mnist`` or ``folder:<path>``.
    train_subset, val_subset, test_subset : int, optional
        How many images to draw; all of them where None.
    calibration_images : int, optional
        At most half of the training images; where None, 640 or that half if it is less.
    preprocessing : Preprocessing
        How the network takes its images; as the data has them by default.
    class_names : sequence of str, optional
        Order of the classes; that of the data set, or alphabetical, when omitted.

    Raises
    ------
    ValueError
        An unknown data set or class name, numbers of mean or std that the channels do not have, or
        a number out of its range; the range is named.
    """
    population = _load_population(dataset_name, data_dir=data_dir, preprocessing=preprocessing)
    if class_names is not None:
        population = population.with_classes(class_names)
    count = _calibration_count(calibration_images, train=len(population.train))
    calibration, rest = split_off(population.train, count, seed=seed)
    drawn = {
        "train": _draw(rest, train_subset, name="train_subset", seed=seed),
        "validation": _draw(population.validation, val_subset, name="val_subset", seed=SPLIT_SEED),
        "test": _draw(population.test, test_subset, name="test_subset", seed=SPLIT_SEED),
    }
    return Splits(name=dataset_name, calibration=calibration, **{**vars(population), **drawn})


def class_count(dataset_name: str) -> int:
    """Count the classes of a data set without loading an image.

    Raises ``ValueError`` for an unknown data set, or a folder that is not there.
    """
    if dataset_name.startswith(FOLDER_PREFIX):
        return len(folder_classes(dataset_name.removeprefix(FOLDER_PREFIX)))
    require_known(dataset_name, allowed=(*DATASETS, "folder:<path>"), what="data set")
    of_embedded = FULL_SETS["fashion-mnist"]
    return len(FULL_SETS.get(dataset_name, of_embedded).class_names)


def image_counts(dataset_name: str, *, calibration_images: int | None = None) -> dict[str, int]:
    """Count the images that each role has at most, without reading one; copies are counted too.

    Raises ``ValueError`` for an unknown data set, a folder that has none, or
    ``calibration_images`` above half of the training images.
    """
    classes = class_count(dataset_name)  # refuses an unknown data set
    if dataset_name.startswith(FOLDER_PREFIX):
        counts = folder_counts(dataset_name.removeprefix(FOLDER_PREFIX))
    elif dataset_name == EMBEDDED_NAME:
        counts = {role: classes * each for role, each in IMAGES_PER_CLASS.items()}
    else:
        train = FULL_TRAIN_IMAGES - FULL_VALIDATION_IMAGES
        counts = {"train": train, "validation": FULL_VALIDATION_IMAGES, "test": FULL_TEST_IMAGES}
    calibration = _calibration_count(calibration_images, train=counts["train"])
    return counts | {"train": counts["train"] - calibration, "calibration": calibration}


def _calibration_count(asked: int | None, *, train: int) -> int:
    """Check how many images set ranges: at most half of the training images."""
    count = min(CALIBRATION_IMAGES, train // 2) if asked is None else asked
    require_whole(count, name="calibration_images", high=train // 2)
    return count


def build_loaders(
    dataset_name: str,
    batch_size: int,
    train_subset: int | None,
    val_subset: int | None,
    seed: int,
    num_workers: int,
    *,
    data_dir: str | Path = "data",
    preprocessing: Preprocessing = AS_THEY_ARE,
) -> tuple[DataLoader, DataLoader]:
    """Return a shuffled training loader and a validation loader.

    ``seed`` draws the training images and their order; no calibration images are set aside.
    """
    population = _load_population(dataset_name, data_dir=data_dir, preprocessing=preprocessing)
    train = _draw(population.train, train_subset, name="train_subset", seed=seed)
    validation = _draw(population.validation, val_subset, name="val_subset", seed=SPLIT_SEED)
    return (
        train.loader(batch_size, shuffle=True, seed=seed, num_workers=num_workers),
        validation.loader(batch_size, num_workers=num_workers),
    )


def _load_population(
    dataset_name: str, *, data_dir: str | Path, preprocessing: Preprocessing
) -> Population:
    if dataset_name.startswith(FOLDER_PREFIX):
        path = dataset_name.removeprefix(FOLDER_PREFIX)
        population = load_folder(path, preprocessing=preprocessing, data_dir=data_dir)
    else:
        require_known(dataset_name, allowed=(*DATASETS, "folder:<path>"), what="data set")
        embedded = dataset_name == EMBEDDED_NAME
        population = load_embedded() if embedded else _load_full(dataset_name, data_dir)
        population = _resized(population, preprocessing, folder=Path(data_dir) / "decoded")
    if population.duplicates_dropped:
        logger.warning(
            "%s: %d duplicate images left out", dataset_name, population.duplicates_dropped
        )
    # What is done to the images when they are read.
    how = {name: getattr(preprocessing, name) for name in ("channels", "mean", "std")}
    return population.change_roles(lambda split: replace(split, **how))


def _load_full(dataset_name: str, data_dir: str | Path) -> Population:
    full_set = FULL_SETS[dataset_name]
    fetch(full_set, data_dir=data_dir)
    official, test = (
        Split(read.data.unsqueeze(1), read.targets)
        for read in (full_set.torchvision_class(data_dir, train=flag) for flag in (True, False))
    )
    unique = without_duplicates(official, held_out=[test])
    validation, train = split_off(unique, FULL_VALIDATION_IMAGES, seed=SPLIT_SEED)
    return Population(
        class_names=full_set.class_names,
        checksum=combined_checksum(full_set.sha256),
        train=train,
        validation=validation,
        test=test,
        duplicates_dropped=len(official) - len(unique),
        origin=OFFICIAL_TEST,
    )


def _resized(population: Population, preprocessing: Preprocessing, *, folder: Path) -> Population:
    """Scale grey images in memory to ``image_size``, where they are not of that size."""
    size = preprocessing.image_size
    if size is None or population.train.shape[1:] == (size, size):
        return population
    splits = (population.train, population.validation, population.test)
    arrays = {id(split.pixels): split.pixels for split in splits}
    starts = dict(zip(arrays, accumulate(map(len, arrays.values()), initial=0), strict=False))
    path = pixel_path(folder, population.checksum, preprocessing)
    pixels = resize_once(torch.cat([*arrays.values()]), preprocessing, path=path)
    return population.change_roles(
        lambda split: replace(
            split, pixels=pixels, positions=split.positions + starts[id(split.pixels)]
        )
    )


def _draw(source: Split, count: int | None, *, name: str, seed: int) -> Split:
    """Draw a shuffled, stratified part of the images; all of them where ``count`` is None."""
    if count is None:
        count = len(source)
    require_whole(count, name=name, high=len(source))
    return source.select(stratified_order(source.labels, seed=seed)[:count])
