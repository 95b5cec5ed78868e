"""Candidates: what each is, how it is prepared, and what is known of it then."""

import logging
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from torch import nn

from edgeopt.data import Split
from edgeopt.experiments.prepared import Prepared, batches_digest, preparation_digest
from edgeopt.experiments.recipes import level_label
from edgeopt.metrics import artifact_activation_bytes, quality_row
from edgeopt.model import network_digest, predict_logits
from edgeopt.pruning import count_macs
from edgeopt.quantization import inserted_multiplications
from edgeopt.runtimes import (
    RUNTIMES,
    Artifact,
    Int8Options,
    Session,
    export_artifact,
    labelled,
    load_session,
    runtime_named,
    verify_label,
)
from edgeopt.schema import MIB, MIXED, PRECISIONS, RECIPES, file_stem, require_known
from edgeopt.system import (
    U8S8,
    ByValue,
    Int8Scheme,
    RuntimeUnavailable,
    Store,
    int8_scheme,
    run_in_order,
)

logger = logging.getLogger(__name__)

NetworkKey = tuple[str, int, float | str]  # model, seed, and pruning level or widths
Scored = TypeVar("Scored", "Candidate", Prepared)
Job = tuple[ByValue, Split, Iterable]  # a network, what it is scored on, calibration batches


@dataclass(frozen=True)
class CandidateSpec:
    """What a candidate is: its network, how that was made, its runtime and precision.

    ``remedy`` is what was done for its int8, and ``recovered`` whether that sufficed; empty where
    it was made as it is. ``integer_percent`` is how much of ``int8-mixed`` is integer. ``widths``
    is :attr:`edgeopt.experiments.Recipe.network`'s, and ``float_layers`` are modules that
    compute in float between integers.
    """

    pruning_level: float
    precision: str
    runtime: str = RUNTIMES[0]
    recipe: str = "baseline"
    model: str = "small_cnn"
    seed: int = 0
    remedy: str = ""
    recovered: bool = True
    integer_percent: int | None = None
    widths: str = ""
    float_layers: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        require_known(self.precision, allowed=PRECISIONS, what="precision")
        require_known(self.recipe, allowed=RECIPES, what="recipe")
        if not (runtime := runtime_named(self.runtime)).runs(self.precision):
            allowed = ", ".join(runtime.precisions)
            raise ValueError(f"{self.runtime} does not run {self.precision}; allowed: {allowed}")

    @property
    def network(self) -> NetworkKey:
        """Model, seed, and widths or pruning level, by which the candidate's network is known."""
        return self.model, self.seed, self.widths or self.pruning_level

    @property
    def name(self) -> str:
        """Name in tables and of files, the same for every seed."""
        level = level_label(self.pruning_level, self.widths)
        share = "" if self.integer_percent is None else f"-{self.integer_percent}"
        floats = "".join(f"-float-{file_stem(name)}" for name in self.float_layers)
        made = f"{file_stem(self.model)}-{level}-{self.runtime}-{self.precision}{share}{floats}"
        done = "repaired" if self.recovered else "closest"
        return f"{made}-{done}" if self.remedy else made


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
    for precision in precisions:
        require_known(precision, allowed=PRECISIONS, what="precision")
    if not specs:
        raise ValueError(
            f"no candidate: none of the runtimes {list(runtimes)} runs any of {list(precisions)}"
        )
    return specs


def artifact_facts(
    artifact: Artifact, *, model: nn.Module, logits: np.ndarray, labels: np.ndarray
) -> dict[str, Any]:
    """Prove an artifact's label, score its logits [N, classes], and count what needs no clock."""
    example = torch.zeros(1, *artifact.input_shape[1:])
    weights = runtime_named(artifact.runtime).weight_bytes(artifact)
    return {
        "int8_mac_share": verify_label(artifact),
        **quality_row(labels, logits.argmax(1), num_classes=logits.shape[1]),
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "macs": count_macs(model, example_input=example)
        + inserted_multiplications(model, example=example),
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
    batch_size: int = 1,
    scheme: Int8Scheme | None = None,
    executor: Executor | None = None,
    store: Path | None = None,
) -> list[Candidate]:
    """Quantize, export, prove the label and score every candidate, in order.

    Facts include ``agreement`` with its network in torch. A candidate of which a step failed has
    ``error`` set, and nothing else.

    Parameters
    ----------
    models : mapping
        The fp32 networks, by :attr:`CandidateSpec.network`.
    validation, calibration : mapping
        By model, what its candidates are scored on, and batches that set the ranges of int8, all
        of which are used.
    directory : Path
        Gets the artifact files.
    batch_size : int
        Images that an artifact takes at once.
    scheme : Int8Scheme
        Integer types of static int8; those that suit this machine's CPU when omitted.
    store : Path, optional
        What the very same preparation left in this folder is written from there; what is new is
        kept in it as soon as it is made, but not what failed.
    """
    options = {"batch_size": batch_size, "scheme": scheme or int8_scheme()}
    jobs = {
        s: (ByValue(network=models[s.network]), validation[s.model], calibration[s.model])
        for s in specs
    }
    kept = Store(store, Prepared) if store else None
    digests = _digests(jobs, options) if store else {}
    found: dict[CandidateSpec, Candidate] = {}
    for spec, digest in digests.items():
        if prepared := kept.read(spec.name, digest=digest):
            found[spec] = _written(spec, prepared, directory)
    missing = {spec: job for spec, job in jobs.items() if spec not in found}
    for spec, made in _made(missing, executor=executor, **options):
        if isinstance(made, str):
            found[spec] = Candidate(spec, error=made)
            continue
        found[spec] = _written(spec, made, directory)
        if kept:
            kept.write(spec.name, made, digest=digests[spec])
    return [found[spec] for spec in specs]


