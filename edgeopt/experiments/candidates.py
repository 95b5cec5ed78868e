"""Candidates: what each is, how it is prepared, and how it is scored."""

import hashlib
import logging
import math
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from edgeopt.data import Split
from edgeopt.experiments.prepared import Prepared, preparation_digest
from edgeopt.metrics import agreement, artifact_activation_bytes, quality_row
from edgeopt.model import network_digest, predict_logits
from edgeopt.pruning import count_macs
from edgeopt.runtimes import (
    DEFAULT_OPTIONS,
    RUNTIMES,
    SCORING_BATCH,
    Artifact,
    Int8Options,
    Session,
    export_artifact,
    load_session,
    runtime_named,
    session_logits,
    verify_label,
)
from edgeopt.schema import (
    MIB,
    PRECISIONS,
    RECIPES,
    file_stem,
    require_known,
)
from edgeopt.system import ByValue, Int8Scheme, RuntimeUnavailable, Store, run_in_order

logger = logging.getLogger(__name__)

NetworkKey = tuple[str, int, float]  # model, seed, pruning level


@dataclass(frozen=True)
class CandidateSpec:
    """What a candidate is: its network, how that was made, its runtime and precision.

    ``remedy`` is what recovered its int8; empty where it was made as it is.
    """

    pruning_level: float
    precision: str
    runtime: str = RUNTIMES[0]
    recipe: str = "baseline"
    model: str = "small_cnn"
    seed: int = 0
    remedy: str = ""

    def __post_init__(self) -> None:
        require_known(self.precision, allowed=PRECISIONS, what="precision")
        require_known(self.recipe, allowed=RECIPES, what="recipe")
        if self.precision not in (known := runtime_named(self.runtime).precisions):
            allowed = ", ".join(known)
            raise ValueError(f"{self.runtime} does not run {self.precision}; allowed: {allowed}")

    @property
    def network(self) -> NetworkKey:
        """Model, seed and pruning level, by which the candidate's network is known."""
        return self.model, self.seed, self.pruning_level

    @property
    def name(self) -> str:
        """Name in tables and of files, the same for every seed."""
        level = f"p{100 * self.pruning_level:g}"
        made = f"{file_stem(self.model)}-{level}-{self.runtime}-{self.precision}"
        return f"{made}-repaired" if self.remedy else made


@dataclass(frozen=True)
class Candidate:
    """A prepared candidate: its artifact, the facts and logits it gave, or its error."""

    spec: CandidateSpec
    artifact: Artifact | None = None
    facts: Mapping[str, Any] = field(default_factory=dict)
    logits: np.ndarray | None = None
    error: str = ""

    @property
    def name(self) -> str:
        """Name in tables and of files."""
        return self.spec.name


def grid(
    pruning_levels: Iterable[float],
    precisions: Sequence[str],
    runtimes: Iterable[str],
    *,
    recipe: str = "one-shot",
    model: str = "small_cnn",
    seed: int = 0,
) -> list[CandidateSpec]:
    """Every combination that a runtime offers; raises ``ValueError`` when there is none."""
    specs = [
        CandidateSpec(level, precision, runtime, recipe if level else "baseline", model, seed)
        for level in pruning_levels
        for runtime in runtimes
        for precision in runtime_named(runtime).precisions
        if precision in precisions
    ]
    unused = set(precisions) - {spec.precision for spec in specs}
    for precision in unused:
        require_known(precision, allowed=PRECISIONS, what="precision")
    if not specs:
        raise ValueError(
            f"no candidate: none of the runtimes {list(runtimes)} runs any of {list(precisions)}"
        )
    return specs


def prepare_candidate(
    spec: CandidateSpec,
    network: nn.Module,
    validation: Split,
    calibration: Iterable,
    *,
    directory: Path,
    batch_size: int = 1,
    scheme: Int8Scheme | None = None,
) -> Candidate:
    """Quantize, export, prove the label and score one candidate.

    Picklable, and a function of its arguments alone, so that an executor can run many at once.

    Parameters
    ----------
    network : nn.Module
        The fp32 network.
    validation : Split
        What the candidate is scored on, batch by batch.
    calibration : iterable of (images, labels)
        Batches that set the ranges of int8, all of which are used.
    directory : Path
        Gets the artifact file.
    scheme : Int8Scheme, optional
        Integer types of static int8 in ONNX files; U8S8 when omitted.

    Returns
    -------
    Candidate
        With ``error`` set, and nothing else, when any step failed.
    """
    shape = (batch_size, *validation.shape)
    options = Int8Options(scheme=scheme) if scheme and _takes_scheme(spec) else DEFAULT_OPTIONS
    try:
        artifact = export_artifact(
            network,
            directory / f"seed{spec.seed}" / spec.name,
            runtime=spec.runtime,
            precision=spec.precision,
            input_shape=shape,
            calibration=calibration,
            options=options,
        )
        logits = split_logits(load_session(artifact, threads=1), validation)
        labels = validation.labels.numpy()
        facts = artifact_facts(artifact, model=network, logits=logits, labels=labels)
    except RuntimeUnavailable as error:
        logger.warning("candidate %s cannot run here: %s", spec.name, error)
        return Candidate(spec, error=f"{type(error).__name__}: {error}")
    except Exception as error:  # exporters and runtimes raise whatever they like
        logger.exception("candidate %s failed", spec.name)
        return Candidate(spec, error=f"{type(error).__name__}: {error}")
    return Candidate(spec, artifact, facts, logits)


