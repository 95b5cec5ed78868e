"""The study: a grid of candidates, prepared and measured together, one row each."""

import tempfile
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import nn
from torch.utils.data import DataLoader

from edgeopt.data import Split
from edgeopt.decision import apply_budgets
from edgeopt.decision import pareto_frontier as pareto_frontier
from edgeopt.experiments.candidates.candidate import Candidate, grid
from edgeopt.experiments.candidates.measuring import measure_candidates, with_failures
from edgeopt.experiments.candidates.preparing import prepare_candidates
from edgeopt.experiments.candidates.seeds import with_seeds
from edgeopt.metrics import (
    Measurement,
    energy_model_j,
    energy_proxy_j,
    latency_statistics,
)
from edgeopt.model import train_model as train_model  # the documents' place
from edgeopt.pruning import structured_channel_prune
from edgeopt.quantization import first_batches
from edgeopt.quantization import precision_variant as precision_variant
from edgeopt.runtimes import RUNTIMES
from edgeopt.schema import Positive, PositiveFloat, checked_spec

SPEC_COLUMNS = ("model", "pruning_level", "runtime", "precision", "recipe", "remedy")
FACT_COLUMNS = (
    "accuracy",
    "accuracy_low",
    "accuracy_high",
    "macro_f1",
    "agreement",
    "parity_difference",
    "parity_agreement",
    "int8_mac_share",
    "parameters",
    "macs",
    "artifact",
    "artifact_sha256",
    "artifact_bytes",
    "weight_bytes",
    "memory_mb",
    "peak_activation_bytes",
)


@checked_spec
class Target:
    """The device that a sweep is for.

    Attributes
    ----------
    power_watts : float
        What it draws while it computes, assumed constant.
    latency_multiplier : float
        How much slower than this machine it is; anything but 1 makes latencies estimates.
    memory_budgets_mb, active_memory_budget_mb : float
        Budgets on weights, in MiB; what breaks the active one is not accepted.
    """

    power_watts: PositiveFloat = 5.0
    latency_multiplier: PositiveFloat = 1.0
    memory_budgets_mb: tuple[Positive | PositiveFloat, ...] = (0.015, 0.03, 0.06)
    active_memory_budget_mb: PositiveFloat = 0.03


def run_sweep(
    base_model: nn.Module,
    val_loader: DataLoader,
    calibration_loader: DataLoader,
    device: str | torch.device,
    pruning_levels: Sequence[float],
    precisions: Sequence[str],
    power_watts: float,
    calibration_batches: int,
    memory_budgets_mb: Sequence[float],
    active_memory_budget_mb: float,
    latency_multiplier: float,
    benchmark_repeats: int,
    *,
    runtimes: Sequence[str] = RUNTIMES[:1],
    pruned_models: Mapping[float, nn.Module] | None = None,
    recipe: str = "one-shot",
    model: str = "small_cnn",
    calls_per_round: int = 30,
    threads: int = 1,
    batch_size: int = 1,
    directory: Path | None = None,
    **options: Any,
) -> pd.DataFrame:
    """Prepare and measure every candidate of the grid; one row each, failures included.

    Parameters
    ----------
    base_model : nn.Module
        The trained fp32 network, called ``model`` in the table. Its pruned versions are made by
        one-shot pruning unless ``pruned_models`` gives them by level, fine-tuned as ``recipe``
        says; level 0 is the network itself.
    val_loader, calibration_loader : DataLoader
        Choosing happens on the first; the second sets the ranges of int8.
    device : str
        ``cpu``: the study is of devices without a GPU.
    benchmark_repeats : int
        Interleaved rounds, of ``calls_per_round`` timed calls each.
    latency_multiplier : float
        Scales every latency to another device; anything but 1 marks the rows ``estimated``.
    directory : Path, optional
        Keeps the artifacts; a temporary folder when omitted.
    **options
        The others of :func:`prepare_candidates`: ``scheme``, ``executor``, ``store``.

    Raises
    ------
    ValueError
        For a level outside [0, 1) or without its network, an empty list, an unknown precision or
        runtime, or a device other than the CPU.
    """
    if torch.device(device).type != "cpu":
        raise ValueError(f"device is {str(device)!r}; allowed: cpu, the target has no GPU")
    target = Target(
        power_watts=float(power_watts),  # numbers of NumPy too
        latency_multiplier=float(latency_multiplier),
        memory_budgets_mb=tuple(memory_budgets_mb),
        active_memory_budget_mb=float(active_memory_budget_mb),
    )
    specs = grid(pruning_levels, precisions, runtimes, recipe=recipe, model=model)
    networks = _networks(base_model, pruning_levels, pruned_models)
    validation = gather(val_loader)
    with tempfile.TemporaryDirectory() as scratch:
        candidates = prepare_candidates(
            specs,
            models={(model, 0, level): network for level, network in networks.items()},
            validation={model: validation},
            calibration={model: first_batches(calibration_loader, calibration_batches)},
            directory=directory or Path(scratch),
            batch_size=batch_size,
            **options,
        )
        counts = {"rounds": benchmark_repeats, "calls_per_round": calls_per_round}
        images = {model: validation}
        results = measure_candidates(candidates, images, threads=threads, **counts)
    labels = validation.labels.numpy()
    return sweep_table(
        candidates, results.measured, labels=labels, target=target, batch_size=batch_size
    )


