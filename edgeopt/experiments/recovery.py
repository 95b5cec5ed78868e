"""Recovery of int8 accuracy on any runtime: remedies until the accuracy is back."""

import itertools
import logging
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
from torch import Tensor, nn

from edgeopt.data import Split
from edgeopt.experiments.candidates import Candidate, split_logits
from edgeopt.experiments.quality_loss import QUALITIES, fell, quality_drop
from edgeopt.experiments.remedies import (
    Plan,
    Progress,
    Remedy,
    Rewrites,
    first_remedies,
    later_remedies,
)
from edgeopt.metrics import latency_statistics, measure_latency, quality_row
from edgeopt.quantization import QuantizationError
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
from edgeopt.schema import MIXED
from edgeopt.system import Int8Scheme, RuntimeUnavailable, int8_scheme

logger = logging.getLogger(__name__)

PARENT = "none (fp32)"
SCREENING_MARGIN = 0.03  # what so many images may say wrongly of an accuracy
FAILURES = (ExportError, ArtifactError, QuantizationError, RuntimeUnavailable, ValueError)


@dataclass(frozen=True, eq=False)
class Attempt:
    """A remedy tried; where it failed, ``error`` says why and the rest is empty.

    ``accuracy`` is of ``images`` images: all of validation or, where these calibration images
    already said that it falls short, ``SCREENING_IMAGES`` of calibration; then ``logits`` is None,
    and macro-F1 and the agreement with fp32 are unknown. ``drop`` is how far accuracy or, if that
    is more, macro-F1 is below fp32's of the same images.
    """

    remedy: Remedy
    plan: Plan | None = None
    artifact: Artifact | None = None
    logits: np.ndarray | None = None
    accuracy: float = math.nan
    macro_f1: float = math.nan
    agreement: float = math.nan
    drop: float = math.nan
    images: int = 0
    int8_mac_share: float = math.nan
    error: str = ""

    @property
    def mixed(self) -> bool:
        """Whether its plan left so much in float that it is not int8."""
        own = self.plan is not None and bool(self.plan.float_layers)
        return own and self.artifact.precision == MIXED


@dataclass(frozen=True, eq=False)
class Recovery:
    """What :func:`recover_int8` found.

    ``selected`` is the first remedy inside the budget, int8 before ``int8-mixed``, or the most
    accurate one when ``reached`` is false; ``attempts`` has one row per remedy.
    """

    selected: Attempt
    reached: bool
    attempts: pd.DataFrame


