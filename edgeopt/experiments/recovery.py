"""Recovery of int8 accuracy: remedies in order of cost, until the accuracy is back."""

import itertools
import logging
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from torch import Tensor, nn

from edgeopt.data import Split
from edgeopt.experiments.candidates import (
    Candidate,
    CandidateSpec,
    NetworkKey,
    artifact_facts,
    split_logits,
    with_agreement,
)
from edgeopt.experiments.diagnosis import diagnose
from edgeopt.experiments.remedies import (
    RUNTIME,
    Plan,
    Remedy,
    bias_remedy,
    dynamic_remedy,
    export_plan,
    float_layer_remedies,
    rescaling_remedies,
    training_remedy,
)
from edgeopt.metrics import latency_statistics, measure_latency
from edgeopt.model import predict_logits
from edgeopt.quantization import QuantizationError, calibration_images
from edgeopt.runtimes import (
    Artifact,
    ArtifactError,
    ExportError,
    load_session,
    verify_label,
)
from edgeopt.system import U8S8, Int8Scheme, RuntimeUnavailable

logger = logging.getLogger(__name__)

PARENT = "none (fp32)"
DIAGNOSIS_IMAGES = 128
_ROUNDING = 1e-9  # of the subtraction; far below one image's worth of accuracy
_FAILURES = (
    ExportError,
    ArtifactError,
    QuantizationError,
    RuntimeUnavailable,
    ValueError,
)


@dataclass(frozen=True, eq=False)
class Attempt:
    """A remedy tried; where it failed, ``error`` says why and the rest is empty."""

    remedy: Remedy
    plan: Plan | None = None
    artifact: Artifact | None = None
    logits: np.ndarray | None = None
    accuracy: float = math.nan
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


def recover_int8(
    model: nn.Module,
    *,
    calibration: Iterable[tuple[Tensor, Tensor]],
    validation: Split,
    max_accuracy_drop: float,
    folder: str | Path,
    float_layers: Sequence[int] = (1, 2, 4, 8),
    train_quantized: Callable[[nn.Module], nn.Module] | None = None,
    scheme: Int8Scheme = U8S8,
    exhaustive: bool = False,
    threads: int = 1,
    rounds: int = 10,
    calls_per_round: int = 20,
) -> Recovery:
    """Try remedies in order of cost until int8 is at most ``max_accuracy_drop`` below fp32.

    The order: calibration methods, equalization, bias correction, the most sensitive layers left
    in float, dynamic quantization, quantization-aware training. From bias correction on, each
    starts from the most accurate plan found before it. All artifacts are ONNX Runtime's, at batch
    1; those tried are timed together at the end, in interleaved rounds.

    Parameters
    ----------
    calibration : iterable of (images, labels)
        Batches that set the ranges of int8.
    validation : Split
        On which accuracy is measured.
    folder : Path
        Where the artifacts are written.
    float_layers : sequence of int
        How many layers to leave in float, in the order tried.
    train_quantized : callable, optional
        fp32 model -> fp32 model that went through quantization-aware training; the last remedy.
    scheme : Int8Scheme
        Integer types of static int8, those that suit the CPU that will run it.
    exhaustive : bool
        Try every remedy, also after the budget is met.

    Returns
    -------
    Recovery
        The columns of its ``attempts``, whose first row is the fp32 parent: remedy, based_on (the
        earlier remedy that is kept under it, if any), accuracy, accuracy_drop, latency_ms (mean),
        artifact_bytes, int8_mac_share, reached, error.

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
    export = partial(
        export_plan, input_shape=(1, *validation.shape), calibration=batches, scheme=scheme
    )
    attempt = partial(_attempt, export=export, validation=validation, threads=threads)
    files = (Path(folder) / f"{number:02d}" for number in itertools.count())
    parent = attempt(Remedy(PARENT, lambda: Plan(model, precision="fp32")), path=next(files))
    if parent.error:
        raise ExportError(f"the fp32 model cannot be served: {parent.error}")
    goal = parent.accuracy - max_accuracy_drop - _ROUNDING
    tried: list[Attempt] = []
    remedies = _remedies(model, tried, batches, validation, float_layers, train_quantized)
    for remedy in remedies:
        tried.append(attempt(remedy, path=next(files)))
        logger.info("%s: accuracy %.4f %s", remedy.name, tried[-1].accuracy, tried[-1].error)
        if tried[-1].accuracy >= goal and not exhaustive:
            break
    latency = _latencies([parent, *tried], validation, threads, rounds, calls_per_round)
    selected = next((a for a in tried if a.accuracy >= goal), None) or _most_accurate(tried)
    table = _attempts_table([parent, *tried], latency=latency, goal=goal)
    return Recovery(selected, selected.accuracy >= goal, table)


def _remedies(
    model: nn.Module,
    tried: Sequence[Attempt],
    calibration: tuple[tuple[Tensor, Tensor], ...],
    validation: Split,
    float_layers: Sequence[int],
    train_quantized: Callable[[nn.Module], nn.Module] | None,
) -> Iterator[Remedy]:
    """Yield remedies in order of cost; ``tried`` fills up meanwhile, and later ones start there."""
    yield from rescaling_remedies(model, images=calibration[0][0])
    best = _most_accurate(tried)
    yield replace(bias_remedy(best.plan, calibration=calibration), based_on=best.remedy.name)
    best = _most_accurate(tried)
    images = validation.first(DIAGNOSIS_IMAGES)
    diagnosis = diagnose(best.plan.model, best.artifact, images)
    shape = best.artifact.input_shape
    for remedy in float_layer_remedies(
        best.plan, diagnosis, counts=float_layers, input_shape=shape
    ):
        yield replace(remedy, based_on=best.remedy.name)
    best = _most_accurate(tried)
    yield replace(dynamic_remedy(best.plan), based_on=best.remedy.name)
    if train_quantized is not None:
        yield replace(training_remedy(best.plan, train_quantized), based_on=best.remedy.name)


def _most_accurate(tried: Sequence[Attempt]) -> Attempt:
    made = [attempt for attempt in tried if not attempt.error]
    if not made:
        errors = "; ".join(f"{attempt.remedy.name}: {attempt.error}" for attempt in tried)
        raise ExportError(f"no remedy could be applied: {errors}")
    return max(made, key=lambda attempt: attempt.accuracy)


def _attempt(
    remedy: Remedy,
    *,
    path: Path,
    export: Callable[[Plan, Path], Artifact],
    validation: Split,
    threads: int,
) -> Attempt:
    """Make, write, load and score one plan; how it went."""
    try:
        plan = remedy.make()
        artifact = export(plan, path.with_name(f"{path.name}-{plan.precision}"))
        share = verify_label(artifact)
        logits = split_logits(load_session(artifact, threads=threads), validation)
    except _FAILURES as error:
        return Attempt(remedy, error=str(error))
    accuracy = float((logits.argmax(axis=1) == validation.labels.numpy()).mean())
    return Attempt(remedy, plan, artifact, logits, accuracy, share)


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
            "accuracy_drop": parent.accuracy - a.accuracy,
            "latency_ms": latency.get(a.remedy.name, math.nan),
            "artifact_bytes": a.artifact.size_bytes if a.artifact else math.nan,
            "int8_mac_share": a.int8_mac_share,
            "reached": a is not parent and a.accuracy >= goal,
            "error": a.error,
        }
        for a in attempts
    )


def collapsed(candidates: Iterable[Candidate], *, max_accuracy_drop: float) -> list[Candidate]:
    """ONNX Runtime's static int8 candidates further below their own fp32 than allowed."""
    ran = [c for c in candidates if c.spec.runtime == RUNTIME and not c.error]
    fp32 = {c.spec.network: c.facts["accuracy"] for c in ran if c.spec.precision == "fp32"}
    int8 = [c for c in ran if c.spec.precision == "int8" and c.spec.network in fp32]
    least = {key: accuracy - max_accuracy_drop - _ROUNDING for key, accuracy in fp32.items()}
    return [c for c in int8 if c.facts["accuracy"] < least[c.spec.network]]


