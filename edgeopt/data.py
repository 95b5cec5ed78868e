"""Data sets by name, dealt into four disjoint roles."""

import argparse
import logging
import numbers
from collections.abc import Sequence
from pathlib import Path

from torch.utils.data import DataLoader

from edgeopt.embedded import (
    EMBEDDED_FILE,
    EMBEDDED_NAME,
    build_embedded,
    differences_from_shipped,
    load_embedded,
    packed,
)
from edgeopt.fetch import SourcesUnreachableError, combined_checksum, fetch
from edgeopt.files import write_atomically
from edgeopt.folder import FOLDER_PREFIX, load_folder
from edgeopt.pool import LabelledImages, Pool, carve, stratified_order, without_duplicates
from edgeopt.schema import DATASETS, require_known
from edgeopt.sources import FULL_SETS, FullSet
from edgeopt.splits import Split, Splits, as_split, shared_images

__all__ = ["Split", "Splits", "build_loaders", "load_splits", "main", "shared_images"]

logger = logging.getLogger(__name__)

FULL_VALIDATION_IMAGES = 10_000
CALIBRATION_IMAGES = 640


def load_splits(
    dataset_name: str,
    *,
    train_subset: int | None = None,
    calibration_subset: int | None = CALIBRATION_IMAGES,
    val_subset: int | None = None,
    test_subset: int | None = None,
    seed: int = 0,
    data_dir: str | Path = "data",
    image_size: int | None = None,
    channels: int | None = None,
    split_seed: int = 0,
) -> Splits:
    """Load a data set and deal it into train, calibration, validation and test.

    Calibration is carved out of the training pool; train is drawn from the rest. ``seed`` draws
    these two. ``split_seed`` draws validation and test, which thus stay the same over seeds. Every
    draw is shuffled, and each of its prefixes is stratified.

    Parameters
    ----------
    dataset_name : str
        ``fashion-mnist-20k``, ``fashion-mnist``, ``mnist`` or ``folder:<path>``.
    train_subset, val_subset, test_subset : int, optional
        How many images to draw; all of them where None.
    calibration_subset : int, optional
        How many images to carve out; where None, 640 or a quarter of the pool if that is less.
    image_size : int, optional
        Side in pixels to scale to (bilinear, antialiased).
    channels : {1, 3}, optional
        1 for grey; 3 repeats a grey channel.

    Raises
    ------
    ValueError
        An unknown data set, or a number out of its range; the range is named.
    """
    pool = _load_pool(
        dataset_name,
        data_dir=data_dir,
        image_size=image_size,
        channels=channels,
        split_seed=split_seed,
    )
    calibration, train = _deal_training(
        pool.train, train_subset=train_subset, calibration_subset=calibration_subset, seed=seed
    )
    roles = {
        "train": train,
        "calibration": calibration,
        "validation": _draw(pool.validation, val_subset, name="val_subset", seed=split_seed),
        "test": _draw(pool.test, test_subset, name="test_subset", seed=split_seed),
    }
    return Splits(
        name=dataset_name,
        class_names=pool.class_names,
        checksum=pool.checksum,
        duplicates_dropped=pool.duplicates_dropped,
        **{
            role: as_split(images, image_size=image_size, channels=channels)
            for role, images in roles.items()
        },
    )


def build_loaders(
    dataset_name: str,
    batch_size: int,
    train_subset: int | None,
    val_subset: int | None,
    seed: int,
    num_workers: int,
    *,
    data_dir: str | Path = "data",
    image_size: int | None = None,
    channels: int | None = None,
) -> tuple[DataLoader, DataLoader]:
    """Return a shuffled training loader and a validation loader.

    ``seed`` draws the training images and their order; no calibration images are set aside.
    """
    options = {"image_size": image_size, "channels": channels}
    pool = _load_pool(dataset_name, data_dir=data_dir, split_seed=0, **options)
    train = _draw(pool.train, train_subset, name="train_subset", seed=seed)
    validation = _draw(pool.validation, val_subset, name="val_subset", seed=0)
    return (
        as_split(train, **options).loader(
            batch_size, shuffle=True, seed=seed, num_workers=num_workers
        ),
        as_split(validation, **options).loader(batch_size, num_workers=num_workers),
    )


