"""How a candidate's latency depends on threads and batch, how it starts, and its slowest calls."""

import math
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path

import pandas as pd

from edgeopt.data import Split
from edgeopt.devices import Device, Task, measure_on, write_bundle
from edgeopt.experiments.candidates.candidate import artifact_of
from edgeopt.metrics import latency_statistics
from edgeopt.runtimes import Artifact, runtime_named
from edgeopt.schema import MIN_SAMPLES_P99
from edgeopt.system import RuntimeUnavailable

BATCHES = (1, 4, 16)
CALLS = 30


def measure_scaling(
    sweep: pd.DataFrame,
    device: Device,
    *,
    images: Mapping[str, Split],
    store: Path,
    cores: int,
    batches: tuple[int, ...] = BATCHES,
) -> pd.DataFrame:
    """Time candidates on a device with 1 to ``cores`` threads, and in ``batches``, interleaved.

    ``sweep`` holds rows of the sweep's table, ``store`` their artifacts, ``images`` by model what
    they are called with. One row per candidate, threads and batch: ``candidate, threads,
    batch_size, latency_p50_ms`` with its interval, ``latency_p99_ms, ms_per_image, load_ms,
    first_call_ms, error``. Files of one batch size are not called with others.
    """
    tasks = {
        task.name: task
        for row in sweep.itertuples()
        for task in _tasks(row, images, store, cores, batches)
    }
    first = {model: split.first(max(batches)) for model, split in images.items()}
    rounds = math.ceil(MIN_SAMPLES_P99 / CALLS)
    counts = {"rounds": rounds, "calls_per_round": CALLS, "memory": False}
    counts["keep_compiled"] = False  # every loading is to take its full time
    with tempfile.TemporaryDirectory(prefix="edgeopt-") as scratch:
        plan = write_bundle(Path(scratch), [*tasks.values()], images=first, **counts)
        results = measure_on(device, plan)
    table = latency_statistics(results.measured.samples).set_index("candidate")
    table = table.join(results.starts.groupby("candidate")[["load_ms", "first_call_ms"]].median())
    rows = [
        {
            "candidate": name.partition("@")[0],
            "threads": task.threads,
            "batch_size": task.artifact.input_shape[0],
            **table.loc[name].to_dict(),
        }
        for name, task in tasks.items()
    ]
    found = pd.DataFrame(rows)
    found["ms_per_image"] = found["latency_p50_ms"] / found["batch_size"]
    shown = ["latency_p50_ms", "latency_p50_low_ms", "latency_p50_high_ms", "latency_p99_ms"]
    keys = ["candidate", "threads", "batch_size"]
    return found[[*keys, *shown, "ms_per_image", "load_ms", "first_call_ms", "error"]]


def _tasks(
    row: object, images: Mapping[str, Split], store: Path, cores: int, batches: tuple[int, ...]
) -> Iterator[Task]:
    shape = images[row.model].shape
    artifact = artifact_of(row, store, input_shape=(1, *shape))
    for threads in range(1, cores + 1):
        yield Task(f"{row.candidate}@threads{threads}", artifact, row.model, threads)
    if runtime_named(row.runtime).any_batch:
        for size in batches[1:]:
            larger = replace(artifact, input_shape=(size, *shape))
            yield Task(f"{row.candidate}@batch{size}", larger, row.model)


def runtime_ms(artifact: Artifact, *, threads: int) -> float:
    """Time of one call by the runtime's own profiler, on this machine; NaN where it has none."""
    try:
        times = runtime_named(artifact.runtime).layer_times(artifact, threads=threads)
    except RuntimeUnavailable:
        return math.nan
    return float(times["measured_ms"].sum())
