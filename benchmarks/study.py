"""edgeopt's sweep against the usual way, and against itself."""

import time
from collections.abc import Callable, Iterator
from functools import partial

import numpy as np
import pandas as pd
from torch.utils.data import DataLoader

from benchmarks.reference import (
    PilImages,
    time_passes,
    time_single_images,
    train_usual,
    usual_study,
)
from edgeopt.data import build_loaders, load_splits
from edgeopt.experiments import run_sweep
from edgeopt.model import SmallCNN, evaluate, set_deterministic, train_model

LEVELS = [0.0, 0.25, 0.5, 0.7]
PRECISIONS = ["fp32", "fp16", "int8"]
SEEDS = range(10)
WORK = {"epochs": 2, "levels": LEVELS, "precisions": PRECISIONS, "repeats": 5}


def our_study() -> pd.DataFrame:
    """Do :func:`usual_study`'s work through the package, loading of the data included."""
    train, validation = loaders(seed=0)
    calibration = load_splits("fashion-mnist-20k").calibration.loader(64)
    set_deterministic(0)
    model = train_model(SmallCNN(), train, WORK["epochs"], 1e-3)
    return run_sweep(
        model,
        validation,
        calibration,
        "cpu",
        LEVELS,
        PRECISIONS,
        5.0,
        10,
        [0.03],
        0.03,
        1.0,
        WORK["repeats"],
    )


def speed_against_the_usual_way() -> Iterator[str]:
    """Wall time of the same work side by side, for both readings of what a repeat is."""
    train, validation = (part.dataset for part in loaders(seed=0))
    ours = seconds_of(our_study)
    yield f"edgeopt took {ours:.1f} s (aim: 12)"
    for repeat, timing, goal in (
        ("passes of the validation images", time_passes, "5 or more"),
        ("single images, as often as edgeopt times them", time_single_images, "none"),
    ):
        usual = seconds_of(partial(usual_study, train, validation, timing=timing, **WORK))
        yield f"the usual way, repeats being {repeat}: {usual:.1f} s"
        yield f"usual way / edgeopt, wall time: {usual / ours:.1f} (goal: {goal})"


def seconds_of(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def accuracy_against_the_usual_way() -> Iterator[str]:
    """Mean validation accuracy over the same ten seeds: one training's varies by a point."""
    ours, usual = (np.array([train(seed) for seed in SEEDS]) for train in TRAININGS)
    error = np.sqrt((ours.var(ddof=1) + usual.var(ddof=1)) / len(SEEDS))
    yield f"unpruned fp32, edgeopt {ours.mean():.4f}, usual way {usual.mean():.4f}"
    yield (
        f"difference: {100 * (ours.mean() - usual.mean()):+.2f} points, standard error "
        f"{100 * error:.2f}, over {len(SEEDS)} seeds (goal: within 1)"
    )


def our_training(seed: int) -> float:
    train, validation = loaders(seed=seed)
    set_deterministic(seed)
    return evaluate(train_model(SmallCNN(), train, WORK["epochs"], 1e-3), validation)


def usual_training(seed: int) -> float:
    train, validation = loaders(seed=seed)
    set_deterministic(seed)
    images = DataLoader(PilImages(train.dataset), batch_size=64, shuffle=True, num_workers=2)
    return evaluate(train_usual(SmallCNN(), images, epochs=WORK["epochs"]), validation)


TRAININGS = (our_training, usual_training)


def loaders(*, seed: int) -> tuple[DataLoader, DataLoader]:
    return build_loaders("fashion-mnist-20k", 64, 12_000, 3_000, seed, 0)
