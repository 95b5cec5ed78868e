import hashlib
import pickle

import pandas as pd
import pytest
import torch

from edgeopt.experiments.trainings.plan import Training
from edgeopt.system.store import Store

DIGEST = "ab" * 32


@pytest.fixture
def training() -> Training:
    state = {"layer.weight": torch.arange(6.0).reshape(2, 3)}
    return Training(state, pd.DataFrame({"epoch": [1, 2], "train_loss": [0.5, float("nan")]}))


@pytest.fixture
def store(tmp_path) -> Store[Training]:
    return Store(tmp_path / "trained", Training)


def test_read_gives_what_write_kept(store, training):
    store.write("net-seed0", training, digest=DIGEST)
    found = store.read("net-seed0", digest=DIGEST)
    assert torch.equal(found.state["layer.weight"], training.state["layer.weight"])
    pd.testing.assert_frame_equal(found.history, training.history)


def test_read_knows_neither_another_digest_nor_another_name(store, training):
    store.write("net", training, digest=DIGEST)
    assert store.read("net", digest="cd" * 32) is None
    assert store.read("other", digest=DIGEST) is None


def test_path_holds_no_character_that_a_file_name_cannot(store):
    path = store.path("../pkg.mod:make/net", digest=DIGEST)
    assert path.parent == store.folder
    assert path.name == f"-pkg-mod-make-net-{DIGEST[:16]}.training"


def flipped(content: bytes) -> bytes:
    middle = len(content) // 2
    return content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :]


@pytest.mark.parametrize(
    "broken",
    [
        flipped,
        lambda content: content[:-1],
        lambda content: content[: len(content) // 3],
        lambda content: bytes(len(content)),
        lambda _: b"",
        lambda _: b"not a training",
    ],
)
def test_read_names_a_broken_file_and_gives_none(store, training, broken, caplog):
    path = store.write("net", training, digest=DIGEST)
    path.write_bytes(broken(path.read_bytes()))
    assert store.read("net", digest=DIGEST) is None
    assert f"{path} is broken and will be made again" in caplog.text


class Evil:
    def __reduce__(self):
        return exec, ("raise SystemExit('code ran')",)


def test_read_runs_no_code_that_a_file_with_a_right_checksum_holds(store, caplog):
    content = pickle.dumps(Evil(), protocol=2)
    path = store.path("net", digest=DIGEST)
    path.parent.mkdir()
    checksum = hashlib.sha256(DIGEST.encode() + content).hexdigest()
    path.write_bytes(checksum.encode() + b"\n" + content)
    assert store.read("net", digest=DIGEST) is None
    assert "not a file that edgeopt kept" in caplog.text


def test_a_file_that_was_put_in_another_s_place_is_broken(store, training, caplog):
    first = store.write("net-seed0", training, digest=DIGEST)
    second = store.write("net-seed1", training, digest="cd" * 32)
    first.write_bytes(second.read_bytes())
    assert store.read("net-seed0", digest=DIGEST) is None
    assert "will be made again" in caplog.text
