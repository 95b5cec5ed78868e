"""Whether latencies can be trusted: what the harness adds, copies of one file, two measurements."""

import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from scipy.stats import kendalltau

from edgeopt.agent.session import INPUT, OUTPUT
from edgeopt.config import load_config
from edgeopt.data import Split
from edgeopt.decision import Gates, decide
from edgeopt.experiments import artifact_of
from edgeopt.metrics import (
    disturbance,
    latency_ratios,
    latency_statistics,
    measure_latency,
)
from edgeopt.model import SmallCNN, set_deterministic
from edgeopt.runtimes import (
    Artifact,
    export_artifact,
    load_session,
    session_options,
)
from edgeopt.study import open_run

SHAPE = (1, 1, 28, 28)
FILES = (
    ("torch", "int8"),
    ("onnxruntime", "fp32"),
    ("executorch", "int8"),
    ("openvino", "int8"),
)
COPIES = 11


def harness_overhead() -> Iterator[str]:
    """What the timed loop itself costs, seen through a call that does nothing."""
    samples = measure_latency(
        {"no-op": Nothing}, np.zeros(1, np.float32), rounds=20, calls_per_round=500
    ).samples
    p50 = latency_statistics(samples)["latency_p50_ms"].iloc[0] * 1e3
    yield f"a no-op call is timed at {p50:.2f} microseconds (goal: under 1)"


class Nothing:
    """A session that does nothing."""

    @contextmanager
    def bound(self, batch: np.ndarray) -> Iterator[Callable[[], Any]]:
        yield lambda: None


def repeated_measurement() -> Iterator[str]:
    """The default run's files measured twice: how far latencies, order and pick move."""
    folder, config = open_run("default"), load_config("params/default.yaml")
    sweep = folder.read_sweep()
    rows = sweep[sweep["status"] == "ok"]
    store = folder.path("artifacts/sweep")
    loaders = {
        row.candidate: partial(load_session, artifact_of(row, store, input_shape=SHAPE))
        for row in rows.itertuples()
    }
    counts = {"rounds": config.rounds, "calls_per_round": config.calls_per_round}
    twice = [measure_latency(loaders, _image(), seed=seed, **counts) for seed in (0, 1)]
    tables = [
        latency_statistics(m.samples, conditions=m.conditions).set_index("candidate") for m in twice
    ]
    order = tables[0].index  # that of the first round, which is random
    medians = [table["latency_p50_ms"].loc[order] for table in tables]
    relative = [table["latency_relative"].loc[order] for table in tables]
    for words, pair in (("ms", medians), ("relation to the reference kernel", relative)):
        change = (pair[1] / pair[0] - 1).abs()
        yield (
            f"median |change of p50| in {words}: {change.median():.2%} (goal: at most 2% "
            f"relative), largest {change.max():.1%} ({change.idxmax()})"
        )
    for words, pair in (("in ms", medians), ("relative", relative)):
        tau = kendalltau(*pair).statistic
        yield f"Kendall's tau of the two orders, {words}: {tau:.3f} (goal: 0.97)"
    picks = [
        decide(_with_latency(rows, table), gates=config.part(Gates), samples=measured.samples).pick
        for table, measured in zip(tables, twice, strict=True)
    ]
    yield f"picks: {', '.join(pick['candidate'] if pick else 'none' for pick in picks)}"
    yield f"quiet: {[disturbance(measured.conditions) or 'yes' for measured in twice]}"


def _with_latency(rows: pd.DataFrame, table: pd.DataFrame) -> pd.DataFrame:
    kept = rows.drop(columns=[name for name in table if name in rows and name != "error"])
    return kept.merge(table.drop(columns="error"), left_on="candidate", right_index=True)


def equal_files() -> Iterator[str]:
    """Eleven copies of one file a runtime, as candidates: how often their intervals disagree."""
    with tempfile.TemporaryDirectory() as scratch:
        copies = {
            f"{runtime} {precision} {copy}": _copy(artifact, copy)
            for runtime, precision in FILES
            for artifact in [_export(Path(scratch), runtime, precision)]
            for copy in range(COPIES)
        }
        loaders = {name: partial(load_session, artifact) for name, artifact in copies.items()}
        samples = measure_latency(loaders, _image(), rounds=20, calls_per_round=30).samples
    table = latency_statistics(samples).set_index("candidate")
    for runtime, precision in FILES:
        names = [f"{runtime} {precision} {copy}" for copy in range(COPIES)]
        yield f"{runtime} {precision}: {_disagreement(samples, table.loc[names])}"


def _disagreement(samples: pd.DataFrame, table: pd.DataFrame) -> str:
    ends = table[["latency_p50_low_ms", "latency_p50_high_ms"]].to_numpy()
    pairs = list(combinations(range(len(ends)), 2))
    apart = np.mean([ends[a][1] < ends[b][0] or ends[b][1] < ends[a][0] for a, b in pairs])
    own = samples[samples["candidate"].isin(table.index)]
    wrong = [
        (ratios["latency_ratio_low"].gt(1) | ratios["latency_ratio_high"].lt(1)).sum()
        for ratios in (latency_ratios(own, to=name) for name in table.index)
    ]
    width = ((ends[:, 1] - ends[:, 0]) / table["latency_p50_ms"]).median()
    return (
        f"{apart:.0%} of the pairs of copies have disjoint intervals (goal: at most 7%), "
        f"{sum(wrong) / 2 / len(pairs):.0%} have a ratio whose interval leaves out 1 (stated: "
        f"5%); width of an interval {width:.1%}, spread of the medians "
        f"{table['latency_p50_ms'].std() / table['latency_p50_ms'].mean():.1%}"
    )


