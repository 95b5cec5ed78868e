"""A ladder of remedies for an int8 model that lost accuracy, climbed until it is back."""

import logging
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

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
    Calibration,
    Plan,
    Remedy,
    bias_remedy,
    export_plan,
    float_layer_remedies,
    rescaling_remedies,
)
from edgeopt.metrics import latency_statistics, measure_latency
from edgeopt.model import predict_logits
from edgeopt.quantization import QuantizationError, collect_calibration
from edgeopt.runtimes import (
    Artifact,
    ArtifactError,
    ExportError,
    LabelError,
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
    LabelError,
    QuantizationError,
    RuntimeUnavailable,
    ValueError,
)


@dataclass(frozen=True, eq=False)
class Mended:
    """What :func:`mend` found.

    ``artifact`` and ``model`` (the fp32 weights that it was made from, for other runtimes) are
    those of the first remedy inside the budget, or of the most accurate one when ``reached`` is
    false. ``diagnosis`` is None where no remedy needed one.
    """

    artifact: Artifact
    model: nn.Module
    reached: bool
    ladder: pd.DataFrame
    diagnosis: pd.DataFrame | None


@dataclass(frozen=True, eq=False)
class _Attempt:
    """A remedy tried; where it failed, ``error`` says why and the rest is empty."""

    remedy: str
    based_on: str = ""
    plan: Plan | None = None
    artifact: Artifact | None = None
    accuracy: float = math.nan
    int8_mac_share: float = math.nan
    error: str = ""


def mend(
    model: nn.Module,
    *,
    calibration_loader: Iterable[tuple[Tensor, Tensor]],
    validation: Split,
    max_accuracy_drop: float,
    folder: str | Path,
    calibration_batches: int = 10,
    float_layers: Sequence[int] = (1, 2, 4, 8),
    train_quantized: Callable[[nn.Module], nn.Module] | None = None,
    scheme: Int8Scheme = U8S8,
    exhaustive: bool = False,
    threads: int = 1,
    rounds: int = 10,
    calls_per_round: int = 20,
) -> Mended:
    """Try remedies in order of cost until int8 is at most ``max_accuracy_drop`` below fp32.

    The order: calibration methods, equalization, bias correction, the most sensitive layers left
    in float, dynamic quantization, quantization-aware training. From bias correction on, each
    stands on the most accurate plan found before it. All artifacts are ONNX Runtime's, at batch
    1; those tried are timed together at the end, in interleaved rounds.

    Parameters
    ----------
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
    Mended
        Its ``ladder`` has one row per remedy, the fp32 parent first: remedy, based_on (the
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
    calibration = tuple(islice(calibration_loader, calibration_batches))
    collect_calibration(calibration, calibration_batches)
    climb = _Climb(Path(folder), calibration, validation, threads, scheme)
    parent = climb.attempt(Remedy(PARENT, lambda: Plan(model, precision="fp32")))
    if parent.error:
        raise ExportError(f"the fp32 model cannot be served: {parent.error}")
    goal = parent.accuracy - max_accuracy_drop - _ROUNDING
    for remedy in climb.remedies(model, float_layers, train_quantized):
        tried = climb.attempt(remedy)
        logger.info("%s: accuracy %.4f %s", tried.remedy, tried.accuracy, tried.error)
        if tried.accuracy >= goal and not exhaustive:
            break
    chosen = next((a for a in climb.attempts[1:] if a.accuracy >= goal), climb.best)
    latency = _latencies(climb.attempts, validation.take(1), threads, rounds, calls_per_round)
    ladder = _ladder(climb.attempts, latency, goal)
    reached = chosen.accuracy >= goal
    return Mended(chosen.artifact, chosen.plan.model, reached, ladder, climb.diagnosis)


@dataclass(frozen=True)
class MendedSpec(CandidateSpec):
    """An int8 candidate after the remedy that it is named with."""

    remedy: str = ""

    @property
    def name(self) -> str:
        """Name in tables and of files."""
        return f"{super().name}-repaired"


def fallen(candidates: Iterable[Candidate], *, max_accuracy_drop: float) -> list[Candidate]:
    """ONNX Runtime's static int8 candidates that fell further below their own fp32 than allowed."""
    ran = [c for c in candidates if c.spec.runtime == "onnxruntime" and not c.error]
    fp32 = {c.spec.network: c.facts["accuracy"] for c in ran if c.spec.precision == "fp32"}
    int8 = [c for c in ran if c.spec.precision == "int8" and c.spec.network in fp32]
    least = {key: accuracy - max_accuracy_drop - _ROUNDING for key, accuracy in fp32.items()}
    return [c for c in int8 if c.facts["accuracy"] < least[c.spec.network]]


