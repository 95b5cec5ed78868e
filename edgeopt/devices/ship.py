"""The hand-off: what runs an artifact on a device without edgeopt, and proves it there."""

import hashlib
import importlib.util
import io
import json
import subprocess
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from edgeopt.agent.worker import TIMED_TOLERANCE
from edgeopt.data import Preprocessing, Split
from edgeopt.devices.archive import importable, packed
from edgeopt.devices.bundle import conversion
from edgeopt.runtimes import Artifact, load_session, runtime_named
from edgeopt.runtimes.parity import TOLERANCE

PROGRAM = "predict.py"
CHECKSUMS = "SHA256SUMS"
# What the program needs of the package, beside the session of the runtime.
SHARED = (
    "agent/pixels.py",
    "agent/session.py",
    "data/images.py",
    "system/files.py",
    "system/host.py",
    "system/upstream.py",
)
TESTED_IMAGES = 10
TEST_SECONDS = 300


class ShipError(RuntimeError):
    """A hand-off does not work where it was made."""


def shipped_files(
    artifact: Artifact, *, images: Split, preprocessing: Preprocessing, class_names: Sequence[str]
) -> dict[str, bytes]:
    """Contents of all that goes along with an artifact, by their paths; the same every time.

    The self-test's pictures are the first ten of ``images``, which are uint8.
    """
    runtime = runtime_named(artifact.runtime)
    model = {
        "artifact": _described(artifact),
        "session": runtime.session,
        "preprocessing": asdict(preprocessing) | conversion(images),
        "class_names": list(class_names),
        "tolerance": TOLERANCE if artifact.precision == "fp32" else TIMED_TOLERANCE,
    }
    files = {
        artifact.path.name: artifact.path.read_bytes(),
        "model.json": f"{json.dumps(model, indent=2, ensure_ascii=False)}\n".encode(),
        PROGRAM: (Path(__file__).parent / "assets" / PROGRAM).read_bytes(),
        "requirements.txt": _requirements(["numpy", "pillow", *runtime.packages]).encode(),
        **_self_test(artifact, images.first(TESTED_IMAGES)),
        **importable(packed(*SHARED) | _module(runtime.session)),
    }
    return files | {CHECKSUMS: _checksums(files).encode()}


def self_tested(folder: Path) -> str:
    """Run the self-test of a hand-off and return what it says; ``ShipError`` where it fails."""
    command = [sys.executable, "-E", "-s", str(folder / PROGRAM), "--self-test"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=TEST_SECONDS)
    except subprocess.TimeoutExpired as error:
        raise ShipError(f"{PROGRAM} --self-test took more than {TEST_SECONDS} s") from error
    if done.returncode:
        last = done.stderr.strip().rpartition("\n")[2]
        raise ShipError(f"{PROGRAM} --self-test: {last or f'exit code {done.returncode}'}")
    return done.stdout.strip()


def _described(artifact: Artifact) -> dict[str, Any]:
    """Fields of an artifact that its loading takes."""
    return {
        "file": artifact.path.name,
        "runtime": artifact.runtime,
        "precision": artifact.precision,
        "input_shape": list(artifact.input_shape),
        "sha256": artifact.sha256,
        "size_bytes": artifact.size_bytes,
    }


def _requirements(packages: Iterable[str]) -> str:
    """Pin packages to the versions here; builds as ``+cpu`` have another index."""
    versions = {name: metadata.version(name).partition("+")[0] for name in packages}
    return "".join(f"{name}=={version}\n" for name, version in versions.items())


def _self_test(artifact: Artifact, images: Split) -> dict[str, bytes]:
    """Pictures, as they are stored, and the logits [N, classes] of each alone."""
    session = load_session(artifact)
    logits = [session.score(image.numpy()) for image in images.batches(1)]
    content = io.BytesIO()
    np.save(content, np.concatenate(logits))
    pixels = images.pixels[images.positions].numpy().transpose(0, 2, 3, 1)
    pictures = {f"self_test/{number:02}.png": _png(own) for number, own in enumerate(pixels)}
    return {"self_test/logits.npy": content.getvalue(), **pictures}


def _png(pixels: np.ndarray) -> bytes:
    """Picture of pixels [H, W, C], uint8."""
    content = io.BytesIO()
    Image.fromarray(pixels[:, :, 0] if pixels.shape[2] == 1 else pixels).save(content, "png")
    return content.getvalue()


def _module(place: str) -> dict[str, bytes]:
    """Source of the module of a ``module:Class``, by the path that it is imported by."""
    name = place.partition(":")[0]
    source = Path(importlib.util.find_spec(name).origin)
    return {f"{name.replace('.', '/')}.py": source.read_bytes()}


def _checksums(files: Mapping[str, bytes]) -> str:
    """SHA-256 of every file, as ``sha256sum`` writes and checks them."""
    lines = [f"{hashlib.sha256(files[name]).hexdigest()}  {name}\n" for name in sorted(files)]
    return "".join(lines)
