"""Ratios between runtimes and precisions, timed in one run on one thread, batch 1."""

import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from torch import nn

from edgeopt.data import Split
from edgeopt.experiments import artifact_of
from edgeopt.metrics import latency_statistics, measure_latency
from edgeopt.model import build_model, set_deterministic
from edgeopt.runtimes import export_artifact, load_session
from edgeopt.schema import INT8_PRECISIONS
from edgeopt.study import open_run
from edgeopt.system.torchvision import models

BACKBONE_TARGETS = (
    ("onnxruntime", "fp32"),
    ("onnxruntime", "int8"),
    ("executorch", "int8"),
    ("openvino", "bf16"),
    ("openvino", "int8"),
)


class Eager:
    """The module itself, called as most people measure it."""

    def __init__(self, model: nn.Module) -> None:
        self.model = model.eval()

    @contextmanager
    def bound(self, batch: np.ndarray) -> Iterator[Callable[[], torch.Tensor]]:
        with torch.inference_mode():
            yield partial(self.model, torch.from_numpy(batch))


def medians(loaders: dict, batch: np.ndarray, *, rounds: int = 20, calls: int = 50) -> pd.Series:
    torch.set_num_threads(1)
    samples = measure_latency(loaders, batch, rounds=rounds, calls_per_round=calls).samples
    return latency_statistics(samples).set_index("candidate")["latency_p50_ms"]


def small_cnn() -> Iterator[str]:
    """The best accepted int8 artifact of the default run against torch eager and ONNX Runtime."""
    folder = open_run("default")
    sweep = folder.read_sweep()
    ok = sweep[sweep["status"] == "ok"]
    int8 = ok[ok["accepted"] & ok["precision"].isin(INT8_PRECISIONS)]
    best = int8.loc[int8["latency_p50_ms"].idxmin()]
    plain = (
        (ok["pruning_level"] == 0) & (ok["runtime"] == "onnxruntime") & (ok["precision"] == "fp32")
    )
    rows = {"best int8": best, "onnxruntime fp32": ok[plain].iloc[0]}
    store, shape = folder.path("artifacts/sweep"), (1, 1, 28, 28)
    artifacts = {name: artifact_of(row, store, input_shape=shape) for name, row in rows.items()}
    loaders = {name: partial(load_session, artifact) for name, artifact in artifacts.items()}
    weights = folder.path("weights/baseline-p0-seed0.pt")
    loaders["torch eager fp32"] = lambda: Eager(build_model("small_cnn", weights=weights).eval())
    p50 = medians(loaders, np.random.default_rng(0).random(shape, np.float32))
    yield f"best accepted int8 artifact: {best['candidate']}"
    yield f"torch eager fp32 / it: {p50['torch eager fp32'] / p50['best int8']:.2f} (goal: 5)"
    yield f"ONNX Runtime fp32 / it: {p50['onnxruntime fp32'] / p50['best int8']:.2f} (goal: 1.25)"


def backbone(name: str, *, goal: float) -> Iterator[str]:
    """The best int8 or bf16 artifact of a backbone at 224x224 against ONNX Runtime int8."""
    set_deterministic(0)
    model = models.get_model(name, num_classes=10).eval()
    rng = torch.Generator().manual_seed(0)
    images = torch.rand(64, 3, 224, 224, generator=rng)
    calibration = Split(images, torch.arange(64) % 10).loader(8)
    loaders = {}
    with tempfile.TemporaryDirectory() as scratch:
        for runtime, precision in BACKBONE_TARGETS:
            artifact = export_artifact(
                model,
                Path(scratch) / f"{name}-{runtime}-{precision}",
                runtime=runtime,
                precision=precision,
                input_shape=(1, 3, 224, 224),
                calibration=calibration,
            )
            loaders[f"{runtime} {precision}"] = partial(load_session, artifact)
        p50 = medians(loaders, images[:1].numpy(), rounds=10, calls=15)
    rivals = p50.drop(["onnxruntime int8", "onnxruntime fp32"])
    yield f"{name}: best is {rivals.idxmin()}; " + ", ".join(
        f"{k} {v:.2f} ms" for k, v in p50.items()
    )
    yield f"ONNX Runtime int8 / it: {p50['onnxruntime int8'] / rivals.min():.2f} (goal: {goal})"