def _takes_scheme(spec: CandidateSpec) -> bool:
    return spec.precision == "int8" and runtime_named(spec.runtime).takes_int8_options


def artifact_facts(
    artifact: Artifact, *, model: nn.Module, logits: np.ndarray, labels: np.ndarray
) -> dict[str, Any]:
    """Prove an artifact's label, score its logits, and count what needs no clock."""
    return {
        "int8_mac_share": verify_label(artifact),
        **quality_row(labels, logits.argmax(1), num_classes=logits.shape[1]),
        **static_facts(model, artifact),
    }


def static_facts(model: nn.Module, artifact: Artifact) -> dict[str, Any]:
    """Count parameters, MACs, and the bytes of artifact, weights and activations.

    Activations are counted by liveness: see :func:`edgeopt.metrics.artifact_activation_bytes`.
    """
    example = torch.zeros(1, *artifact.input_shape[1:])
    weights = runtime_named(artifact.runtime).weight_bytes(artifact)
    macs = count_macs(model, example_input=example)
    return {
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "macs": macs,
        "artifact": f"{artifact.path.parent.name}/{artifact.path.name}",
        "parity_difference": artifact.parity_difference,
        "parity_agreement": artifact.parity_agreement,
        "artifact_sha256": artifact.sha256,
        "artifact_bytes": artifact.size_bytes,
        "weight_bytes": weights,
        "memory_mb": weights / MIB,
        "peak_activation_bytes": artifact_activation_bytes(artifact, model=model),
    }


def prepare_candidates(
    specs: Sequence[CandidateSpec],
    *,
    models: Mapping[NetworkKey, nn.Module],
    validation: Mapping[str, Split],
    calibration: Mapping[str, Iterable],
    directory: Path,
    executor: Executor | None = None,
    store: Store[Prepared] | None = None,
    **options: Any,
) -> list[Candidate]:
    """Prepare every candidate, in order, and add its ``agreement`` with its network in torch.

    Each is prepared from its own network and that network's images: ``models`` by
    :attr:`CandidateSpec.network`, ``validation`` and ``calibration`` by model. ``options`` are the
    others of :func:`prepare_candidate`. What the very same preparation left in the ``store`` is
    written from there; what is new is kept as soon as it is made, but not what failed.
    """
    found = [None] * len(specs)
    digests = [""] * len(specs)
    if store:
        digests = _digests(specs, models, validation, calibration, options)
        kept = [store.read(s.name, digest=d) for s, d in zip(specs, digests, strict=True)]
        found = [c and _written(s, c, directory) for s, c in zip(specs, kept, strict=True)]
    missing = [number for number, candidate in enumerate(found) if candidate is None]
    jobs = [
        (s, ByValue(network=models[s.network]), validation[s.model], calibration[s.model])
        for s in (specs[number] for number in missing)
    ]
    parents = {
        key: predict_logits(models[key], validation[key[0]]).argmax(1).numpy()
        for key in {specs[number].network for number in missing}
    }
    prepare = partial(_prepare_job, directory=directory, **options)
    made = run_in_order(prepare, jobs, executor=executor)
    for number, candidate in zip(missing, made, strict=True):
        found[number] = with_agreement(candidate, parents[candidate.spec.network])
        if store and candidate.artifact:
            store.write(candidate.name, _kept(found[number]), digest=digests[number])
    return found


def _digests(
    specs: Sequence[CandidateSpec],
    models: Mapping[NetworkKey, nn.Module],
    validation: Mapping[str, Split],
    calibration: Mapping[str, Iterable],
    options: Mapping[str, Any],
) -> list[str]:
    """Digest all that decides what preparing each candidate gives."""
    networks = {key: network_digest(models[key]) for key in {spec.network for spec in specs}}
    images = {
        model: (validation[model].digest, _batches_digest(calibration[model]))
        for model in {spec.model for spec in specs}
    }
    known = sorted(options.items())
    return [preparation_digest(s, networks[s.network], images[s.model], known) for s in specs]


def _batches_digest(calibration: Iterable) -> str:
    seen = hashlib.sha256()
    for images, _ in calibration:
        seen.update(repr(images.shape).encode())
        seen.update(images.contiguous().numpy())
    return seen.hexdigest()