@dataclass(frozen=True, eq=False)
class Repair:
    """A repaired int8 candidate, its remedy, and the ladder that led to it."""

    candidate: Candidate
    remedy: str
    ladder: pd.DataFrame

    @property
    def file_stem(self) -> str:
        """Name for the files of this repair."""
        return f"{self.candidate.name}-seed{self.candidate.spec.seed}"


def repair_fallen(
    candidates: Sequence[Candidate],
    models: Mapping[NetworkKey, nn.Module],
    *,
    validation: Mapping[str, Split],
    calibration: Mapping[str, Iterable],
    max_accuracy_drop: float,
    directory: Path,
    calibration_batches: int = 10,
    scheme: Int8Scheme = U8S8,
    batch_size: int = 1,
) -> list[Repair]:
    """Repair ONNX Runtime's static int8 of every network of which one seed's fell.

    When one seed's int8 falls further than ``max_accuracy_drop`` below its fp32, that of all seeds
    is repaired, so that the repaired candidate has every seed. The arguments are those of
    :func:`edgeopt.experiments.prepare_candidates`. A repair that fails is logged and left out; so
    are all at a ``batch_size`` other than 1, which the ladder does not know.
    """
    fell = {
        (c.spec.model, c.spec.pruning_level)
        for c in fallen(candidates, max_accuracy_drop=max_accuracy_drop)
    }
    if fell and batch_size != 1:
        logger.warning("int8 fell but is not repaired at batch size %d: %s", batch_size, fell)
        return []
    repairs = []
    for candidate in candidates:
        spec = candidate.spec
        plain = (spec.runtime, spec.precision) == ("onnxruntime", "int8")
        if not plain or (spec.model, spec.pruning_level) not in fell:
            continue
        try:
            repaired, found = mend_candidate(
                candidate,
                models[spec.network],
                validation[spec.model],
                directory=directory,
                calibration_loader=calibration[spec.model],
                calibration_batches=calibration_batches,
                max_accuracy_drop=max_accuracy_drop,
                scheme=scheme,
            )
        except _FAILURES as error:
            logger.warning("%s, seed %d, could not be repaired: %s", spec.name, spec.seed, error)
            continue
        repairs.append(Repair(repaired, repaired.spec.remedy, found.ladder))
    return repairs


def mend_candidate(
    candidate: Candidate, model: nn.Module, validation: Split, *, directory: Path, **options: Any
) -> tuple[Candidate, Mended]:
    """Mend the int8 of a candidate's network; the candidate that it makes, and how it was found.

    ``options`` are those of :func:`mend`, which writes below ``directory``.
    """
    spec = candidate.spec
    folder = directory / f"repaired-{spec.name}-seed{spec.seed}"
    mended = mend(model, validation=validation, folder=folder, **options)
    artifact, rungs = mended.artifact, mended.ladder.iloc[1:]
    remedy = rungs.loc[rungs["reached" if mended.reached else "accuracy"].idxmax(), "remedy"]
    given = {field.name: getattr(spec, field.name) for field in fields(CandidateSpec)}
    made = {"precision": artifact.precision, "runtime": artifact.runtime, "remedy": remedy}
    logits, labels = split_logits(load_session(artifact), validation), validation.labels.numpy()
    facts = artifact_facts(artifact, model=mended.model, logits=logits, labels=labels)
    parent = predict_logits(model, validation).argmax(1).numpy()
    result = Candidate(MendedSpec(**{**given, **made}), artifact, facts, logits)
    return with_agreement(result, parent), mended


