"""Attempts at int8: plans simulated, written, scored, and held against what may be lost."""

import logging
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd

from edgeopt.data import Split
from edgeopt.experiments.candidates.candidate import Candidate, split_logits
from edgeopt.experiments.recovery.remedies import Plan, Remedy, Rewrites
from edgeopt.metrics import latency_statistics, measure_latency, quality_row
from edgeopt.runtimes import (
    Artifact,
    ExportError,
    Int8Options,
    Runtime,
    export_artifact,
    labelled,
    load_session,
    simulated_classes,
    verify_label,
)
from edgeopt.schema import MIXED
from edgeopt.system import Int8Scheme
from edgeopt.system.int8 import WEIGHT_STEPS

logger = logging.getLogger(__name__)

QUALITIES = ("accuracy", "macro_f1")
ROUNDING = 1e-9  # of the subtraction; far below one image's worth of accuracy
ONE_SIDED_95, ONE_SIDED_99 = 1.645, 2.326  # standard errors


def quality_drop(own: Mapping[str, float], parent: Mapping[str, float]) -> float:
    """How far accuracy or, if that fell more, macro-F1 is below the parent's."""
    return max(parent[name] - own[name] for name in QUALITIES)


def fell(
    own: Mapping[str, float], parent: Mapping[str, float], *, max_drop: float, images: int
) -> bool:
    """Whether accuracy is more than ``max_drop`` below the parent's, or macro-F1 surely is.

    Macro-F1 says what accuracy does not, a class that pays for the mean, but hangs on fewer images:
    it counts where its fall is beyond the one-sided 95% bound of what the images with another
    answer, a share of ``1 - agreement``, change by chance.
    """
    chance = ONE_SIDED_95 * _standard_error(own["agreement"], images)
    accuracy, macro_f1 = (parent[name] - own[name] for name in QUALITIES)
    return max(accuracy, macro_f1 - chance) > max_drop + ROUNDING


def _standard_error(agreement: float, images: int) -> float:
    """Of a difference of accuracies: only the images with another answer change it."""
    return math.sqrt((1 - agreement) / images)


