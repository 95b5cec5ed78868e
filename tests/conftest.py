import hypothesis
import numpy as np
import pytest
import torch

from edgeopt.data.splits import Split
from edgeopt.model.networks import SmallCNN, set_deterministic
from edgeopt.model.training import fit
from tests.own_network import trained_elsewhere, write_pictures

# A busy machine is no counterexample.
hypothesis.settings.register_profile("untimed", deadline=None)
hypothesis.settings.load_profile("untimed")


def striped_split(count: int, *, seed: int, classes: int = 4) -> Split:
    """Images whose class is the row of a bright stripe, under noise: quick to learn."""
    rng = np.random.default_rng(seed)
    labels = rng.permutation(np.arange(count) % classes)
    images = rng.uniform(0, 0.4, (count, 1, 28, 28)).astype(np.float32)
    for image, label in zip(images, labels, strict=True):
        image[0, 3 + 6 * label : 6 + 6 * label] += 0.5
    return Split(torch.from_numpy(images), torch.from_numpy(labels).long())


@pytest.fixture(scope="session")
def striped() -> Split:
    return striped_split(256, seed=1)


@pytest.fixture
def small_cnn() -> SmallCNN:
    set_deterministic(0)
    return SmallCNN(6, 8, 4).eval()


@pytest.fixture(scope="session")
def trained(striped) -> SmallCNN:
    loader = striped.loader(32, shuffle=True, seed=0)
    return fit(SmallCNN(6, 8, 4), loader, epochs=3, learning_rate=0.01, progress=False).model


@pytest.fixture
def options(trained, striped, tmp_path):
    return {
        "models": {("small_cnn", 0, 0.0): trained},
        "calibration": {"small_cnn": striped.loader(32)},
        "validation": {"small_cnn": striped.first(64)},
        "directory": tmp_path,
    }


@pytest.fixture(scope="session")
def pictures(tmp_path_factory):
    return write_pictures(tmp_path_factory.mktemp("pictures"), {"train": 40, "val": 20, "test": 20})


@pytest.fixture(scope="session")
def weights(pictures, tmp_path_factory):
    return trained_elsewhere(pictures, tmp_path_factory.mktemp("weights") / "best.ckpt")