def over_the_plain_api() -> Iterator[str]:
    """What a timed call takes more than the runtime's own API on the same file, interleaved."""
    with tempfile.TemporaryDirectory() as scratch:
        artifacts = [_export(Path(scratch), *target) for target in FILES]
        loaders: dict[str, Callable[[], Any]] = {}
        for artifact in artifacts:
            loaders[f"{artifact.runtime} timed"] = partial(load_session, artifact)
            loaders[f"{artifact.runtime} plain"] = partial(Plain, artifact)
        samples = measure_latency(loaders, _image(), rounds=200, calls_per_round=30).samples
    p50 = latency_statistics(samples).set_index("candidate")["latency_p50_ms"] * 1e3
    for artifact in artifacts:
        timed, plain = (f"{artifact.runtime} {way}" for way in ("timed", "plain"))
        both = samples[samples["candidate"].isin([timed, plain])]
        ratio = latency_ratios(both, to=plain).set_index("candidate").loc[timed]
        added, low, high = (ratio - 1) * p50[plain]
        yield (
            f"{artifact.title}: {p50[plain]:.2f} us by the plain API; a timed call in the same "
            f"round takes {added:+.2f} us more, {low:+.2f} to {high:+.2f} (goal: at most 1)"
        )


class Plain:
    """A file loaded and called as its runtime's own documentation does."""

    def __init__(self, artifact: Artifact) -> None:
        self._call = _PLAIN[artifact.runtime](artifact)

    @contextmanager
    def bound(self, batch: np.ndarray) -> Iterator[Callable[[], Any]]:
        with self._call(batch) as call:
            yield call


def _plain_torch(artifact: Artifact) -> Callable:
    module = torch.jit.load(artifact.path)

    @contextmanager
    def ready(batch: np.ndarray) -> Iterator[Callable[[], Any]]:
        tensor, before = torch.from_numpy(batch), torch.get_num_threads()
        torch.set_num_threads(1)
        with torch.inference_mode():
            yield lambda: module(tensor)
        torch.set_num_threads(before)

    return ready


def _plain_onnxruntime(artifact: Artifact) -> Callable:
    import onnxruntime

    options = session_options(threads=1)
    session = onnxruntime.InferenceSession(
        artifact.path, options, providers=["CPUExecutionProvider"]
    )

    @contextmanager
    def ready(batch: np.ndarray) -> Iterator[Callable[[], Any]]:
        yield lambda: session.run([OUTPUT], {INPUT: batch})

    return ready


def _plain_executorch(artifact: Artifact) -> Callable:
    from executorch.extension.pybindings import portable_lib

    portable_lib._unsafe_reset_threadpool(1)
    module = portable_lib._load_for_executorch(str(artifact.path))

    @contextmanager
    def ready(batch: np.ndarray) -> Iterator[Callable[[], Any]]:
        inputs = (torch.from_numpy(batch),)
        yield lambda: module.forward(inputs)

    return ready


def _plain_openvino(artifact: Artifact) -> Callable:
    import openvino

    core = openvino.Core()
    model = core.read_model(artifact.path)
    model.reshape(list(artifact.input_shape))
    settings = {
        "INFERENCE_NUM_THREADS": 1,
        "NUM_STREAMS": 1,
        "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_PRECISION_HINT": "f32",
    }
    request = core.compile_model(model, "CPU", settings).create_infer_request()

    @contextmanager
    def ready(batch: np.ndarray) -> Iterator[Callable[[], Any]]:
        request.set_input_tensor(openvino.Tensor(batch, shared_memory=True))
        yield lambda: request.infer()

    return ready


_PLAIN = {
    "torch": _plain_torch,
    "onnxruntime": _plain_onnxruntime,
    "executorch": _plain_executorch,
    "openvino": _plain_openvino,
}


def _export(folder: Path, runtime: str, precision: str) -> Artifact:
    set_deterministic(0)
    images = torch.rand(64, *SHAPE[1:], generator=torch.Generator().manual_seed(0))
    return export_artifact(
        SmallCNN(),
        folder / f"{runtime}-{precision}",
        runtime=runtime,
        precision=precision,
        input_shape=SHAPE,
        calibration=Split(images, torch.arange(64) % 10).loader(8),
    )


def _copy(artifact: Artifact, number: int) -> Artifact:
    path = artifact.path.with_stem(f"{artifact.path.stem}-{number}")
    shutil.copy(artifact.path, path)
    return Artifact(**{**artifact.__dict__, "path": path})


def _image() -> np.ndarray:
    return np.random.default_rng(0).random(SHAPE, np.float32)