@dataclass(frozen=True, eq=False)
class _Judge:
    """Makes, writes, loads and scores plans of one network for one runtime."""

    runtime: Runtime
    validation: Split
    rewrites: Rewrites
    scheme: Int8Scheme
    threads: int
    files: Iterator[Path]
    max_drop: float
    known: Mapping[str, Candidate | None]  # by remedy
    fp32: Mapping[str, float] = field(default_factory=dict)  # its qualities on validation

    def attempt(self, remedy: Remedy) -> Attempt:
        """Try a remedy: how it went."""
        try:
            plan = remedy.make()
            if known := self.known.get(remedy.name):
                share = known.facts["int8_mac_share"]
                return self._scored(remedy, plan, known.artifact, known.logits, share)
            artifact = labelled(self._artifact(plan))
            share = verify_label(artifact)
            session = load_session(artifact, threads=self.threads)
            some = self.rewrites.screening
            quick = _accuracy(split_logits(session, some).argmax(1), some)
            drop = _accuracy(self.rewrites.answers(some), some) - quick
            if drop > self.max_drop + SCREENING_MARGIN:
                numbers = {"accuracy": quick, "drop": drop, "images": len(some)}
                return Attempt(remedy, plan, artifact, None, **numbers, int8_mac_share=share)
            logits = split_logits(session, self.validation)
        except FAILURES as error:
            return Attempt(remedy, error=str(error))
        return self._scored(remedy, plan, artifact, logits, share)

    def _scored(
        self, remedy: Remedy, plan: Plan, artifact: Artifact, logits: np.ndarray, share: float
    ) -> Attempt:
        labels, classes = self.validation.labels.numpy(), logits.shape[1]
        row = quality_row(labels, logits.argmax(1), num_classes=classes)
        numbers = {name: row[name] for name in QUALITIES}
        numbers["agreement"] = float(
            (logits.argmax(1) == self.rewrites.answers(self.validation)).mean()
        )
        drop = quality_drop(row, self.fp32) if self.fp32 else 0.0
        numbers |= {"drop": drop, "images": len(labels), "int8_mac_share": share}
        return Attempt(remedy, plan, artifact, logits, **numbers)

    def reached(self, attempt: Attempt) -> bool:
        """Whether an attempt is inside the budget, on validation."""
        images = len(self.validation)
        return attempt.logits is not None and not fell(
            vars(attempt), self.fp32, max_drop=self.max_drop, images=images
        )

    def suffices(self, attempt: Attempt) -> bool:
        """Whether nothing better is to be expected; training may, where layers are in float."""
        trainable = self.rewrites.train_quantized is not None
        return self.reached(attempt) and not (trainable and attempt.mixed)

    def select(self, tried: Sequence[Attempt]) -> Attempt:
        """Choose the first attempt inside the budget, whole int8 before mixed, or the best."""
        inside = sorted(filter(self.reached, tried), key=lambda attempt: attempt.mixed)
        return inside[0] if inside else _most_accurate(tried)

    def _artifact(self, plan: Plan) -> Artifact:
        # Runtimes that share a writer read the same file.
        writer = type(self.runtime).write
        key = (writer, *vars(plan).values())
        made = self.rewrites.artifacts
        if key not in made:
            made[key] = self._export(plan)
        return replace(made[key], runtime=self.runtime.name)

    def _export(self, plan: Plan) -> Artifact:
        path = next(self.files)
        scheme = self.scheme if self.runtime.takes_scheme else None
        options = Int8Options(plan.calibration, scheme, plan.float_layers)
        return export_artifact(
            plan.model,
            path.with_name(f"{path.name}-{plan.precision}"),
            runtime=self.runtime.name,
            precision=plan.precision,
            input_shape=(1, *self.validation.shape),
            calibration=self.rewrites.calibration,
            options=options if plan.precision == "int8" else Int8Options(),
        )


def recover_int8(
    model: nn.Module,
    *,
    calibration: Iterable[tuple[Tensor, Tensor]],
    validation: Split,
    max_drop: float,
    folder: str | Path,
    runtime: str,
    float_layers: Sequence[int] = (1, 2, 4, 8),
    train_quantized: Callable[[nn.Module], nn.Module] | None = None,
    rewrites: Rewrites | None = None,
    scheme: Int8Scheme | None = None,
    exhaustive: bool = False,
    prepared: Mapping[str, Candidate | None] | None = None,
    threads: int = 1,
    rounds: int = 10,
    calls_per_round: int = 20,
) -> Recovery:
    """Try remedies in order of cost until int8 is at most ``max_drop`` below fp32.

    Both accuracy and, as far as the images can tell, macro-F1 are (:func:`fell`).
    The order: int8 as it is; other calibration methods, and channel groups rescaled, that one of
    the two first to which the diagnosis points; bias correction, the noisiest layers left in float,
    quantization-aware training, dynamic quantization. From bias correction on, each starts from
    the most accurate plan found before it. Layers in float that make an ``int8-mixed`` are the
    last resort where ``train_quantized`` is given. Artifacts take one image; a remedy that falls
    far short on a few hundred calibration images is not scored on validation. Those tried are timed
    together at the end, in interleaved rounds, unless ``rounds`` is 0.

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
        fp32 model -> fp32 model that went through quantization-aware training.
    rewrites : Rewrites, optional
        What the remedies already made of the model for another runtime.
    scheme : Int8Scheme
        Integer types of static int8, those that suit the CPU that will run it; this machine's when
        omitted.
    exhaustive : bool
        Try every remedy, also after the budget is met.
    prepared : mapping, optional
        The fp32 of the same runtime and its int8 as it is, by remedy, scored on ``validation``.

    Returns
    -------
    Recovery
        The columns of its ``attempts``, whose first row is the fp32 parent: remedy, based_on (the
        earlier remedy that is kept under it, if any), accuracy, macro_f1, images (on how many they
        are), quality_drop (of accuracy or, if that fell more, macro-F1), latency_ms (mean),
        artifact_bytes, int8_mac_share, reached, error.

    Raises
    ------
    ValueError
        For a bad budget or calibration set.
    ExportError
        When not one remedy could be applied.
    """
    if isinstance(max_drop, bool) or not 0 <= max_drop <= 1:
        raise ValueError(f"max_drop is {max_drop!r}; allowed: [0, 1]")
    if rewrites is None:
        rewrites = Rewrites(model, calibration=calibration, train_quantized=train_quantized)
    judge = _Judge(
        runtime=runtime_named(runtime),
        validation=validation,
        rewrites=rewrites,
        scheme=scheme or int8_scheme(),
        threads=threads,
        files=(Path(folder) / f"{number:02d}" for number in itertools.count()),
        max_drop=max_drop,
        known=prepared or {},
    )
    parent = judge.attempt(Remedy(PARENT, lambda: Plan(model, precision="fp32")))
    if parent.error:
        raise ExportError(f"the fp32 model cannot be served: {parent.error}")
    judge = replace(judge, fp32={name: getattr(parent, name) for name in QUALITIES})
    tried: list[Attempt] = []
    for remedy in _remedies(judge, tried, float_layers, exhaustive=exhaustive):
        tried.append(judge.attempt(remedy))
        logger.info("%s: accuracy %.4f %s", remedy.name, tried[-1].accuracy, tried[-1].error)
        if judge.suffices(tried[-1]) and not exhaustive:
            break
    every = [parent, *tried]
    latency = _latencies(every, validation, threads, rounds, calls_per_round) if rounds else {}
    selected = judge.select(tried)
    table = _attempts_table(every, latency=latency, reached=judge.reached)
    return Recovery(selected, judge.reached(selected), table)


