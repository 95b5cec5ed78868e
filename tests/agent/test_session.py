import re

import numpy as np
import pytest

from edgeopt.agent.session import Artifact, ArtifactError, open_session, session_class
from edgeopt.system.files import file_sha256
from edgeopt.system.host import usable_cores
from edgeopt.system.upstream import RuntimeUnavailable
from tests.agent.made_up import WEIGHTS, Product

PLACE = "tests.agent.made_up:Product"
IMAGES = np.eye(4, dtype=np.float32)[[0, 1, 2, 3, 0]].reshape(5, 1, 2, 2)
LOGITS = [[1, -1], [-1, 1], [1, -1], [-1, 1], [1, -1]]  # of one white pixel each


def artifact_in(folder, *, batch=2):
    path = folder / "weights.npy"
    np.save(path, WEIGHTS)
    shape = (batch, 1, 2, 2)
    return Artifact(path, "made up", "fp32", shape, file_sha256(path), path.stat().st_size)


@pytest.fixture
def artifact(tmp_path):
    return artifact_in(tmp_path)


def test_a_session_gives_logits_of_one_batch(artifact):
    session = open_session(artifact, place=PLACE)
    assert isinstance(session, Product)
    assert session(IMAGES[:2]).tolist() == LOGITS[:2]
    with session.bound(IMAGES[1:3]) as call:
        assert call().tolist() == LOGITS[1:3]


@pytest.mark.parametrize("batch", [1, 2, 4, 5, 8])
def test_any_number_of_images_is_scored_in_batches_that_are_filled_up(tmp_path, batch):
    session = open_session(artifact_in(tmp_path, batch=batch), place=PLACE)
    assert session.score(IMAGES).tolist() == LOGITS


def test_the_last_batch_is_filled_up_with_its_last_image(artifact):
    batches = []

    class Noting(Product):
        def _logits(self, returned):
            batches.append(returned.tolist())
            return returned

    Noting(artifact, threads=1).score(IMAGES)
    assert batches == [LOGITS[:2], LOGITS[2:4], [LOGITS[4]] * 2]


@pytest.mark.parametrize(("batch", "expected"), [(1, 64), (2, 64), (48, 192), (100, 1600)])
def test_the_scoring_batch_is_the_least_multiple_of_64_and_the_batch(tmp_path, batch, expected):
    assert Product(artifact_in(tmp_path, batch=batch), threads=1).scoring_batch == expected


def test_images_of_another_shape_or_type_are_refused(artifact):
    session = open_session(artifact, place=PLACE)
    title = re.escape("artifact weights.npy (made up fp32)")
    with pytest.raises(ValueError, match=rf"{title} takes float32 \(2, 1, 2, 2\), got float32 \(3"):
        session(IMAGES[:3])
    with pytest.raises(ValueError, match=r"got float64 \(2, 1, 2, 2\)"):
        session(IMAGES[:2].astype(float))
    with pytest.raises(ValueError, match=r"takes float32 \(5, 1, 2, 2\), got float32 \(5, 1, 1, 4"):
        session.score(IMAGES.reshape(5, 1, 1, 4))
    with pytest.raises(ValueError, match=rf"{title}: no images to run; allowed: 1 or more"):
        session.score(IMAGES[:0])


def test_threads_are_one_to_the_cores(artifact):
    cores = usable_cores()
    assert open_session(artifact, place=PLACE).threads == 1
    assert open_session(artifact, place=PLACE, threads=cores).threads == cores
    for threads in (0, cores + 1):
        said = rf"threads is {threads}; allowed: 1 to {cores} \(cores\)"
        with pytest.raises(ValueError, match=said):
            open_session(artifact, place=PLACE, threads=threads)


def test_a_changed_file_is_refused(artifact):
    artifact.path.write_bytes(b"another")
    with pytest.raises(ArtifactError, match=rf"is corrupt: .* at export it was {artifact.sha256}"):
        open_session(artifact, place=PLACE)


def test_what_a_runtime_cannot_load_names_the_artifact(tmp_path):
    path = tmp_path / "weights.npy"
    path.write_bytes(b"no array")
    artifact = Artifact(path, "made up", "fp32", (1, 1, 2, 2), file_sha256(path), 8)
    with pytest.raises(ArtifactError, match=r"weights\.npy \(made up fp32\) cannot be loaded: "):
        open_session(artifact, place=PLACE)


def test_a_runtime_that_is_not_installed_is_unavailable(artifact):
    with pytest.raises(RuntimeUnavailable, match=r"^no_such_runtime is not installed$"):
        session_class("no_such_runtime.sessions:Session")
    with pytest.raises(RuntimeUnavailable, match=r"^artifact .* no_such_runtime is not installed$"):
        open_session(artifact, place="no_such_runtime:Session")