@dataclass(frozen=True, eq=False)
class Attempt:
    """A remedy tried; where it failed, ``error`` says why and the rest is empty.

    ``accuracy`` is of ``images`` images: all of validation or, where these calibration images
    already said that it falls short, ``SCREENING_IMAGES`` of calibration; then ``logits`` is None,
    and macro-F1 is unknown. Where a simulation said so, there is no
    ``artifact`` either. ``drop`` is how far accuracy or, if that is more, macro-F1 is below fp32's
    of the same images.
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
        own = self.artifact is not None and bool(self.plan.float_layers)
        return own and self.artifact.precision == MIXED

    @property
    def simulated(self) -> bool:
        """Whether its accuracy is an estimate: of int8 as torch computes it, without a file."""
        return self.plan is not None and self.artifact is None


@dataclass(frozen=True, eq=False)
class Judge:
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

    def attempt(self, remedy: Remedy, *, simulate: bool = True) -> Attempt:
        """Try a remedy: how it went. A simulation may say that it falls before there is a file."""
        some = self.rewrites.screening
        try:
            plan = remedy.make()
            if known := self.known.get(remedy.name):
                share = known.facts["int8_mac_share"]
                return self._scored(remedy, plan, known.artifact, known.logits, share)
            if simulate and (classes := self._simulated_classes(plan)) is not None:
                guess = self._screened(Attempt(remedy, plan), classes)
                if self.falls_short(guess):
                    return guess
            artifact = labelled(self._artifact(plan))
            share = verify_label(artifact)
            session = load_session(artifact, threads=self.threads)
            made = Attempt(remedy, plan, artifact, int8_mac_share=share)
            made = self._screened(made, split_logits(session, some).argmax(1))
            if self.falls_short(made):
                return made
            logits = split_logits(session, self.validation)
        except Exception as error:  # of a runtime, or of a user's code on a rewritten network
            logger.debug("%s failed", remedy.name, exc_info=True)
            return Attempt(remedy, error=str(error) or type(error).__name__)
        return self._scored(remedy, plan, artifact, logits, share)

    def _screened(self, attempt: Attempt, classes: np.ndarray) -> Attempt:
        """Score the classes given to the screening images."""
        some = self.rewrites.screening
        answers, quick = self.rewrites.answers(some), _accuracy(classes, some)
        numbers = {"accuracy": quick, "agreement": float((classes == answers).mean())}
        drop = _accuracy(answers, some) - quick
        return replace(attempt, **numbers, drop=drop, images=len(some))

    def falls_short(self, screened: Attempt) -> bool:
        """Whether a few images are already sure that :meth:`reached` would be false.

        A network that was trained gives many other answers, and needs a larger fall to be refused.
        """
        chance = ONE_SIDED_99 * _standard_error(screened.agreement, screened.images)
        return screened.drop > self.max_drop + chance

    def _simulated_classes(self, plan: Plan) -> np.ndarray | None:
        """Classes of the screening images by int8 as torch computes it, where there is that.

        Which share is int8 only a file tells, so that plans with layers in float get one.
        """
        if plan.precision != "int8" or plan.float_layers:
            return None
        own = {"runtime": self.runtime.name, "options": self._options(plan)}
        return simulated_classes(
            plan.model, self.rewrites.screening, calibration=self.rewrites.calibration, **own
        )

    @property
    def weight_steps(self) -> int:
        """Steps of the files' weights on either side of zero: only ONNX files have the scheme's."""
        return self.scheme.weight_steps if self.runtime.takes_int8_options else WEIGHT_STEPS

    def _options(self, plan: Plan) -> Int8Options:
        scheme = self.scheme if self.runtime.takes_scheme else None
        return Int8Options(plan.calibration, scheme, plan.float_layers)

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
        return inside[0] if inside else most_accurate(tried)

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
        return export_artifact(
            plan.model,
            path.with_name(f"{path.name}-{plan.precision}"),
            runtime=self.runtime.name,
            precision=plan.precision,
            input_shape=(1, *self.validation.shape),
            calibration=self.rewrites.calibration,
            options=self._options(plan) if plan.precision == "int8" else Int8Options(),
        )


def _accuracy(answers: np.ndarray, split: Split) -> float:
    return float((answers == split.labels.numpy()).mean())


def most_accurate(tried: Sequence[Attempt]) -> Attempt:
    """Find the attempt that lost least against fp32."""
    made = [attempt for attempt in tried if not attempt.error]
    if not made:
        errors = "; ".join(f"{attempt.remedy.name}: {attempt.error}" for attempt in tried)
        raise ExportError(f"no remedy could be applied: {errors}")
    return min(made, key=lambda attempt: attempt.drop)


def latencies(
    attempts: Sequence[Attempt], validation: Split, threads: int, rounds: int, calls_per_round: int
) -> dict[str, float]:
    """Mean milliseconds of every attempt that has a file, timed together in interleaved rounds."""
    made = {a.remedy.name: a.artifact for a in attempts if a.artifact}
    loaders = {name: partial(load_session, file, threads=threads) for name, file in made.items()}
    counts = {"rounds": rounds, "calls_per_round": calls_per_round}
    samples = measure_latency(loaders, validation.take(1).numpy(), **counts).samples
    return latency_statistics(samples).set_index("candidate")["latency_ms"].to_dict()


def attempts_table(
    attempts: Sequence[Attempt],
    *,
    latency: Mapping[str, float],
    reached: Callable[[Attempt], bool],
) -> pd.DataFrame:
    """One row an attempt, the fp32 parent first: the columns of :func:`recover_int8`."""
    return pd.DataFrame(
        {
            "remedy": a.remedy.name,
            "based_on": a.remedy.based_on,
            "accuracy": a.accuracy,
            "macro_f1": a.macro_f1,
            "images": a.images,
            "simulated": a.simulated,
            "quality_drop": a.drop,
            "latency_ms": latency.get(a.remedy.name, math.nan),
            "artifact_bytes": a.artifact.size_bytes if a.artifact else math.nan,
            "int8_mac_share": a.int8_mac_share,
            "reached": a is not attempts[0] and reached(a),
            "error": a.error,
        }
        for a in attempts
    )
