"""One tiny trained network and its artifacts, exported once per test process."""

import functools
import tempfile
from pathlib import Path

import pytest

from edgeopt.model.networks import SmallCNN, set_deterministic
from edgeopt.model.training import fit
from edgeopt.runtimes.contract import Artifact
from edgeopt.runtimes.export import export_artifact
from edgeopt.runtimes.registry import RUNTIMES, runtime_named
from tests.conftest import striped_split

CLASSES = 4
MACS = {"conv1": 28 * 28 * 6 * 9, "conv2": 14 * 14 * 8 * 6 * 9, "classifier": 8 * 49 * CLASSES}
PRECISIONS_OF_RUNTIME = {name: runtime_named(name).precisions for name in RUNTIMES}
TARGETS = [(runtime, name) for runtime in RUNTIMES for name in PRECISIONS_OF_RUNTIME[runtime]]
FOLDER = tempfile.TemporaryDirectory(prefix="edgeopt-tests-")


def require_runtime(runtime: str, precision: str = "fp32") -> None:
    if reason := runtime_named(runtime).unavailable():
        pytest.skip(reason)
    if precision == "bf16":
        from openvino import Core

        if "BF16" not in Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES"):
            pytest.skip("this CPU has no bf16 instructions")


@functools.cache
def trained_cnn() -> SmallCNN:
    set_deterministic(0)
    loader = striped_split(256, seed=1).loader(64, shuffle=True)
    model = SmallCNN(6, 8, CLASSES)
    return fit(model, loader, epochs=6, learning_rate=0.01, progress=False).model


def calibration_loader():
    return striped_split(128, seed=2).loader(32)


def artifact_of(runtime: str, precision: str, batch_size: int = 1) -> Artifact:
    """Export once, however it is asked for: a second export would replace the file of the first."""
    return _artifact_of(runtime, precision, batch_size)


@functools.cache
def _artifact_of(runtime: str, precision: str, batch_size: int) -> Artifact:
    require_runtime(runtime, precision)
    return export_artifact(
        trained_cnn(),
        Path(FOLDER.name) / f"cnn-p12.5-{runtime}-{precision}-{batch_size}",
        runtime=runtime,
        precision=precision,
        input_shape=(batch_size, 1, 28, 28),
        calibration=calibration_loader(),
    )
