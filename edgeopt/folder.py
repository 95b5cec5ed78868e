"""The user's own images: one sub-folder per class, read through torchvision's ImageFolder."""

from pathlib import Path
from typing import TYPE_CHECKING

import torch
from tqdm import tqdm

from edgeopt.fetch import combined_checksum
from edgeopt.files import file_sha256
from edgeopt.pool import LabelledImages, Pool, carve, without_duplicates

if TYPE_CHECKING:
    from edgeopt._torchvision import datasets, transforms

FOLDER_PREFIX = "folder:"
ROLES = 4
VALIDATION_SHARE = 0.2
TEST_SHARE = 0.2


def load_folder(
    path: str, *, image_size: int | None, channels: int | None, split_seed: int
) -> Pool:
    """Return the images of ``<path>/<class>/*``, parted 60/20/20 within each class.

    Images are scaled to ``image_size`` x ``image_size`` (bilinear, antialiased; the whole picture
    is kept, so its aspect may change). Copies of an image are dropped before the parting.

    Raises
    ------
    ValueError
        No folder, no images, one class, a class with fewer than four different images, images of
        several sizes without ``image_size``, or an unreadable image; each is named.
    """
    if not path:
        raise ValueError(f"{FOLDER_PREFIX} lacks its path; write {FOLDER_PREFIX}<path>")
    root = Path(path).expanduser()
    transform = _transform(image_size=image_size, channels=channels)
    folder = _open_folder(root, transform=transform)
    everything = _read_images(folder, root=root)
    unique = without_duplicates(everything)
    _require_images_for_roles(unique, class_names=folder.classes, root=root)
    test, rest = _carve_share(unique, TEST_SHARE, of=unique, seed=split_seed)
    validation, train = _carve_share(rest, VALIDATION_SHARE, of=unique, seed=split_seed)
    return Pool(
        class_names=tuple(folder.classes),
        checksum=_checksum(folder, root=root),
        train=train,
        validation=validation,
        test=test,
        duplicates_dropped=len(everything) - len(unique),
    )


def _transform(*, image_size: int | None, channels: int | None) -> "transforms.Compose":
    from edgeopt._torchvision import transforms

    steps = [transforms.Grayscale()] if channels == 1 else []
    if image_size is not None:
        steps.append(transforms.Resize((image_size, image_size), antialias=True))
    return transforms.Compose([*steps, transforms.PILToTensor()])


def _open_folder(root: Path, *, transform: "transforms.Compose") -> "datasets.ImageFolder":
    from edgeopt._torchvision import datasets

    if not root.is_dir():
        raise ValueError(
            f"{FOLDER_PREFIX}{root} is no folder; it must be one with a sub-folder per class"
        )
    try:
        folder = datasets.ImageFolder(root, transform=transform)
    except FileNotFoundError as error:
        raise ValueError(f"{FOLDER_PREFIX}{root} has no images to offer: {error}") from error
    if len(folder.classes) < 2:
        raise ValueError(
            f"{FOLDER_PREFIX}{root} has one class, {folder.classes[0]!r}; at least 2 are needed"
        )
    return folder


def _read_images(folder: "datasets.ImageFolder", *, root: Path) -> LabelledImages:
    first_path = folder.samples[0][0]
    images = []
    for position in tqdm(
        range(len(folder)), desc=f"reading {root.name}", unit="image", disable=None
    ):
        path = folder.samples[position][0]
        image = _read_image(folder, position, path=path)
        if images and image.shape != images[0].shape:
            raise ValueError(
                f"images differ in size: {first_path} is {_size(images[0])}, {path} is "
                f"{_size(image)}; give image_size to scale them all"
            )
        images.append(image)
    return LabelledImages(torch.stack(images), torch.tensor(folder.targets))


def _read_image(folder: "datasets.ImageFolder", position: int, *, path: str) -> torch.Tensor:
    try:
        return folder[position][0]
    except (OSError, SyntaxError, ValueError) as error:
        # Pillow reports a broken file with any of these three.
        raise ValueError(f"cannot read the image {path}: {error}") from error


def _size(image: torch.Tensor) -> str:
    return f"{image.shape[-1]}x{image.shape[-2]}"


def _require_images_for_roles(
    source: LabelledImages, *, class_names: list[str], root: Path
) -> None:
    counts = torch.bincount(source.labels, minlength=len(class_names)).tolist()
    scarce = [
        f"{name!r} ({count})"
        for name, count in zip(class_names, counts, strict=True)
        if count < ROLES
    ]
    if scarce:
        raise ValueError(
            f"{FOLDER_PREFIX}{root}: each class needs at least {ROLES} different images, one for "
            f"each of train, calibration, validation and test; too few in {', '.join(scarce)}"
        )


def _carve_share(
    source: LabelledImages, share: float, *, of: LabelledImages, seed: int
) -> tuple[LabelledImages, LabelledImages]:
    """Carve this share of each class of ``of``, at least one image, out of ``source``."""
    carved, kept = [], []
    for label, count in enumerate(torch.bincount(of.labels).tolist()):
        of_class = source.take(torch.nonzero(source.labels == label).flatten().numpy())
        taken, rest = carve(of_class, max(1, round(share * count)), seed=seed)
        carved.append(taken)
        kept.append(rest)
    return _concatenated(carved), _concatenated(kept)


def _concatenated(parts: list[LabelledImages]) -> LabelledImages:
    return LabelledImages(
        torch.cat([part.images for part in parts]), torch.cat([part.labels for part in parts])
    )


def _checksum(folder: "datasets.ImageFolder", *, root: Path) -> str:
    """Checksum over relative names and bytes of all image files."""
    files = [Path(path) for path, _ in folder.samples]
    return combined_checksum(
        {path.relative_to(root).as_posix(): file_sha256(path) for path in files}
    )
