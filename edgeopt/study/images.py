"""The images of a run, as each of its networks takes them."""

from dataclasses import replace

from edgeopt.config import ExperimentConfig
from edgeopt.data import (
    FOLDER_PREFIX,
    ROLE_NAMES,
    SPLIT_BY_SEED,
    PixelFile,
    Preprocessing,
    Splits,
    load_splits,
)

ARRAY_SIDE = 28  # of MNIST and Fashion-MNIST


def image_shape(config: ExperimentConfig, spec: Preprocessing) -> tuple[int, int, int] | None:
    """Channels, height and width of images; None where a folder's pictures decide one of them."""
    from_folder = config.dataset.startswith(FOLDER_PREFIX)
    channels = spec.channels or (None if from_folder else 1)
    side = spec.image_size or (None if from_folder else ARRAY_SIDE)
    return (channels, side, side) if channels and side else None


def load_images(config: ExperimentConfig, preprocessing: Preprocessing) -> Splits:
    """Load a run's images in four roles, as one network takes them."""
    return load_splits(
        config.dataset,
        train_subset=config.train_subset,
        calibration_images=config.calibration_images,
        val_subset=config.val_subset,
        test_subset=config.test_subset,
        data_dir=config.data_folder,
        preprocessing=preprocessing,
        class_names=config.class_names,
    )


def with_pictures_of(splits: Splits, first: Splits | None) -> Splits:
    """Give every role the pictures that it has in ``first``.

    Pictures that are copies of each other at one size may differ at another, so that a folder that
    was scaled otherwise could be split otherwise.
    """
    if first is None or not all(isinstance(s.train.pixels, PixelFile) for s in (splits, first)):
        return splits  # arrays are split before they are scaled
    roles = {}
    for name in ROLE_NAMES:
        like = getattr(first, name)
        roles[name] = replace(getattr(splits, name), labels=like.labels, positions=like.positions)
    return replace(splits, **roles)


def test_warning(config: ExperimentConfig, splits: Splits) -> str:
    """Say that test images may be ones the given weights were trained on; empty otherwise."""
    if config.epochs or splits.origin != SPLIT_BY_SEED:
        return ""
    return (
        "the weights were taken as they are (epochs is 0) and the images were split by seed: the "
        "network may have been trained on some of the test images, and then they say nothing about "
        "new ones; a folder with train/, val/ and test/ keeps its own roles"
    )
