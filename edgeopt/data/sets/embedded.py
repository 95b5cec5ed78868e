"""The 20,000 Fashion-MNIST images that ship with the package, and how to make them again."""

import hashlib
import io
import zipfile
import zlib
from collections.abc import Mapping
from importlib import resources
from pathlib import Path

import numpy as np
import torch

from edgeopt.data.sets.fetch import CorruptFileError, fetch, require_digest
from edgeopt.data.sets.sources import FULL_SETS
from edgeopt.data.splits import OFFICIAL_TEST, Population, Split
from edgeopt.system import write_atomically

EMBEDDED_NAME = "fashion-mnist-20k"
EMBEDDED_FILE = Path(str(resources.files("edgeopt"))) / "assets" / "fashion_mnist_20k.npz"
EMBEDDED_SHA256 = "7349f4e6e3ff1c1f88977db727c1b92eca4dd1b24b4e79ea80bd3ad6af07dda6"
IMAGES_PER_CLASS = {"train": 1200, "validation": 300, "test": 500}


def load_embedded(path: Path = EMBEDDED_FILE) -> Population:
    """Return the shipped images after checking the file's bytes."""
    if not path.exists():
        raise FileNotFoundError(f"the embedded data set {path} is missing; reinstall edgeopt")
    require_digest(path, EMBEDDED_SHA256, advice="reinstall edgeopt")
    with np.load(path) as arrays:
        roles = {role: _split(arrays, role) for role in IMAGES_PER_CLASS}
    names = FULL_SETS["fashion-mnist"].class_names
    return Population(names, EMBEDDED_SHA256, origin=OFFICIAL_TEST, **roles)


def _split(arrays: Mapping[str, np.ndarray], role: str) -> Split:
    images = torch.from_numpy(arrays[f"{role}_images"]).unsqueeze(1)
    return Split(images, torch.from_numpy(arrays[f"{role}_labels"]).long())


def build_embedded(data_dir: str | Path) -> dict[str, np.ndarray]:
    """Select the embedded images from the verified full set.

    Within each class of an official split, images are ranked by the SHA-256 of their pixels, so
    the choice depends on no random generator. Train takes the first 1,200 of each class,
    validation the next 300; test takes the first 500 of the official test split. Each role keeps
    the official order; ``*_positions`` says where in the official split an image stands.
    """
    full_set = FULL_SETS["fashion-mnist"]
    fetch(full_set, data_dir=data_dir)
    arrays, taken = {}, {True: 0, False: 0}
    for role, per_class in IMAGES_PER_CLASS.items():
        train = role != "test"
        source = full_set.torchvision_class(data_dir, train=train)
        first, last = taken[train], taken[train] + per_class
        positions = _ranked_positions(source.data, source.targets, first=first, last=last)
        arrays[f"{role}_images"] = source.data.numpy()[positions]
        arrays[f"{role}_labels"] = source.targets.numpy()[positions].astype(np.uint8)
        arrays[f"{role}_positions"] = positions.astype(np.uint16)
        taken[train] = last
    return arrays


def _ranked_positions(
    images: torch.Tensor, labels: torch.Tensor, *, first: int, last: int
) -> np.ndarray:
    """Positions of ranks ``first`` to ``last`` of every class, ascending."""
    digests = [hashlib.sha256(image).digest() for image in images.numpy()]
    chosen = []
    for label in labels.unique().tolist():
        of_class = torch.nonzero(labels == label).flatten().tolist()
        chosen += sorted(of_class, key=digests.__getitem__)[first:last]
    return np.sort(np.array(chosen))


def packed(arrays: Mapping[str, np.ndarray]) -> bytes:
    """Return the arrays as the bytes of a compressed .npz, equal for equal arrays and zlib."""
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **arrays)
    return buffer.getvalue()


def differences_from_shipped(arrays: Mapping[str, np.ndarray], path: Path) -> list[str]:
    """Say what differs between these arrays and an .npz file; nothing where the bytes are equal."""
    content = path.read_bytes()
    try:
        with np.load(io.BytesIO(content)) as shipped:
            ours, theirs = _comparable(arrays), _comparable(shipped)
    except (ValueError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise CorruptFileError(f"{path} cannot be read: {error}") from error
    names = sorted(ours.keys() | theirs.keys())
    differing = [f"array {name}" for name in names if ours.get(name) != theirs.get(name)]
    if differing or content == packed(arrays):
        return differing
    return [
        "the file's bytes, though all arrays are equal byte for byte: "
        f"this zlib ({zlib.ZLIB_RUNTIME_VERSION}) packs them otherwise"
    ]


def _comparable(arrays: Mapping[str, np.ndarray]) -> dict[str, tuple]:
    return {name: (array.dtype, array.shape, array.tobytes()) for name, array in arrays.items()}


def rebuild_embedded(data_dir: str | Path, *, output: Path | None = None) -> str:
    """Make the embedded data set again; say how it differs from the shipped file, empty if not.

    ``data_dir`` is where the full set is, or will be; ``output`` also gets the rebuilt file.
    """
    arrays = build_embedded(data_dir)
    if output is not None:
        write_atomically(output, packed(arrays))
    differences = differences_from_shipped(arrays, EMBEDDED_FILE)
    return f"{EMBEDDED_FILE.name} differs in {'; '.join(differences)}" if differences else ""