def _kept(candidate: Candidate) -> Prepared:
    content = candidate.artifact.path.read_bytes()
    return Prepared(content, candidate.artifact, candidate.facts, candidate.logits)


def _written(spec: CandidateSpec, kept: Prepared, directory: Path) -> Candidate:
    artifact = kept.write(directory / f"seed{spec.seed}")
    return Candidate(spec, artifact, kept.facts, kept.logits)


def _prepare_job(job: tuple[CandidateSpec, ByValue, Split, Iterable], **options: Any) -> Candidate:
    spec, networks, validation, calibration = job
    return prepare_candidate(spec, networks["network"], validation, calibration, **options)


def with_agreement(candidate: Candidate, parent: np.ndarray) -> Candidate:
    """Add the share of images on which a candidate answers as its fp32 parent [N] does."""
    if candidate.logits is None:
        return candidate
    facts = {**candidate.facts, "agreement": agreement(parent, candidate.logits.argmax(1))}
    return replace(candidate, facts=facts)


def artifact_of(row: Any, directory: Path, *, input_shape: tuple[int, ...]) -> Artifact:
    """Find the artifact of a sweep table's row below the directory it was prepared in."""
    return Artifact(
        path=directory / row.artifact,
        runtime=row.runtime,
        precision=row.precision,
        input_shape=input_shape,
        sha256=row.artifact_sha256,
        size_bytes=int(row.artifact_bytes),
        parity_difference=row.parity_difference,
        parity_agreement=row.parity_agreement,
    )


def fp32_parents(candidates: Sequence[Candidate]) -> dict[str, str]:
    """Map every candidate that ran to the one its losses are counted from.

    That is the same network in fp32, of the first runtime that ran it; for this one, the unpruned
    network. The unpruned fp32 network itself has none.
    """
    ran = [c for c in candidates if not c.error]
    roots: dict[tuple[str, float], str] = {}
    for candidate in ran:
        if candidate.spec.precision == "fp32":
            spec = candidate.spec
            roots.setdefault((spec.model, spec.pruning_level), candidate.name)
    parents = {}
    for candidate in ran:
        own = roots.get((candidate.spec.model, candidate.spec.pruning_level))
        parent = roots.get((candidate.spec.model, 0.0)) if candidate.name == own else own
        if parent not in (None, candidate.name):
            parents[candidate.name] = parent
    return parents


def testable_parents(candidates: Sequence[Candidate]) -> dict[str, str]:
    """Return :func:`fp32_parents` without the candidates that cannot differ from another one's.

    Left out are fp32 beside fp32 of the same network, and a file that another runtime runs in the
    same precision: they would be counted as tests though chance alone could tell them apart.
    """
    specs = {candidate.name: candidate.spec for candidate in candidates}
    files: dict[tuple[str, str], str] = {}
    for candidate in candidates:
        if candidate.artifact and not candidate.error:
            key = (candidate.artifact.sha256, candidate.spec.precision)
            files.setdefault(key, candidate.name)
    firsts = set(files.values())
    return {
        name: parent
        for name, parent in fp32_parents(candidates).items()
        if name in firsts and not _same_arithmetic(specs[name], specs[parent])
    }


def _same_arithmetic(first: CandidateSpec, second: CandidateSpec) -> bool:
    same_network = (first.model, first.pruning_level) == (second.model, second.pruning_level)
    return same_network and first.precision == second.precision == "fp32"


def score(
    candidates: Sequence[Candidate],
    splits: Mapping[str, Split],
    *,
    executor: Executor | None = None,
) -> dict[str, np.ndarray]:
    """Predicted classes [seeds, N] of every prepared candidate on its model's split."""
    ran = [candidate for candidate in candidates if candidate.artifact and not candidate.error]
    jobs = [(candidate.artifact, splits[candidate.spec.model]) for candidate in ran]
    answers: dict[str, list[np.ndarray]] = {}
    for candidate, classes in zip(
        ran, run_in_order(_classify, jobs, executor=executor), strict=True
    ):
        answers.setdefault(candidate.name, []).append(classes)
    return {name: np.stack(classes) for name, classes in answers.items()}


def _classify(job: tuple[Artifact, Split]) -> np.ndarray:
    artifact, split = job
    return split_logits(load_session(artifact), split).argmax(1)


def split_logits(session: Session, split: Split) -> np.ndarray:
    """Logits [N, classes] of a split, whose images are converted batch by batch."""
    # A multiple of both batch sizes: the same logits as from all images at once.
    size = math.lcm(SCORING_BATCH, session.input_shape[0])
    batches = split.batches(size)
    return np.concatenate([session_logits(session, images.numpy()) for images in batches])


def gather(loader: Iterable) -> Split:
    """Return the split that a loader serves; another data set's images are held in memory."""
    dataset = getattr(loader, "dataset", None)
    if isinstance(dataset, Split):
        return dataset
    images, labels = zip(*loader, strict=True)
    return Split(torch.cat(images), torch.cat(labels))