def _load_pool(
    dataset_name: str,
    *,
    data_dir: str | Path,
    image_size: int | None,
    channels: int | None,
    split_seed: int,
) -> Pool:
    if image_size is not None:
        _require_count(image_size, name="image_size", high=None)
    if channels not in (None, 1, 3):
        raise ValueError(f"channels must be 1 or 3, got {channels!r}")
    if dataset_name.startswith(FOLDER_PREFIX):
        path = dataset_name.removeprefix(FOLDER_PREFIX)
        pool = load_folder(path, image_size=image_size, channels=channels, split_seed=split_seed)
    else:
        require_known(dataset_name, allowed=(*DATASETS, "folder:<path>"), what="data set")
        if dataset_name == EMBEDDED_NAME:
            return load_embedded()
        pool = _load_full(FULL_SETS[dataset_name], data_dir=data_dir, split_seed=split_seed)
    if pool.duplicates_dropped:
        logger.warning("%s: %d duplicate images left out", dataset_name, pool.duplicates_dropped)
    return pool


def _load_full(full_set: FullSet, *, data_dir: str | Path, split_seed: int) -> Pool:
    fetch(full_set, data_dir=data_dir)
    official, test = (
        LabelledImages(read.data.unsqueeze(1), read.targets)
        for read in (full_set.torchvision_class(data_dir, train=flag) for flag in (True, False))
    )
    unique = without_duplicates(official, held_out=test)
    validation, train = carve(unique, FULL_VALIDATION_IMAGES, seed=split_seed)
    return Pool(
        class_names=full_set.class_names,
        checksum=combined_checksum(full_set.sha256),
        train=train,
        validation=validation,
        test=test,
        duplicates_dropped=len(official) - len(unique),
    )


def _deal_training(
    source: LabelledImages,
    *,
    train_subset: int | None,
    calibration_subset: int | None,
    seed: int,
) -> tuple[LabelledImages, LabelledImages]:
    """Carve calibration out of the training pool and draw the training images from the rest."""
    if calibration_subset is None:
        calibration_subset = max(1, min(CALIBRATION_IMAGES, len(source) // 4))
    _require_count(calibration_subset, name="calibration_subset", high=len(source) - 1)
    calibration, rest = carve(source, calibration_subset, seed=seed)
    return calibration, _draw(rest, train_subset, name="train_subset", seed=seed)


def _draw(source: LabelledImages, count: int | None, *, name: str, seed: int) -> LabelledImages:
    """Draw a shuffled, stratified part of the images; all of them where ``count`` is None."""
    if count is None:
        count = len(source)
    _require_count(count, name=name, high=len(source))
    return source.take(stratified_order(source.labels, seed=seed)[:count])


def _require_count(value: object, *, name: str, high: int | None) -> None:
    whole = isinstance(value, numbers.Integral) and not isinstance(value, bool)
    if not whole or value < 1 or (high is not None and value > high):
        allowed = "at least 1" if high is None else f"from 1 to {high}"
        raise ValueError(f"{name} must be a whole number {allowed}, got {value!r}")


def main(arguments: Sequence[str] | None = None) -> int:
    """Make the embedded data set again and compare it with the shipped file, byte for byte."""
    parser = argparse.ArgumentParser(prog="python -m edgeopt.data", description=main.__doc__)
    parser.add_argument("--rebuild-embedded", action="store_true", required=True)
    parser.add_argument("--data-dir", default="data", help="where the full set is, or will be")
    parser.add_argument("--output", type=Path, help="also write the rebuilt file here")
    options = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    try:
        arrays = build_embedded(options.data_dir)
        if options.output is not None:
            write_atomically(options.output, packed(arrays))
        differences = differences_from_shipped(arrays, EMBEDDED_FILE)
    except (OSError, ValueError, SourcesUnreachableError) as error:
        logger.error("%s", error)
        return 1
    verdict = f"differs in {'; '.join(differences)}" if differences else "is equal byte for byte"
    logger.info("rebuilt %s: %s %s", EMBEDDED_NAME, EMBEDDED_FILE.name, verdict)
    return int(bool(differences))


if __name__ == "__main__":
    raise SystemExit(main())
