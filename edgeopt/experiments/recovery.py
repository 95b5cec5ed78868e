"""Recovery of int8 accuracy on any runtime: remedies until the accuracy is back."""

import itertools
import logging
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn

from edgeopt.data import Split
from edgeopt.experiments.candidates import (
    split_logits,
)
from edgeopt.experiments.diagnosis import diagnose
from edgeopt.experiments.remedies import (
    Calibration,
    Plan,
    Remedy,
    Rewrites,
    first_remedies,
    later_remedies,
)
from edgeopt.metrics import latency_statistics, measure_latency
from edgeopt.model import predict_logits
from edgeopt.quantization import QuantizationError, calibration_images
from edgeopt.runtimes import (
    Artifact,
    ArtifactError,
    ExportError,
    Int8Options,
    Runtime,
    export_artifact,
    labelled,
    load_session,
    runtime_named,
    verify_label,
)
from edgeopt.system import U8S8, Int8Scheme, RuntimeUnavailable

logger = logging.getLogger(__name__)

PARENT = "none (fp32)"
DIAGNOSIS_IMAGES = 128
SCREENING_IMAGES = 256
SCREENING_MARGIN = 0.03  # what so many images may say wrongly of an accuracy
ROUNDING = 1e-9  # of the subtraction; far below one image's worth of accuracy
FAILURES = (ExportError, ArtifactError, QuantizationError, RuntimeUnavailable, ValueError)


@dataclass(frozen=True, eq=False)
class Attempt:
    """A remedy tried; where it failed, ``error`` says why and the rest is empty.

    ``accuracy`` is of ``images`` images: all of validation or, where these calibration images
    already said that it falls short, ``SCREENING_IMAGES`` of calibration; then ``logits`` is None.
    """

    remedy: Remedy
    plan: Plan | None = None
    artifact: Artifact | None = None
    logits: np.ndarray | None = None
    accuracy: float = math.nan
    images: int = 0
    int8_mac_share: float = math.nan
    error: str = ""


@dataclass(frozen=True, eq=False)
class Recovery:
    """What :func:`recover_int8` found.

    ``selected`` is the first remedy inside the budget, or the most accurate one when ``reached``
    is false; ``attempts`` has one row per remedy.
    """

    selected: Attempt
    reached: bool
    attempts: pd.DataFrame


@dataclass(frozen=True, eq=False)
class _Judge:
    """Makes, writes, loads and scores plans of one network for one runtime."""

    runtime: Runtime
    validation: Split
    screening: Split
    calibration: Calibration
    scheme: Int8Scheme
    threads: int
    files: Iterator[Path]
    made: dict[tuple, Artifact]
    screening_goal: float

    def attempt(self, remedy: Remedy) -> Attempt:
        """Try a remedy: how it went."""
        try:
            plan = remedy.make()
            artifact = labelled(self._artifact(plan))
            share = verify_label(artifact)
            session = load_session(artifact, threads=self.threads)
            quick = _accuracy(split_logits(session, self.screening), self.screening)
            if quick < self.screening_goal:
                return Attempt(remedy, plan, artifact, None, quick, len(self.screening), share)
            logits = split_logits(session, self.validation)
        except FAILURES as error:
            return Attempt(remedy, error=str(error))
        accuracy = _accuracy(logits, self.validation)
        return Attempt(remedy, plan, artifact, logits, accuracy, len(self.validation), share)

    def _artifact(self, plan: Plan) -> Artifact:
        # Runtimes that share a writer read the same file.
        writer = type(self.runtime).write
        key = (writer, plan.model, plan.calibration, plan.float_layers, plan.precision)
        if key not in self.made:
            self.made[key] = self._export(plan)
        return replace(self.made[key], runtime=self.runtime.name)

    def _export(self, plan: Plan) -> Artifact:
        path = next(self.files)
        scheme = self.scheme if self.runtime.takes_int8_options else U8S8
        options = Int8Options(plan.calibration, scheme, plan.float_layers)
        return export_artifact(
            plan.model,
            path.with_name(f"{path.name}-{plan.precision}"),
            runtime=self.runtime.name,
            precision=plan.precision,
            input_shape=(1, *self.validation.shape),
            calibration=self.calibration,
            options=options if plan.precision == "int8" else Int8Options(),
        )


