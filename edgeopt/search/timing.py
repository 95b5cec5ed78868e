"""Timing networks side by side whose answers do not matter, because nobody has trained them."""

import logging
import tempfile
from collections.abc import Iterable, Mapping
from concurrent.futures import Executor
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
from torch import nn

from edgeopt.agent.plan import Plan
from edgeopt.data import Split
from edgeopt.devices import Device, Task, measure_on, write_bundle
from edgeopt.experiments import Prepared
from edgeopt.metrics import UNDISTURBED, disturbance, resampled_quantiles
from edgeopt.runtimes import Artifact, Int8Options, export_artifact, labelled, runtime_named
from edgeopt.schema import STATIC_INT8
from edgeopt.system import ByValue, Int8Scheme, run_in_order

ENDS = (0.025, 0.975)
DIED = "WorkerDied"  # how the error of a network begins that may succeed another time
MEASURED = 3  # times at most, while the device is busy

logger = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class Bench:
    """A runtime and precision on a device, and how often networks are timed there.

    ``batch_size`` is the images of one call; ``scheme`` is the integer types of static int8, those
    that suit this machine's when omitted.
    """

    runtime: str
    precision: str
    device: Device
    scheme: Int8Scheme | None = None
    batch_size: int = 1
    threads: int = 1
    rounds: int = 10
    calls_per_round: int = 20

    @property
    def facts(self) -> tuple[object, ...]:
        """All that decides what is timed, for a digest."""
        how = (self.batch_size, self.threads, self.rounds, self.calls_per_round)
        what = (self.runtime, self.precision, self.scheme)
        return what + how + (self.device.name, sorted(self.device.facts().items()))


@dataclass(frozen=True, eq=False)
class Timed:
    """A network to time, the images that it is called with, and how it differs from the others.

    Attributes
    ----------
    calibration : iterable of (images, labels)
        Sets the ranges of int8.
    float_layers : tuple of str
        Modules that compute in float between integers; of ONNX files only.
    precision : str, optional
        Another than the bench's.
    """

    network: nn.Module
    images: Split
    calibration: Iterable = ()
    float_layers: tuple[str, ...] = ()
    precision: str | None = None


def time_networks(
    networks: Mapping[str, Timed], bench: Bench, *, to: str, executor: Executor | None = None
) -> pd.DataFrame:
    """Time networks in interleaved rounds: one row per network, in order.

    Columns: ``network, latency_p10_ms``; ``latency_ratio`` to the network called ``to``, with its
    bootstrap 95% interval ``latency_ratio_low, latency_ratio_high``; ``error``. The tenth
    percentile of the calls is what a network takes when nothing disturbs it (Chen and Revels, 2016,
    arXiv:1608.04295). While the device was busy, they are timed again, three times at most, and all
    rounds count. What failed has NaN.
    """
    with tempfile.TemporaryDirectory(prefix="edgeopt-") as scratch:
        jobs = [(f"{number}", ByValue(timed=own)) for number, own in enumerate(networks.values())]
        export = partial(_exported, bench=bench)
        exported = run_in_order(export, jobs, executor=executor, died=_died)
        artifacts = Path(scratch, "artifacts")
        done = [own if isinstance(own, str) else own.write(artifacts) for own in exported]
        samples, errors = _samples(networks, done, bench, Path(scratch, "bundle"))
    return _table(networks, samples, errors, to=to)


def _exported(job: tuple[str, ByValue], *, bench: Bench) -> Prepared | str:
    """Export one network; the text of the error where it cannot be."""
    own, precision = job[1]["timed"], job[1]["timed"].precision or bench.precision
    takes_scheme = precision in STATIC_INT8 and runtime_named(bench.runtime).takes_scheme
    with tempfile.TemporaryDirectory(prefix="edgeopt-") as scratch:
        try:
            artifact = export_artifact(
                own.network,
                Path(scratch, job[0]),
                runtime=bench.runtime,
                precision=precision,
                input_shape=(bench.batch_size, *own.images.shape),
                calibration=own.calibration,
                options=Int8Options(
                    scheme=bench.scheme if takes_scheme else None,
                    float_alone=frozenset(own.float_layers),
                ),
            )
            return Prepared.of(labelled(artifact))
        except Exception as error:  # exporters raise whatever they like
            return f"{type(error).__name__}: {error}"


def _died(_: object) -> str:
    return f"{DIED}: its exporter ended the process"


def _samples(
    networks: Mapping[str, Timed], done: list[Artifact | str], bench: Bench, folder: Path
) -> tuple[pd.DataFrame, dict[str, str]]:
    """Measure what could be exported on the device; samples and errors by network."""
    errors = {n: own for n, own in zip(networks, done, strict=True) if isinstance(own, str)}
    shapes = {own.images.shape: own.images.first(bench.batch_size) for own in networks.values()}
    images = {"x".join(map(str, shape)): one for shape, one in shapes.items()}
    tasks = [
        Task(name, artifact, "x".join(map(str, own.images.shape)), bench.threads)
        for (name, own), artifact in zip(networks.items(), done, strict=True)
        if name not in errors
    ]
    if not tasks:
        raise ValueError(f"no network could be exported: {next(iter(errors.values()))}")
    counts = {"rounds": bench.rounds, "calls_per_round": bench.calls_per_round, "memory": False}
    plan = write_bundle(folder, tasks, images=images, **counts)
    samples, failed = _until_quiet(bench.device, plan)
    return samples, errors | failed


def _until_quiet(device: Device, plan: Plan) -> tuple[pd.DataFrame, dict[str, str]]:
    """Measure on a device, and again while it was busy; all rounds count."""
    samples, errors, rounds = [], {}, 0
    for _ in range(MEASURED):
        results = measure_on(device, plan)
        measured = results.measured
        samples.append(measured.samples.assign(round=rounds + measured.samples["round"]))
        rounds += len(measured.conditions)
        errors |= results.errors
        if not (busy := disturbance(measured.conditions)):
            break
        logger.info("%s", busy)
    return pd.concat(samples, ignore_index=True), errors


def _table(
    networks: Mapping[str, Timed],
    samples: pd.DataFrame,
    errors: Mapping[str, str],
    *,
    to: str,
) -> pd.DataFrame:
    own = {
        name: rows for name, rows in samples.groupby("candidate", sort=False) if name not in errors
    }
    if to not in own:
        raise ValueError(f"{to} could not be timed: {errors.get(to, 'there is no sample of it')}")
    base = own[to]["latency_ms"].quantile(UNDISTURBED)
    drawn_base = resampled_quantiles(own[to], quantile=UNDISTURBED)
    rows = [_row(name, own.get(name), base, drawn_base, errors.get(name, "")) for name in networks]
    return pd.DataFrame(rows)


def _row(
    name: str, samples: pd.DataFrame | None, base: float, drawn_base: np.ndarray, error: str
) -> dict[str, object]:
    if samples is None:
        empty = ("latency_p10_ms", "latency_ratio", "latency_ratio_low", "latency_ratio_high")
        return {"network": name, **dict.fromkeys(empty, np.nan), "error": error}
    fast = samples["latency_ms"].quantile(UNDISTURBED)
    low, high = np.quantile(resampled_quantiles(samples, quantile=UNDISTURBED) / drawn_base, ENDS)
    return {
        "network": name,
        "latency_p10_ms": fast,
        "latency_ratio": fast / base,
        "latency_ratio_low": low,
        "latency_ratio_high": high,
        "error": error,
    }
