"""Candidates whose int8 collapsed: which they are, and what repairs make of them."""

import logging
import math
import shutil
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pandas as pd
from torch import nn

from edgeopt.data import Split
from edgeopt.experiments.candidates import (
    Candidate,
    CandidateSpec,
    NetworkKey,
    artifact_facts,
    named_by_share,
    split_logits,
    with_agreement,
)
from edgeopt.experiments.recovery import FAILURES, ROUNDING, recover_int8
from edgeopt.experiments.remedies import Rewrites
from edgeopt.model import predict_logits
from edgeopt.runtimes import load_session
from edgeopt.schema import MIXED, STATIC_INT8
from edgeopt.system import U8S8, Int8Scheme

logger = logging.getLogger(__name__)


def collapsed(candidates: Iterable[Candidate], *, max_accuracy_drop: float) -> list[Candidate]:
    """Find the static int8 candidates further below their own runtime's fp32 than allowed."""
    ran = [c for c in candidates if not c.error]
    fp32 = {
        (c.spec.network, c.spec.runtime): c.facts["accuracy"]
        for c in ran
        if c.spec.precision == "fp32"
    }
    int8 = [c for c in ran if c.spec.precision in STATIC_INT8]
    least = max_accuracy_drop + ROUNDING

    def fell(own: Candidate) -> bool:
        parent = fp32.get((own.spec.network, own.spec.runtime), -math.inf)
        return own.facts["accuracy"] < parent - least

    return [candidate for candidate in int8 if fell(candidate)]


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
    """Repair the static int8 of every network and runtime of which one seed's collapsed.

    When one seed's int8 falls further than ``max_accuracy_drop`` below its fp32, that of all seeds
    is repaired, so that the repaired candidate has every seed; it is called repaired where every
    seed's reached the goal. What changes the network is found
    once and serves all runtimes. The arguments are those of
    :func:`edgeopt.experiments.prepare_candidates`. A recovery that fails is logged and left out;
    so are all at a ``batch_size`` other than 1, at which the remedies are not tried.
    """
    broken = {_cell(c.spec) for c in collapsed(candidates, max_accuracy_drop=max_accuracy_drop)}
    if broken and batch_size != 1:
        logger.warning("int8 is not repaired at batch size %d: %s", batch_size, sorted(broken))
        return []
    rewrites: dict[NetworkKey, Rewrites] = {}
    recovered = []
    for spec in (c.spec for c in candidates):
        if spec.precision not in STATIC_INT8 or _cell(spec) not in broken:
            continue
        batches = tuple(calibration[spec.model])
        own = rewrites.setdefault(spec.network, Rewrites(models[spec.network], calibration=batches))
        try:
            found = recover_candidate(
                spec,
                models[spec.network],
                validation[spec.model],
                directory=directory,
                calibration=batches,
                max_accuracy_drop=max_accuracy_drop,
                scheme=scheme,
                rewrites=own,
            )
        except FAILURES as error:
            logger.warning("%s, seed %d, could not be repaired: %s", spec.name, spec.seed, error)
            continue
        recovered.append(found)
    return _alike(recovered)


def recovery_notes(
    candidates: Iterable[Candidate], recovered: Sequence[Recovered], *, max_accuracy_drop: float
) -> dict[str, str]:
    """Say, by name, of every static int8 candidate that collapsed what became of it."""
    made = {_cell(r.candidate.spec): r.candidate for r in recovered}
    notes = {}
    for fallen in collapsed(candidates, max_accuracy_drop=max_accuracy_drop):
        best = made.get(_cell(fallen.spec))
        if best is None:
            notes[fallen.name] = "int8 collapsed and was not recovered"
        elif best.spec.recovered:
            notes[fallen.name] = f"int8 collapsed; recovered as {best.name}"
        else:
            near = f"{best.spec.remedy} came closest, {best.facts['accuracy']:.1%}"
            notes[fallen.name] = f"int8 collapsed and was not recovered: {near}"
    return notes


def _cell(spec: CandidateSpec) -> tuple[str, float, str]:
    return spec.model, spec.pruning_level, spec.runtime


def _alike(recovered: Sequence[Recovered]) -> list[Recovered]:
    """Give the seeds of a candidate one name: the worst that one of them deserves."""
    seeds: dict[tuple, list[Candidate]] = {}
    for own in recovered:
        seeds.setdefault(_cell(own.candidate.spec), []).append(own.candidate)

    def renamed(own: Candidate) -> Candidate:
        alike = seeds[_cell(own.spec)]
        mixed = any(candidate.spec.precision == MIXED for candidate in alike)
        percents = [int(100 * candidate.facts["int8_mac_share"]) for candidate in alike]
        reached = all(candidate.spec.recovered for candidate in alike)
        static = own.spec.precision in STATIC_INT8
        own = replace(own, spec=replace(own.spec, recovered=reached))
        return named_by_share(own, percent=min(percents) if mixed and static else None)

    return [replace(own, candidate=renamed(own.candidate)) for own in recovered]


def recover_candidate(
    spec: CandidateSpec, model: nn.Module, validation: Split, *, directory: Path, **options: Any
) -> Recovered:
    """Repair the int8 of a candidate's network.

    What is made is a candidate named *repaired*, or *closest* where no remedy sufficed.
    ``options`` are those of :func:`recover_int8`, which writes below ``directory``.
    """
    folder = directory / f"repaired-{spec.name}-seed{spec.seed}"
    found = recover_int8(
        model, validation=validation, folder=folder, runtime=spec.runtime, **options
    )
    selected, artifact = found.selected, found.selected.artifact
    # Another runtime may read the same file: this candidate has one of its own, under its name.
    folder.mkdir(parents=True, exist_ok=True)
    own = folder / f"{spec.name}{artifact.path.suffix}"
    artifact = replace(artifact, path=Path(shutil.copyfile(artifact.path, own)))
    labels = validation.labels.numpy()
    logits = selected.logits
    if logits is None:
        logits = split_logits(load_session(artifact), validation)
    facts = artifact_facts(artifact, model=selected.plan.model, logits=logits, labels=labels)
    precision, remedy = artifact.precision, selected.remedy.name
    made = replace(spec, precision=precision, remedy=remedy, recovered=found.reached)
    parent = predict_logits(model, validation).argmax(1).numpy()
    repaired = with_agreement(Candidate(made, artifact, facts, logits), parent)
    return Recovered(named_by_share(repaired), found.attempts)
