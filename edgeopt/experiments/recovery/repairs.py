"""Candidates whose int8 collapsed: which they are, and what repairs make of them."""

import logging
import shutil
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import Executor
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from itertools import chain
from operator import itemgetter
from pathlib import Path
from typing import Any

import pandas as pd
from torch import nn

from edgeopt.data import Split
from edgeopt.experiments.candidates.candidate import (
    Candidate,
    CandidateSpec,
    NetworkKey,
    artifact_facts,
    named_by_share,
    split_logits,
    with_agreement,
)
from edgeopt.experiments.candidates.prepared import Prepared
from edgeopt.experiments.recovery.attempts import QUALITIES, fell
from edgeopt.experiments.recovery.recover import PARENT, recover_int8
from edgeopt.experiments.recovery.remedies import AS_IT_IS, Rewrites, Train, rescalings
from edgeopt.runtimes import load_session, runtime_named
from edgeopt.schema import MIXED, STATIC_INT8
from edgeopt.system import ByValue, Int8Scheme, int8_scheme, run_in_order

logger = logging.getLogger(__name__)

Fallen = tuple[CandidateSpec, dict[str, Candidate | None]]  # what is known of it, by remedy


def collapsed(candidates: Iterable[Candidate], *, max_drop: float) -> list[Candidate]:
    """Find the static int8 candidates that :func:`fell` below their own runtime's fp32."""
    ran = [c for c in candidates if not c.error]
    fp32 = _parents(ran)
    static = [own for own in ran if own.spec.precision in STATIC_INT8]
    pairs = [(own, fp32.get((own.spec.network, own.spec.runtime))) for own in static]
    return [
        own
        for own, parent in pairs
        if parent and fell(own.facts, parent.facts, max_drop=max_drop, images=len(own.logits))
    ]


def _parents(candidates: Iterable[Candidate]) -> dict[tuple[NetworkKey, str], Candidate]:
    """Find the fp32 candidates that were prepared, by network and runtime."""
    fp32 = (c for c in candidates if c.spec.precision == "fp32" and not c.error)
    return {(c.spec.network, c.spec.runtime): c for c in fp32}


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
    max_drop: float,
    directory: Path,
    train_quantized: Mapping[str, Train] | None = None,
    scheme: Int8Scheme | None = None,
    batch_size: int = 1,
    executor: Executor | None = None,
) -> list[Recovered]:
    """Repair the static int8 of every network and runtime of which one seed's collapsed.

    When one seed's int8 falls further than ``max_drop`` below its fp32, that of all seeds is
    repaired, so that the repaired candidate has every seed; it is called repaired where every
    seed's reached the goal. What changes a network is found once and serves all runtimes, whose
    repairs run in parallel where there is an ``executor``; nothing is timed. ``train_quantized`` is
    what trains a network under simulated int8, by its name. The other arguments
    are those of :func:`edgeopt.experiments.prepare_candidates`. A recovery that fails is logged and
    left out; so are all at a ``batch_size`` other than 1, at which the remedies are not tried.
    """
    fallen = collapsed(candidates, max_drop=max_drop)
    broken = {_cell(c.spec) for c in fallen}
    if broken and batch_size != 1:
        logger.warning("int8 is not repaired at batch size %d: %s", batch_size, sorted(broken))
        return []
    own = [c for c in candidates if c.spec.precision in STATIC_INT8 and _cell(c.spec) in broken]
    networks = {}
    for key in dict.fromkeys(c.spec.network for c in own):
        train = (train_quantized or {}).get(key[0])
        rewrites = Rewrites(models[key], calibration=calibration[key[0]], train_quantized=train)
        networks[key] = ByValue(rewrites=rewrites)
    first = list(dict.fromkeys(c.spec.network for c in fallen))
    sources = [(networks[key], validation[key[0]]) for key in first]
    begun = run_in_order(_begun, sources, executor=executor, died=itemgetter(0))
    networks |= zip(first, begun, strict=True)
    groups = _by_writer(own, _parents(candidates))
    jobs = [(networks[key], validation[key[0]], group) for (key, _), group in groups.items()]
    limit = {"max_drop": max_drop, "scheme": scheme or int8_scheme()}
    repaired = run_in_order(partial(_repaired, **limit), jobs, executor=executor, died=_died)
    return _alike([_written(*own, directory) for own in chain.from_iterable(repaired)])


def _written(recovered: Recovered, prepared: Prepared, directory: Path) -> Recovered:
    artifact = prepared.write(directory / prepared.artifact.path.parent.name)
    return replace(recovered, candidate=replace(recovered.candidate, artifact=artifact))