@dataclass(frozen=True, eq=False)
class Recovered:
    """A repaired int8 candidate, and the remedies tried on the way to it."""

    candidate: Candidate
    attempts: pd.DataFrame

    @property
    def file_stem(self) -> str:
        """Name for the files of this recovery."""
        return f"{self.candidate.name}-seed{self.candidate.spec.seed}"


def recover_collapsed(
    candidates: Sequence[Candidate],
    models: Mapping[NetworkKey, nn.Module],
    *,
    validation: Mapping[str, Split],
    calibration: Mapping[str, Iterable],
    max_accuracy_drop: float,
    directory: Path,
    scheme: Int8Scheme = U8S8,
    batch_size: int = 1,
) -> list[Recovered]:
    """Repair ONNX Runtime's static int8 of every network of which one seed's collapsed.

    When one seed's int8 falls further than ``max_accuracy_drop`` below its fp32, that of all seeds
    is repaired, so that the repaired candidate has every seed. The arguments are those of
    :func:`edgeopt.experiments.prepare_candidates`. A recovery that fails is logged and left out;
    so are all at a ``batch_size`` other than 1, at which the remedies are not tried.
    """
    broken = collapsed(candidates, max_accuracy_drop=max_accuracy_drop)
    networks = {(c.spec.model, c.spec.pruning_level) for c in broken}
    if networks and batch_size != 1:
        logger.warning("int8 is not repaired at batch size %d: %s", batch_size, networks)
        return []
    recovered = []
    for spec in (c.spec for c in candidates):
        static = (spec.runtime, spec.precision) == (RUNTIME, "int8")
        if not static or (spec.model, spec.pruning_level) not in networks:
            continue
        try:
            found = recover_candidate(
                spec,
                models[spec.network],
                validation[spec.model],
                directory=directory,
                calibration=calibration[spec.model],
                max_accuracy_drop=max_accuracy_drop,
                scheme=scheme,
            )
        except _FAILURES as error:
            logger.warning("%s, seed %d, could not be repaired: %s", spec.name, spec.seed, error)
            continue
        recovered.append(found)
    return recovered


def recover_candidate(
    spec: CandidateSpec, model: nn.Module, validation: Split, *, directory: Path, **options: Any
) -> Recovered:
    """Repair the int8 of a candidate's network; what is made is a candidate named *repaired*.

    ``options`` are those of :func:`recover_int8`, which writes below ``directory``.
    """
    folder = directory / f"repaired-{spec.name}-seed{spec.seed}"
    found = recover_int8(model, validation=validation, folder=folder, **options)
    selected = found.selected
    made = replace(spec, precision=selected.plan.precision, remedy=selected.remedy.name)
    labels = validation.labels.numpy()
    facts = artifact_facts(
        selected.artifact, model=selected.plan.model, logits=selected.logits, labels=labels
    )
    parent = predict_logits(model, validation).argmax(1).numpy()
    repaired = Candidate(made, selected.artifact, facts, selected.logits)
    return Recovered(with_agreement(repaired, parent), found.attempts)
