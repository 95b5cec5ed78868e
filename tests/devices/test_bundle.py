import numpy as np
import pytest
import torch

from edgeopt.data import Split
from edgeopt.devices import write_bundle

COUNTS = {"rounds": 2, "calls_per_round": 3}


def test_write_bundle_gives_the_same_bytes_for_the_same_tasks(tmp_path, tasks, images):
    first, second = (
        write_bundle(tmp_path / name, tasks, images={"net": images}, **COUNTS) for name in "ab"
    )
    assert first.digest == second.digest
    assert [p.name for p in first.files()] == [p.name for p in second.files()]
    assert all(path.is_file() for path in first.files())


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"mean": 0.3, "std": 0.5},
        {"channels": 3},
        {"channels": 3, "mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)},
    ],
)
@pytest.mark.parametrize("kind", ["uint8", "float32"])
def test_the_device_sees_the_images_bit_for_bit_as_the_networks_do(tmp_path, tasks, options, kind):
    rng = np.random.default_rng(1)
    pixels = rng.integers(0, 256, (70, 1, 8, 8), dtype=np.uint8)
    held = torch.from_numpy(pixels if kind == "uint8" else pixels.astype(np.float32) / 255)
    split = Split(held, torch.zeros(70, dtype=torch.int64), **options)
    plan = write_bundle(tmp_path, tasks, images={"net": split}, **COUNTS)
    batches = list(plan.batches("net", 32))
    assert [len(batch) for batch in batches] == [32, 32, 6]
    assert np.array_equal(np.concatenate(batches), split.take(70).numpy())


def test_write_bundle_refuses_no_task_and_two_of_one_name(tmp_path, tasks, images):
    for own in ([], [tasks[0], tasks[0]]):
        with pytest.raises(ValueError, match="allowed: 1 or more, each name once"):
            write_bundle(tmp_path, own, images={"net": images}, **COUNTS)
    with pytest.raises(ValueError, match="rounds is 0; allowed: 1 or more"):
        write_bundle(tmp_path, tasks, images={"net": images}, rounds=0, calls_per_round=1)