def _by_writer(
    own: Iterable[Candidate], parents: Mapping[tuple[NetworkKey, str], Candidate]
) -> dict[tuple, list[Fallen]]:
    """Put together what reads the same files: candidates of runtimes that share a writer."""
    groups: dict[tuple, list[Fallen]] = {}
    for c in own:
        group = c.spec.network, type(runtime_named(c.spec.runtime)).write
        parent = parents.get((c.spec.network, c.spec.runtime))
        prepared = {PARENT: parent, AS_IT_IS: None if c.error else c}
        groups.setdefault(group, []).append((c.spec, prepared))
    return groups


def _begun(job: tuple[ByValue, Split]) -> ByValue:
    """Find once what every runtime of a network asks for."""
    own, validation = job
    own["rewrites"].answers(validation)
    with suppress(Exception):  # raised again where it is asked for
        rescalings(own["rewrites"])[0].make()
    return own


def _died(job: tuple[ByValue, Split, list[Fallen]]) -> list[tuple[Recovered, Prepared]]:
    names = ", ".join(spec.name for spec, _ in job[2])
    logger.error("the repair of %s ended its process", names)
    return []


def _repaired(
    job: tuple[ByValue, Split, list[Fallen]], **options: Any
) -> list[tuple[Recovered, Prepared]]:
    """Repair the candidates of one network that share files: picklable, as its arguments are."""
    own, validation, fallen = job
    found = []
    with tempfile.TemporaryDirectory(prefix="edgeopt-") as scratch:
        for spec, prepared in fallen:
            how = {"prepared": prepared, "directory": Path(scratch), "rounds": 0, **options}
            try:
                made = recover_candidate(spec, own["rewrites"], validation, **how)
                found.append((made, Prepared.of(made.candidate.artifact)))
            except Exception as error:  # as one that cannot be prepared is left out
                what = "%s, seed %d, could not be repaired: %s"
                logger.warning(what, spec.name, spec.seed, error)
    return found


def recovery_notes(
    candidates: Iterable[Candidate], recovered: Sequence[Recovered], *, max_drop: float
) -> dict[str, str]:
    """Say, by name, of every static int8 candidate that collapsed what became of it."""
    made = {_cell(r.candidate.spec): r.candidate for r in recovered}
    notes = {}
    for fallen in collapsed(candidates, max_drop=max_drop):
        best = made.get(_cell(fallen.spec))
        if best is None:
            notes[fallen.name] = "int8 collapsed and was not recovered"
        elif best.spec.recovered:
            notes[fallen.name] = f"int8 collapsed; recovered as {best.name}"
        else:
            shares = [f"{best.facts[name]:.1%}" for name in QUALITIES]
            near = "{} came closest, accuracy {}, macro-F1 {}".format(best.spec.remedy, *shares)
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
    spec: CandidateSpec,
    rewrites: Rewrites,
    validation: Split,
    *,
    directory: Path,
    **options: Any,
) -> Recovered:
    """Repair the int8 of a candidate's network.

    What is made is a candidate named *repaired*, or *closest* where no remedy sufficed.
    ``options`` are those of :func:`recover_int8`, which writes below ``directory``.
    """
    folder = directory / f"repaired-{spec.name}-seed{spec.seed}"
    found = recover_int8(
        rewrites.model,
        calibration=rewrites.calibration,
        validation=validation,
        folder=folder,
        runtime=spec.runtime,
        rewrites=rewrites,
        **options,
    )
    selected, artifact = found.selected, found.selected.artifact
    labels = validation.labels.numpy()
    logits = selected.logits
    if logits is None:
        logits = split_logits(load_session(artifact), validation)
    facts = artifact_facts(artifact, model=selected.plan.model, logits=logits, labels=labels)
    # Another runtime may read the same file: this candidate has one of its own, under its name.
    folder.mkdir(parents=True, exist_ok=True)
    own = Path(shutil.copyfile(artifact.path, folder / f"{spec.name}{artifact.path.suffix}"))
    facts |= {"artifact": f"{folder.name}/{own.name}"}
    precision, remedy = artifact.precision, selected.remedy.name
    made = replace(spec, precision=precision, remedy=remedy, recovered=found.reached)
    repaired = Candidate(made, replace(artifact, path=own), facts, logits)
    repaired = with_agreement(repaired, rewrites.answers(validation))
    return Recovered(named_by_share(repaired), found.attempts)