def recover_int8(
    model: nn.Module,
    *,
    calibration: Iterable[tuple[Tensor, Tensor]],
    validation: Split,
    max_accuracy_drop: float,
    folder: str | Path,
    runtime: str,
    float_layers: Sequence[int] = (1, 2, 4, 8),
    train_quantized: Callable[[nn.Module], nn.Module] | None = None,
    rewrites: Rewrites | None = None,
    scheme: Int8Scheme = U8S8,
    exhaustive: bool = False,
    threads: int = 1,
    rounds: int = 10,
    calls_per_round: int = 20,
) -> Recovery:
    """Try remedies in order of cost until int8 is at most ``max_accuracy_drop`` below fp32.

    The order: int8 as it is; other calibration methods, and channel groups rescaled, that one of
    the two first to which the diagnosis points; bias correction, the noisiest layers left in float,
    dynamic quantization, quantization-aware training. From bias correction on, each starts from
    the most accurate plan found before it. Artifacts take one image; a remedy that falls far short
    on a few hundred calibration images is not scored on validation. Those tried are timed together
    at the end, in interleaved rounds.

    Parameters
    ----------
    calibration : iterable of (images, labels)
        Batches that set the ranges of int8.
    validation : Split
        On which accuracy is measured.
    folder : Path
        Where the artifacts are written.
    runtime : str
        Whose int8 is recovered.
    float_layers : sequence of int
        How many layers to leave in float, in the order tried.
    train_quantized : callable, optional
        fp32 model -> fp32 model that went through quantization-aware training; the last remedy.
    rewrites : Rewrites, optional
        What the remedies already made of the model for another runtime.
    scheme : Int8Scheme
        Integer types of static int8 in ONNX files, those that suit the CPU that will run it.
    exhaustive : bool
        Try every remedy, also after the budget is met.

    Returns
    -------
    Recovery
        The columns of its ``attempts``, whose first row is the fp32 parent: remedy, based_on (the
        earlier remedy that is kept under it, if any), accuracy, images (on how many it is),
        accuracy_drop, latency_ms (mean), artifact_bytes, int8_mac_share, reached, error.

    Raises
    ------
    ValueError
        For a bad budget or calibration set.
    ExportError
        When not one remedy could be applied.
    """
    if isinstance(max_accuracy_drop, bool) or not 0 <= max_accuracy_drop < 1:
        raise ValueError(f"max_accuracy_drop is {max_accuracy_drop!r}; allowed: [0, 1)")
    batches = tuple(calibration)
    calibration_images(batches)
    rewrites = rewrites or Rewrites(model, calibration=batches, train_quantized=train_quantized)
    screening = _screening(batches)
    quick = _accuracy(predict_logits(model, screening).numpy(), screening)
    judge = _Judge(
        runtime=runtime_named(runtime),
        validation=validation,
        screening=screening,
        screening_goal=quick - max_accuracy_drop - SCREENING_MARGIN,
        calibration=batches,
        scheme=scheme,
        threads=threads,
        files=(Path(folder) / f"{number:02d}" for number in itertools.count()),
        made=rewrites.artifacts,
    )
    parent = judge.attempt(Remedy(PARENT, lambda: Plan(model, precision="fp32")))
    if parent.error:
        raise ExportError(f"the fp32 model cannot be served: {parent.error}")
    goal = parent.accuracy - max_accuracy_drop - ROUNDING
    tried: list[Attempt] = []
    for remedy in _remedies(rewrites, judge, tried, float_layers):
        tried.append(judge.attempt(remedy))
        logger.info("%s: accuracy %.4f %s", remedy.name, tried[-1].accuracy, tried[-1].error)
        if _reached(tried[-1], goal) and not exhaustive:
            break
    latency = _latencies([parent, *tried], validation, threads, rounds, calls_per_round)
    selected = next((a for a in tried if _reached(a, goal)), None) or _most_accurate(tried)
    table = _attempts_table([parent, *tried], latency=latency, goal=goal)
    return Recovery(selected, _reached(selected, goal), table)


def _remedies(
    rewrites: Rewrites, judge: _Judge, tried: Sequence[Attempt], float_layers: Sequence[int]
) -> Iterator[Remedy]:
    """Yield remedies in order of cost; ``tried`` fills up meanwhile, and later ones start there."""
    images = judge.screening.first(DIAGNOSIS_IMAGES)

    def best() -> tuple[str, Plan]:
        attempt = _most_accurate(tried)
        return attempt.remedy.name, attempt.plan

    diagnosis = diagnose(rewrites.model, images)
    yield from first_remedies(rewrites, runtime=judge.runtime, diagnosis=diagnosis)
    diagnosis = diagnose(best()[1].model, images)
    yield from later_remedies(
        rewrites, best, runtime=judge.runtime, diagnosis=diagnosis, counts=float_layers
    )


def _screening(batches: Calibration) -> Split:
    images, labels = (torch.cat(parts) for parts in zip(*batches, strict=True))
    return Split(images[:SCREENING_IMAGES], labels[:SCREENING_IMAGES])


def _accuracy(logits: np.ndarray, split: Split) -> float:
    return float((logits.argmax(axis=1) == split.labels.numpy()).mean())


def _reached(attempt: Attempt, goal: float) -> bool:
    return attempt.logits is not None and attempt.accuracy >= goal


def _most_accurate(tried: Sequence[Attempt]) -> Attempt:
    """Find the best attempt; one that was scored on validation is better than one that was not."""
    made = [attempt for attempt in tried if not attempt.error]
    if not made:
        errors = "; ".join(f"{attempt.remedy.name}: {attempt.error}" for attempt in tried)
        raise ExportError(f"no remedy could be applied: {errors}")
    return max(made, key=lambda attempt: (attempt.logits is not None, attempt.accuracy))


def _latencies(
    attempts: Sequence[Attempt], validation: Split, threads: int, rounds: int, calls_per_round: int
) -> dict[str, float]:
    made = {a.remedy.name: a.artifact for a in attempts if a.artifact}
    loaders = {name: partial(load_session, file, threads=threads) for name, file in made.items()}
    counts = {"rounds": rounds, "calls_per_round": calls_per_round}
    samples = measure_latency(loaders, validation.take(1).numpy(), **counts).samples
    return latency_statistics(samples).set_index("candidate")["latency_ms"].to_dict()


def _attempts_table(
    attempts: Sequence[Attempt], *, latency: Mapping[str, float], goal: float
) -> pd.DataFrame:
    parent = attempts[0]
    return pd.DataFrame(
        {
            "remedy": a.remedy.name,
            "based_on": a.remedy.based_on,
            "accuracy": a.accuracy,
            "images": a.images,
            "accuracy_drop": parent.accuracy - a.accuracy,
            "latency_ms": latency.get(a.remedy.name, math.nan),
            "artifact_bytes": a.artifact.size_bytes if a.artifact else math.nan,
            "int8_mac_share": a.int8_mac_share,
            "reached": a is not parent and _reached(a, goal),
            "error": a.error,
        }
        for a in attempts
    )
