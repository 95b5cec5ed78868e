"""Folders of pictures: how long they take to load, and how much memory a process needs for them."""

import json
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import numpy as np
from PIL import Image

from edgeopt.data import Preprocessing, Splits, load_splits
from edgeopt.model import build_model, fit, predict_logits
from edgeopt.system import process_pool

SIDE = 224
CLASSES = 4
GIB = 1 << 30


def pictures() -> Iterator[str]:
    """6,000 JPEGs, cold and warm, each load in a fresh process."""
    with tempfile.TemporaryDirectory(prefix="edgeopt-") as scratch:
        make_pictures(Path(scratch, "pictures"), 6000)
        for state, goal in (("cold", 15), ("warm", 1)):
            found = in_fresh_process("load", Path(scratch))
            yield f"6,000 JPEGs, {state}: {found['load_s']:.1f} s (goal: {goal} or less)"
            yield f"{state}, peak RSS: {found['rss_bytes'] / GIB:.2f} GiB (goal: below 0.93)"


def many_pictures() -> Iterator[str]:
    """40,000 JPEGs: an epoch of MobileNetV3-Small and a scoring, under 3 GB."""
    with tempfile.TemporaryDirectory(prefix="edgeopt-") as scratch:
        make_pictures(Path(scratch, "pictures"), 40_000)
        found = in_fresh_process("train", Path(scratch))
        yield f"40,000 JPEGs, cold: {found['load_s']:.0f} s; decoded: 6.0 GB (goal: none)"
        yield f"an epoch and its scoring: {found['epoch_s']:.0f} s (goal: none)"
        yield f"peak RSS: {found['rss_bytes'] / GIB:.2f} GiB (goal: below 2.79)"


def make_pictures(folder: Path, count: int) -> None:
    for label in range(CLASSES):
        (folder / f"class{label}").mkdir(parents=True)
    with process_pool() as pool:
        for _ in pool.map(partial(write_picture, folder), range(count), chunksize=100):
            pass


def write_picture(folder: Path, number: int) -> None:
    """Smooth shapes under noise, about 16 KB as a photograph of this size would be."""
    rng = np.random.default_rng(number)
    coarse = Image.fromarray(rng.integers(0, 256, (12, 16, 3), dtype=np.uint8))
    smooth = np.asarray(coarse.resize((SIDE, SIDE), Image.Resampling.BICUBIC)).astype(int)
    noisy = (smooth + rng.integers(-8, 8, (SIDE, SIDE, 1))).clip(0, 255).astype(np.uint8)
    path = folder / f"class{number % CLASSES}" / f"{number:06d}.jpg"
    Image.fromarray(noisy).save(path, quality=88)


def in_fresh_process(what: str, scratch: Path) -> dict[str, float]:
    command = [sys.executable, "-m", "benchmarks.data", what, str(scratch)]
    return json.loads(subprocess.run(command, check=True, capture_output=True).stdout)


def measure(what: str, scratch: Path) -> dict[str, float]:
    start = time.perf_counter()
    splits = load_splits(
        f"folder:{scratch / 'pictures'}",
        data_dir=scratch,
        preprocessing=Preprocessing(image_size=SIDE, mean="imagenet", std="imagenet"),
    )
    loaded = time.perf_counter()
    if what == "train":
        train_and_score(splits)
    found = {"load_s": loaded - start, "epoch_s": time.perf_counter() - loaded}
    return found | {"rss_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10}


def train_and_score(splits: Splits) -> None:
    model = build_model("mobilenet_v3_small", num_classes=CLASSES)
    loader = splits.train.loader(64, shuffle=True, drop_last=True)
    trained = fit(model, loader, epochs=1, learning_rate=1e-3, progress=False).model
    predict_logits(trained, splits.validation)


if __name__ == "__main__":
    sys.stdout.write(json.dumps(measure(sys.argv[1], Path(sys.argv[2]))))
