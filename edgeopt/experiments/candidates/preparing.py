"""Preparing candidates: quantized, exported, proven and scored, many at once, kept by digest."""

import logging
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Executor
from functools import partial
from pathlib import Path
from typing import Any

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
from edgeopt.experiments.candidates.prepared import Prepared, batches_digest, preparation_digest
from edgeopt.model import factory_digest, network_digest, predict_logits
from edgeopt.runtimes import Int8Options, export_artifact, labelled, load_session, runtime_named
from edgeopt.system import (
    ByValue,
    Int8Scheme,
    RuntimeUnavailable,
    Store,
    int8_scheme,
    run_in_order,
)

logger = logging.getLogger(__name__)

Job = tuple[ByValue, Split, Iterable]  # a network, what it is scored on, calibration batches


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
    weights = {
        key: (network_digest(network), factory_digest(key[0])) for key, network in networks.items()
    }
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
                    scheme=scheme if takes_scheme else None,
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
