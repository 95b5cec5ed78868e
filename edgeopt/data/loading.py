"""Data sets by name, split into four disjoint roles."""

import logging
import numbers
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from torch.utils.data import DataLoader

from edgeopt.data.embedded import EMBEDDED_NAME, load_embedded
from edgeopt.data.fetch import combined_checksum, fetch
from edgeopt.data.folder import FOLDER_PREFIX, folder_classes, load_folder
from edgeopt.data.population import Population, split_off, stratified_order, without_duplicates
from edgeopt.data.preprocessing import Preprocessing
from edgeopt.data.resized import resize_population
from edgeopt.data.sources import FULL_SETS, FullSet
from edgeopt.data.splits import OFFICIAL_TEST, Split, Splits
from edgeopt.schema import DATASETS, require_known

logger = logging.getLogger(__name__)

FULL_VALIDATION_IMAGES = 10_000
CALIBRATION_IMAGES = 640
CLASSES_OF_ARRAYS = 10  # of MNIST and Fashion-MNIST
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
    split_seed: int = 0,
) -> Splits:
    """Load a data set and split it into train, calibration, validation and test.

    Calibration is drawn from the training images; train is drawn from the rest. ``seed`` draws
    these two. ``split_seed`` draws validation and test, which thus stay the same over seeds. Every
    draw is shuffled, and each of its prefixes is stratified.

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
    population = _load_population(
        dataset_name, data_dir=data_dir, preprocessing=preprocessing, split_seed=split_seed
    )
    if class_names is not None:
        population = population.with_classes(class_names)
    calibration, train = _draw_training(
        population.train,
        train_subset=train_subset,
        calibration_images=calibration_images,
        seed=seed,
    )
    return Splits(
        name=dataset_name,
        class_names=population.class_names,
        checksum=population.checksum,
        train=train,
        calibration=calibration,
        validation=_draw(population.validation, val_subset, name="val_subset", seed=split_seed),
        test=_draw(population.test, test_subset, name="test_subset", seed=split_seed),
        duplicates_dropped=population.duplicates_dropped,
        origin=population.origin,
        left_out=population.left_out,
        preprocessing=preprocessing,
    )


def class_count(dataset_name: str) -> int:
    """Count the classes of a data set without loading an image.

    Raises ``ValueError`` for an unknown data set, or a folder that is not there.
    """
    if dataset_name.startswith(FOLDER_PREFIX):
        return len(folder_classes(dataset_name.removeprefix(FOLDER_PREFIX)))
    require_known(dataset_name, allowed=(*DATASETS, "folder:<path>"), what="data set")
    return CLASSES_OF_ARRAYS


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
    population = _load_population(
        dataset_name, data_dir=data_dir, split_seed=0, preprocessing=preprocessing
    )
    train = _draw(population.train, train_subset, name="train_subset", seed=seed)
    validation = _draw(population.validation, val_subset, name="val_subset", seed=0)
    return (
        train.loader(batch_size, shuffle=True, seed=seed, num_workers=num_workers),
        validation.loader(batch_size, num_workers=num_workers),
    )


def _load_population(
    dataset_name: str, *, data_dir: str | Path, preprocessing: Preprocessing, split_seed: int
) -> Population:
    if dataset_name.startswith(FOLDER_PREFIX):
        population = load_folder(
            dataset_name.removeprefix(FOLDER_PREFIX),
            preprocessing=preprocessing,
            split_seed=split_seed,
            data_dir=data_dir,
        )
    else:
        require_known(dataset_name, allowed=(*DATASETS, "folder:<path>"), what="data set")
        embedded = dataset_name == EMBEDDED_NAME
        population = load_embedded() if embedded else _load_full(dataset_name, data_dir, split_seed)
        population = resize_population(population, preprocessing, data_dir=data_dir)
    if population.duplicates_dropped:
        logger.warning(
            "%s: %d duplicate images left out", dataset_name, population.duplicates_dropped
        )
    return _with_conversion(population, preprocessing)


def _with_conversion(population: Population, preprocessing: Preprocessing) -> Population:
    """Add what is done to the images of all roles when they are read."""
    how = {name: getattr(preprocessing, name) for name in ("channels", "mean", "std")}
    roles = ("train", "validation", "test")
    return replace(
        population, **{role: replace(getattr(population, role), **how) for role in roles}
    )


def _load_full(dataset_name: str, data_dir: str | Path, split_seed: int) -> Population:
    full_set: FullSet = FULL_SETS[dataset_name]
    fetch(full_set, data_dir=data_dir)
    official, test = (
        Split(read.data.unsqueeze(1), read.targets)
        for read in (full_set.torchvision_class(data_dir, train=flag) for flag in (True, False))
    )
    unique = without_duplicates(official, held_out=[test])
    validation, train = split_off(unique, FULL_VALIDATION_IMAGES, seed=split_seed)
    return Population(
        class_names=full_set.class_names,
        checksum=combined_checksum(full_set.sha256),
        train=train,
        validation=validation,
        test=test,
        duplicates_dropped=len(official) - len(unique),
        origin=OFFICIAL_TEST,
    )


def _draw_training(
    source: Split, *, train_subset: int | None, calibration_images: int | None, seed: int
) -> tuple[Split, Split]:
    """Draw calibration from the training images, and the training images from the rest."""
    half = len(source) // 2
    if calibration_images is None:
        calibration_images = min(CALIBRATION_IMAGES, half)
    _require_count(calibration_images, name="calibration_images", high=half)
    calibration, rest = split_off(source, calibration_images, seed=seed)
    return calibration, _draw(rest, train_subset, name="train_subset", seed=seed)


def _draw(source: Split, count: int | None, *, name: str, seed: int) -> Split:
    """Draw a shuffled, stratified part of the images; all of them where ``count`` is None."""
    if count is None:
        count = len(source)
    _require_count(count, name=name, high=len(source))
    return source.select(stratified_order(source.labels, seed=seed)[:count])


def _require_count(value: object, *, name: str, high: int) -> None:
    whole = isinstance(value, numbers.Integral) and not isinstance(value, bool)
    if not whole or not 1 <= value <= high:
        raise ValueError(f"{name} must be a whole number from 1 to {high}, got {value!r}")