def _networks(
    base: nn.Module, levels: Sequence[float], pruned: Mapping[float, nn.Module] | None
) -> dict[float, nn.Module]:
    if pruned is None:
        pruned = {level: structured_channel_prune(base, level) for level in levels if level}
    if missing := [level for level in levels if level and level not in pruned]:
        raise ValueError(f"pruned_models has no network of level(s) {missing}; it has: {[*pruned]}")
    return {0.0: base, **pruned}


def gather(loader: Iterable) -> Split:
    """Return the split that a loader serves; another data set's images are held in memory."""
    dataset = getattr(loader, "dataset", None)
    if isinstance(dataset, Split):
        return dataset
    images, labels = zip(*loader, strict=True)
    return Split(torch.cat(images), torch.cat(labels))


def sweep_table(
    candidates: Sequence[Candidate],
    measured: Measurement,
    *,
    labels: np.ndarray,
    target: Target,
    batch_size: int,
) -> pd.DataFrame:
    """One row per candidate: what it is, its quality, latency, energy, and the budgets it fits.

    The columns of :func:`quality_table`, and what the candidates of the first seed cost.
    ``latency_relative`` is that of :func:`edgeopt.metrics.latency_statistics`, which compares
    better between machines, and between hours of one, than milliseconds do.
    """
    latency = latency_statistics(
        measured.samples, conditions=measured.conditions, batch_size=batch_size
    )
    table = quality_table(with_failures(candidates, latency), labels=labels, target=target)
    table = table.merge(latency.drop(columns="error"), "left", "candidate")
    return with_energy(table, target=target, batch_size=batch_size)


def quality_table(
    candidates: Sequence[Candidate], *, labels: np.ndarray, target: Target
) -> pd.DataFrame:
    """One row per candidate: what it is, its quality, and the budgets it fits.

    ``candidates`` are those of all seeds, prepared on the images of ``labels`` [N]: quality is
    that of :func:`with_seeds`, all else is of the seed that comes first, which is measured.
    """
    first = [c for c in candidates if c.spec.seed == candidates[0].spec.seed]
    return apply_budgets(
        with_seeds(candidate_table(first), candidates, labels=labels),
        memory_budgets_mb=target.memory_budgets_mb,
        active_memory_budget_mb=target.active_memory_budget_mb,
    )


def candidate_table(candidates: Sequence[Candidate]) -> pd.DataFrame:
    """One row per candidate: what it is, its facts, its status and its error."""
    rows = [
        {
            "candidate": candidate.name,
            **{name: getattr(candidate.spec, name) for name in SPEC_COLUMNS},
            **candidate.facts,
            "status": "failed" if candidate.error else "ok",
            "error": candidate.error,
        }
        for candidate in candidates
    ]
    columns = ["candidate", *SPEC_COLUMNS, *FACT_COLUMNS, "status", "error"]
    return pd.DataFrame(rows).reindex(columns=columns)


def with_energy(table: pd.DataFrame, *, target: Target, batch_size: int) -> pd.DataFrame:
    """Scale the latencies to the target, and add both energy tiers.

    ``latency_kind`` says ``measured``, or ``estimated`` once ``latency_multiplier`` is not 1.
    Both tiers are of one call, on ``batch_size`` images. The model takes each weight and the peak
    activations to move once from and to memory.
    """
    times = [n for n in table if n.startswith(("latency_", "call_floor_")) and n.endswith("_ms")]
    scaled = table.assign(
        **{name: table[name] * target.latency_multiplier for name in times},
        throughput_sps=table["throughput_sps"] / target.latency_multiplier,
        latency_kind="measured" if target.latency_multiplier == 1 else "estimated",
    )
    ok = scaled["status"] == "ok"
    model = [
        energy_model_j(
            macs=batch_size * row.macs,
            memory_bytes=row.weight_bytes + row.peak_activation_bytes,
            precision=row.precision,
            int8_mac_share=row.int8_mac_share,
        )
        for row in scaled[ok].itertuples()
    ]
    return scaled.assign(
        energy_proxy_j=energy_proxy_j(scaled["latency_ms"], power_watts=target.power_watts),
        energy_model_j=pd.Series(model, index=scaled.index[ok], dtype=float),
    )
