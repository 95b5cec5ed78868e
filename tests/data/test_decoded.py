"""The file of decoded images: written whole, verified image by image, made again when broken."""

import errno
import fcntl
import os
import re
import signal
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch

from edgeopt.data.decoded import decode_all, decoding, keep_decoded, open_decoded
from edgeopt.system import process_pool

SHAPE = (1, 2, 2)


def decode(item: int) -> tuple[np.ndarray, str]:
    if item < 0:
        raise ValueError(f"item {item} is broken")
    return np.full(SHAPE, item, dtype=np.uint8), f"sha of {item}"


def killed(_: int) -> tuple[np.ndarray, str]:
    os.kill(os.getpid(), signal.SIGKILL)


def kept(folder: Path, items: list[int]) -> Path:
    path = folder / "x.npy"
    with decoding(folder) as temporary:
        digests, _ = decode_all(items, decode, temporary=temporary, shape=SHAPE)
        keep_decoded(temporary, path, digests=digests)
    return path


def test_decode_all_keeps_the_order_with_an_executor_too(tmp_path):
    items = list(range(100))
    with ThreadPoolExecutor(3) as executor:
        _, contents = decode_all(
            items, decode, temporary=tmp_path / "t", shape=SHAPE, executor=executor
        )
    assert contents == [f"sha of {item}" for item in items]
    array = np.load(tmp_path / "t")
    assert array.shape == (100, *SHAPE)
    assert (array[:, 0, 0, 0] == items).all()


def test_decode_all_names_the_first_broken_items_and_counts_the_rest(tmp_path):
    with pytest.raises(ValueError, match=r"item -1 is broken; .*item -5 is broken; and 2 more$"):
        decode_all([3, *range(-1, -8, -1)], decode, temporary=tmp_path / "t", shape=SHAPE)


def test_decode_all_says_how_much_room_is_missing(tmp_path, monkeypatch):
    def full(*_: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(OSError, match=r"no room for 12 bytes of decoded images"):
        decode_all([1, 2, 3], decode, temporary=tmp_path / "t", shape=SHAPE)


def test_open_decoded_finds_what_was_kept(tmp_path):
    path = kept(tmp_path, [5, 7, 9])
    found = open_decoded(path)
    assert (found.shape, len(found)) == ((3, *SHAPE), 3)
    assert found[torch.tensor([2, 0])][:, 0, 0, 0].tolist() == [9, 5]
    assert sorted(p.name for p in tmp_path.iterdir()) == [".lock", "x.digests.npy", "x.npy"]


def test_open_decoded_of_nothing_is_nothing(tmp_path, caplog):
    assert open_decoded(tmp_path / "x.npy") is None
    assert caplog.text == ""


def flip_last_byte(path: Path) -> None:
    content = path.read_bytes()
    path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (flip_last_byte, "image 2 is not what was decoded"),
        (lambda path: os.truncate(path, path.stat().st_size - 1), "bytes, expected"),
        (lambda path: path.write_bytes(b""), "is broken"),
        (lambda path: path.write_bytes(bytes(200)), "is broken"),
        (lambda path: np.save(path, np.zeros((3, 4))), r"it holds float64 \(3, 4\)"),
        (lambda path: path.with_name("x.digests.npy").unlink(), "x.digests.npy"),
        (lambda path: flip_last_byte(path.with_name("x.digests.npy")), "image 2 is not"),
        (lambda path: path.with_name("x.digests.npy").write_bytes(b"x"), "is broken"),
    ],
)
def test_open_decoded_names_a_broken_file_and_does_not_use_it(tmp_path, caplog, damage, reason):
    path = kept(tmp_path, [5, 7, 9])
    damage(path)
    assert open_decoded(path) is None
    assert caplog.records[0].getMessage().startswith(f"{path} is broken and will be made again")
    assert re.search(reason, caplog.text)


def test_decoding_leaves_nothing_behind_when_it_fails(tmp_path):
    def fail() -> None:
        with decoding(tmp_path) as temporary:
            temporary.write_bytes(b"half")
            raise RuntimeError("stop")

    with pytest.raises(RuntimeError, match="stop"):
        fail()
    assert [path.name for path in tmp_path.iterdir()] == [".lock"]


def test_decoding_is_done_by_one_at_a_time(tmp_path):
    other = (tmp_path / ".lock").open("w")
    with decoding(tmp_path), other, pytest.raises(BlockingIOError):
        fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)


def test_results_say_what_a_lost_worker_may_mean(tmp_path):
    own = {"temporary": tmp_path / "t", "shape": SHAPE}
    words = "ended without a word: memory may have run out"
    with process_pool(1) as pool, pytest.raises(RuntimeError, match=words):
        decode_all([1], killed, **own, executor=pool)