class _Climb:
    """The attempts so far, and the diagnosis once one was made."""

    def __init__(
        self,
        folder: Path,
        calibration: Calibration,
        validation: Split,
        threads: int,
        scheme: Int8Scheme,
    ) -> None:
        self.attempts: list[_Attempt] = []
        self.diagnosis: pd.DataFrame | None = None
        self._folder = folder
        self._calibration = calibration
        self._validation = validation
        self._threads = threads
        self._scheme = scheme
        self._input_shape = (1, *validation.shape)

    @property
    def best(self) -> _Attempt:
        """The most accurate int8 attempt."""
        made = [attempt for attempt in self.attempts[1:] if not attempt.error]
        if not made:
            errors = "; ".join(f"{a.remedy}: {a.error}" for a in self.attempts[1:])
            raise ExportError(f"no remedy could be applied: {errors}")
        return max(made, key=lambda attempt: attempt.accuracy)

    def remedies(
        self,
        model: nn.Module,
        float_layers: Sequence[int],
        train_quantized: Callable[[nn.Module], nn.Module] | None,
    ) -> Iterator[Remedy]:
        """Yield remedies in order of cost; later ones stand on how the earlier ones did."""
        yield from rescaling_remedies(model, images=self._calibration[0][0])
        base = self.best
        correction = bias_remedy(base.plan, calibration=self._calibration)
        yield replace(correction, based_on=base.remedy)
        yield from self._float_layers(float_layers)
        base, plan = self.best, self.best.plan
        yield Remedy("dynamic", lambda: Plan(plan.model, precision="int8-dynamic"), base.remedy)
        if train_quantized is not None:
            yield Remedy(
                "quantization-aware training",
                lambda: Plan(train_quantized(plan.model), plan.calibration),
                base.remedy,
            )

    def _float_layers(self, counts: Sequence[int]) -> Iterator[Remedy]:
        base = self.best
        some = self._validation.first(DIAGNOSIS_IMAGES)
        self.diagnosis = diagnose(base.plan.model, base.artifact, some)
        for remedy in float_layer_remedies(
            base.plan, self.diagnosis, counts=counts, input_shape=self._input_shape
        ):
            yield replace(remedy, based_on=base.remedy)

    def attempt(self, remedy: Remedy) -> _Attempt:
        """Make, write, load and score one plan, and remember how it went."""
        try:
            tried = self._scored(remedy, remedy.make())
        except _FAILURES as error:
            tried = _Attempt(remedy.name, remedy.based_on, error=str(error))
        self.attempts.append(tried)
        return tried

    def _scored(self, remedy: Remedy, plan: Plan) -> _Attempt:
        artifact = export_plan(
            plan,
            self._folder / f"{len(self.attempts):02d}-{plan.precision}.onnx",
            input_shape=self._input_shape,
            calibration=self._calibration,
            scheme=self._scheme,
        )
        share = verify_label(artifact)
        session = load_session(artifact, threads=self._threads)
        predictions = split_logits(session, self._validation).argmax(axis=1)
        accuracy = float((predictions == self._validation.labels.numpy()).mean())
        made = (plan, artifact, accuracy, share)
        return _Attempt(remedy.name, remedy.based_on, *made)


def _latencies(
    attempts: list[_Attempt], image: Tensor, threads: int, rounds: int, calls_per_round: int
) -> dict[str, float]:
    made = {a.remedy: a.artifact for a in attempts if a.artifact}
    loaders = {name: partial(load_session, file, threads=threads) for name, file in made.items()}
    counts = {"rounds": rounds, "calls_per_round": calls_per_round}
    samples = measure_latency(loaders, image.numpy(), **counts).samples
    return latency_statistics(samples).set_index("candidate")["latency_ms"].to_dict()


def _ladder(attempts: list[_Attempt], latency: dict[str, float], goal: float) -> pd.DataFrame:
    parent = attempts[0]
    return pd.DataFrame(
        {
            "remedy": a.remedy,
            "based_on": a.based_on,
            "accuracy": a.accuracy,
            "accuracy_drop": parent.accuracy - a.accuracy,
            "latency_ms": latency.get(a.remedy, math.nan),
            "artifact_bytes": a.artifact.size_bytes if a.artifact else math.nan,
            "int8_mac_share": a.int8_mac_share,
            "reached": a is not parent and a.accuracy >= goal,
            "error": a.error,
        }
        for a in attempts
    )
