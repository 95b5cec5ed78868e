"""edgeopt's sweep against the usual way, and against itself."""

import time
from collections.abc import Iterator

import numpy as np
import pandas as pd

from benchmarks.reference import usual_study
from edgeopt.benchmark import latency_statistics, measure_latency
from edgeopt.data import Split, build_loaders, load_splits
from edgeopt.experiments import run_sweep, train_model
from edgeopt.model import SmallCNN, set_deterministic

LEVELS = [0.0, 0.25, 0.5, 0.7]
PRECISIONS = ["fp32", "fp16", "int8"]
WORK = {"epochs": 2, "levels": LEVELS, "precisions": PRECISIONS, "repeats": 5}


def split_of(loader) -> Split:
    return Split(*loader.dataset.tensors)


def our_study() -> pd.DataFrame:
    """Do :func:`usual_study`'s work through the package, loading of the data included."""
    train, validation = build_loaders("fashion-mnist-20k", 64, 12_000, 3_000, 0, 0)
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
    """Wall time of the same work, and the accuracy of the unpruned fp32 model, side by side."""
    train, validation = build_loaders("fashion-mnist-20k", 64, 12_000, 3_000, 0, 0)
    start = time.perf_counter()
    ours = our_study()
    middle = time.perf_counter()
    usual = usual_study(split_of(train), split_of(validation), **WORK)
    seconds = middle - start, time.perf_counter() - middle
    keys = ["pruning_level", "precision"]
    both = ours.merge(usual, on=keys, suffixes=("_ours", "_usual"))
    fp32 = both[(both["pruning_level"] == 0) & (both["precision"] == "fp32")].iloc[0]
    yield f"usual way / edgeopt, wall time: {seconds[1] / seconds[0]:.1f} (goal: 5 or more)"
    yield f"edgeopt took {seconds[0]:.1f} s, the usual way {seconds[1]:.1f} s"
    difference = 100 * (fp32["accuracy_ours"] - fp32["accuracy_usual"])
    yield f"accuracy of unpruned fp32, edgeopt - usual: {difference:+.2f} points (goal: within 1)"


def repeatability() -> Iterator[str]:
    """Median relative change of each candidate's p50 between two sweeps, one after the other."""
    medians = [our_study().set_index("candidate")["latency_p50_ms"] for _ in range(2)]
    change = (medians[1] / medians[0] - 1).abs()
    yield f"median |change of p50| between two sweeps: {change.median():.1%} (goal: under 5 %)"
    yield f"largest: {change.max():.1%} ({change.idxmax()})"


def harness_overhead() -> Iterator[str]:
    """What the timed loop itself costs, seen through a session that does nothing."""
    samples = measure_latency(
        {"no-op": _nothing}, np.zeros(1, np.float32), rounds=20, calls_per_round=500
    )
    p50 = latency_statistics(samples)["latency_p50_ms"].iloc[0] * 1e3
    yield f"a no-op session is timed at {p50:.2f} microseconds a call (goal: under 1)"


def _nothing(batch: np.ndarray) -> None:
    return None