def _remedies(
    judge: _Judge, tried: Sequence[Attempt], float_layers: Sequence[int], *, exhaustive: bool
) -> Iterator[Remedy]:
    """Yield remedies in order of cost; ``tried`` fills up meanwhile, and later ones start there."""

    def best() -> tuple[str, Plan]:
        attempt = _most_accurate(tried)
        return attempt.remedy.name, attempt.plan

    progress = Progress(
        best,
        reached=lambda: not exhaustive and any(map(judge.reached, tried)),
        mixed=lambda: tried[-1].mixed,
    )
    own = {"runtime": judge.runtime}
    yield from first_remedies(judge.rewrites, **own)
    yield from later_remedies(judge.rewrites, progress, counts=float_layers, **own)


def _accuracy(answers: np.ndarray, split: Split) -> float:
    return float((answers == split.labels.numpy()).mean())


def _most_accurate(tried: Sequence[Attempt]) -> Attempt:
    """Find the attempt that lost least against fp32."""
    made = [attempt for attempt in tried if not attempt.error]
    if not made:
        errors = "; ".join(f"{attempt.remedy.name}: {attempt.error}" for attempt in tried)
        raise ExportError(f"no remedy could be applied: {errors}")
    return min(made, key=lambda attempt: attempt.drop)


def _latencies(
    attempts: Sequence[Attempt], validation: Split, threads: int, rounds: int, calls_per_round: int
) -> dict[str, float]:
    made = {a.remedy.name: a.artifact for a in attempts if a.artifact}
    loaders = {name: partial(load_session, file, threads=threads) for name, file in made.items()}
    counts = {"rounds": rounds, "calls_per_round": calls_per_round}
    samples = measure_latency(loaders, validation.take(1).numpy(), **counts).samples
    return latency_statistics(samples).set_index("candidate")["latency_ms"].to_dict()


def _attempts_table(
    attempts: Sequence[Attempt],
    *,
    latency: Mapping[str, float],
    reached: Callable[[Attempt], bool],
) -> pd.DataFrame:
    return pd.DataFrame(
        {
            "remedy": a.remedy.name,
            "based_on": a.remedy.based_on,
            "accuracy": a.accuracy,
            "macro_f1": a.macro_f1,
            "images": a.images,
            "quality_drop": a.drop,
            "latency_ms": latency.get(a.remedy.name, math.nan),
            "artifact_bytes": a.artifact.size_bytes if a.artifact else math.nan,
            "int8_mac_share": a.int8_mac_share,
            "reached": a is not attempts[0] and reached(a),
            "error": a.error,
        }
        for a in attempts
    )
