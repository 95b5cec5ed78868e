"""Candidates: what each is, and what is known of it once it is prepared."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from torch import nn

from edgeopt.data import Split
from edgeopt.experiments.candidates.prepared import Prepared
from edgeopt.experiments.trainings.recipes import level_label
from edgeopt.metrics import artifact_activation_bytes, quality_row
from edgeopt.pruning import count_macs
from edgeopt.quantization import inserted_multiplications
from edgeopt.runtimes import RUNTIMES, Artifact, Session, runtime_named, verify_label
from edgeopt.schema import MIB, MIXED, PRECISIONS, RECIPES, file_stem, require_known

NetworkKey = tuple[str, int, float | str]  # model, seed, and pruning level or widths
Scored = TypeVar("Scored", "Candidate", Prepared)


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