def _written(spec: CandidateSpec, prepared: Prepared, directory: Path) -> Candidate:
    artifact = prepared.write(directory / f"seed{spec.seed}")
    return named_by_share(Candidate(spec, artifact, prepared.facts, prepared.logits))


def _digests(
    jobs: Mapping[CandidateSpec, Job], options: Mapping[str, Any]
) -> dict[CandidateSpec, str]:
    """Digest all that decides what preparing each candidate gives."""
    networks = {spec.network: job[0]["network"] for spec, job in jobs.items()}
    weights = {key: network_digest(network) for key, network in networks.items()}
    splits = {spec.model: job[1:] for spec, job in jobs.items()}
    images = {model: (own.digest, batches_digest(some)) for model, (own, some) in splits.items()}
    return {s: preparation_digest(s, weights[s.network], images[s.model], options) for s in jobs}


def _made(
    jobs: Mapping[CandidateSpec, Job], *, executor: Executor | None, **options: Any
) -> Iterator[tuple[CandidateSpec, Prepared | str]]:
    """Prepare candidates, many at once where there is an executor; the error of what failed."""
    sources = {spec.network: job[:2] for spec, job in jobs.items()}
    parents = {
        key: predict_logits(own["network"], split).argmax(1).numpy()
        for key, (own, split) in sources.items()
    }
    prepare = partial(_prepare, **options)
    done = run_in_order(prepare, jobs.items(), executor=executor, died=_died)
    for spec, made in zip(jobs, done, strict=True):
        if isinstance(made, Prepared):
            made = with_agreement(made, parents[spec.network])
        yield spec, made


def _died(job: tuple[CandidateSpec, Job]) -> str:
    logger.error("candidate %s ended the process that prepared it", job[0].name)
    return "WorkerDied: its exporter or runtime ended the process"


def _prepare(
    job: tuple[CandidateSpec, Job],
    *,
    batch_size: int,
    scheme: Int8Scheme,
) -> Prepared | str:
    """Prepare one candidate, or say why not: picklable, and a function of its arguments alone."""
    spec, (own, validation, calibration) = job
    network = own["network"]
    takes_scheme = spec.precision == "int8" and runtime_named(spec.runtime).takes_scheme
    labels = validation.labels.numpy()
    with tempfile.TemporaryDirectory(prefix="edgeopt-") as scratch:
        try:
            exported = export_artifact(
                network,
                Path(scratch, f"seed{spec.seed}", spec.name),
                runtime=spec.runtime,
                precision=spec.precision,
                input_shape=(batch_size, *validation.shape),
                calibration=calibration,
                options=Int8Options(
                    scheme=scheme if takes_scheme else U8S8,
                    float_alone=frozenset(spec.float_layers),
                ),
            )
            artifact = labelled(exported)
            logits = split_logits(load_session(artifact, threads=1), validation)
            facts = artifact_facts(artifact, model=network, logits=logits, labels=labels)
            return Prepared.of(artifact, facts=facts, logits=logits)
        except RuntimeUnavailable as error:
            logger.warning("candidate %s cannot run here: %s", spec.name, error)
            return f"{type(error).__name__}: {error}"
        except Exception as error:  # exporters and runtimes raise whatever they like
            logger.exception("candidate %s failed", spec.name)
            return f"{type(error).__name__}: {error}"


def named_by_share(candidate: Candidate, *, percent: int | None = None) -> Candidate:
    """Name ``int8-mixed`` with its integer share, or with ``percent``, in table and file."""
    share, artifact = candidate.facts["int8_mac_share"], candidate.artifact
    if artifact.precision != MIXED and percent is None:
        return candidate
    percent = int(100 * share) if percent is None else percent
    spec = replace(candidate.spec, precision=MIXED, integer_percent=percent)
    path = artifact.path.rename(artifact.path.with_name(spec.name + artifact.path.suffix))
    artifact = replace(artifact, precision=MIXED, path=path)
    facts = {**candidate.facts, "artifact": f"{path.parent.name}/{path.name}"}
    return replace(candidate, spec=spec, artifact=artifact, facts=facts)


def with_agreement(candidate: Scored, parent: np.ndarray) -> Scored:
    """Add the share of images on which a candidate answers as its fp32 parent [N] does."""
    if candidate.logits is None:
        return candidate
    share = float(np.mean(parent == candidate.logits.argmax(1)))
    return replace(candidate, facts={**candidate.facts, "agreement": share})


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


def split_logits(session: Session, split: Split) -> np.ndarray:
    """Logits [N, classes] of a split, whose images are converted batch by batch."""
    batches = split.batches(session.scoring_batch)
    return np.concatenate([session.score(images.numpy()) for images in batches])
