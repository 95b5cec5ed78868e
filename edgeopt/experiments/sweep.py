"""The study: a grid of candidates, prepared and measured together, one row each."""

import tempfile
from collections.abc import Mapping, Sequence
from concurrent.futures import Executor
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from torch import nn
from torch.utils.data import DataLoader

from edgeopt.decision import Answers, apply_budgets, share_interval
from edgeopt.decision import pareto_frontier as pareto_frontier
from edgeopt.experiments.candidates import Candidate, gather, grid, prepare_candidates
from edgeopt.experiments.measuring import measure_candidates, with_failures
from edgeopt.metrics import (
    Measurement,
    energy_model_j,
    energy_proxy_j,
    latency_statistics,
    per_class_table,
    quality_row,
    relative_latency,
)
from edgeopt.model import train_model as train_model  # the documents' place
from edgeopt.pruning import structured_channel_prune
from edgeopt.quantization import first_batches
from edgeopt.quantization import precision_variant as precision_variant
from edgeopt.runtimes import RUNTIMES
from edgeopt.schema import Positive, PositiveFloat, checked_spec
from edgeopt.system import Int8Scheme

MEAN_FACTS = ("macro_f1", "agreement")
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
    calls_per_round: int = 30,
    threads: int = 1,
    batch_size: int = 1,
    model: str = "small_cnn",
    scheme: Int8Scheme | None = None,
    directory: Path | None = None,
    executor: Executor | None = None,
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
    scheme : Int8Scheme, optional
        Integer types of static int8 in ONNX files; U8S8 when omitted.
    directory : Path, optional
        Keeps the artifacts; a temporary folder when omitted.

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
    models = _networks(base_model, pruning_levels, pruned_models)
    validation = gather(val_loader)
    with tempfile.TemporaryDirectory() as scratch:
        candidates = prepare_candidates(
            specs,
            executor=executor,
            models={(model, 0, level): models[level] for level in pruning_levels},
            validation={model: validation},
            calibration={model: first_batches(calibration_loader, calibration_batches)},
            directory=directory or Path(scratch),
            batch_size=batch_size,
            scheme=scheme,
        )
        measured = measure_candidates(
            candidates,
            {model: validation.take(batch_size).numpy()},
            threads=threads,
            rounds=benchmark_repeats,
            calls_per_round=calls_per_round,
        )
    return sweep_table(candidates, measured, target=target, batch_size=batch_size)


def _networks(
    base: nn.Module, levels: Sequence[float], pruned: Mapping[float, nn.Module] | None
) -> Mapping[float, nn.Module]:
    if pruned is None:
        return {level: structured_channel_prune(base, level) if level else base for level in levels}
    if missing := [level for level in levels if level and level not in pruned]:
        raise ValueError(f"pruned_models has no network of level(s) {missing}; it has: {[*pruned]}")
    return {0.0: base, **pruned}


def sweep_table(
    candidates: Sequence[Candidate],
    measured: Measurement,
    *,
    target: Target,
    batch_size: int,
) -> pd.DataFrame:
    """Join what was prepared with what was measured, add energy, and apply the budgets.

    ``latency_relative`` is :func:`edgeopt.metrics.relative_latency`, which compares better between
    machines, and between hours of one, than milliseconds do.
    """
    latency = latency_statistics(measured.samples, batch_size=batch_size)
    relative = relative_latency(measured.samples, measured.conditions)
    timed = latency.drop(columns="error").assign(
        latency_relative=latency["candidate"].map(relative)
    )
    table = candidate_table(with_failures(candidates, latency)).merge(timed, "left", "candidate")
    table = with_energy(
        table,
        power_watts=target.power_watts,
        latency_multiplier=target.latency_multiplier,
        batch_size=batch_size,
    )
    return apply_budgets(
        table,
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


def with_energy(
    table: pd.DataFrame,
    *,
    power_watts: float,
    latency_multiplier: float = 1.0,
    batch_size: int = 1,
) -> pd.DataFrame:
    """Scale the latencies to another device, when asked to, and add both energy tiers.

    ``latency_kind`` says ``measured``, or ``estimated`` once ``latency_multiplier`` is not 1.
    Both tiers are of one call, on ``batch_size`` images. The model takes each weight and the peak
    activations to move once from and to memory.
    """
    times = [name for name in table if name.startswith("latency_") and name.endswith("_ms")]
    scaled = table.assign(
        **{name: table[name] * latency_multiplier for name in times},
        throughput_sps=table["throughput_sps"] / latency_multiplier,
        latency_kind="measured" if latency_multiplier == 1 else "estimated",
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
        energy_proxy_j=energy_proxy_j(scaled["latency_ms"], power_watts=power_watts),
        energy_model_j=pd.Series(model, index=scaled.index[ok], dtype=float),
    )


def recall_table(
    candidates: Sequence[Candidate], labels: np.ndarray, *, class_names: Sequence[str]
) -> pd.DataFrame:
    """Per-class quality of every prepared candidate, the mean over its seeds.

    Columns: ``class_name, support, precision, recall, f1, candidate``.
    """
    tables = [
        per_class_table(labels, c.logits.argmax(1), class_names=class_names).assign(
            candidate=c.name
        )
        for c in candidates
        if c.logits is not None
    ]
    by_class = pd.concat(tables, ignore_index=True).groupby(
        ["candidate", "class_name"], sort=False, as_index=False
    )
    means = by_class[["support", "precision", "recall", "f1"]].mean()
    columns = ["class_name", "support", "precision", "recall", "f1", "candidate"]
    return means.astype({"support": int})[columns]


def with_seeds(
    sweep: pd.DataFrame, candidates: Sequence[Candidate], *, labels: np.ndarray
) -> pd.DataFrame:
    """Put the means over seeds in the place of the first seed's quality.

    ``candidates`` are those of all seeds, prepared on the same images. Accuracy comes with its
    interval; macro-F1 and agreement are plain means. Adds ``seeds``, the number of trainings. A
    candidate whose first seed failed has no accuracy, whatever the others did.
    """
    table = accuracy_over_seeds(right_answers(candidates, labels=labels))
    facts = [
        {"candidate": c.name, **{name: c.facts.get(name, np.nan) for name in MEAN_FACTS}}
        for c in candidates
        if c.logits is not None
    ]
    means = pd.DataFrame(facts).groupby("candidate", sort=False).mean().reset_index()
    table = table.merge(means, "left", "candidate")
    ran = sweep.loc[sweep["status"] == "ok", "candidate"]
    table = table[table["candidate"].isin(ran)]
    return sweep.drop(columns=[*table.columns[2:]]).merge(table, "left", "candidate")


def answers_of(
    candidates: Sequence[Candidate], *, labels: np.ndarray, class_names: Sequence[str]
) -> Answers:
    """Collect the right answers of the candidates that ran with every seed, on the same images."""
    correct = right_answers(candidates, labels=labels)
    seeds = max(map(len, correct.values()))
    complete = {name: rows for name, rows in correct.items() if len(rows) == seeds}
    return Answers(complete, labels, class_names)


def right_answers(candidates: Sequence[Candidate], *, labels: np.ndarray) -> dict[str, np.ndarray]:
    """Which images [seeds, N] every prepared candidate gets right, by its name."""
    hits: dict[str, list[np.ndarray]] = {}
    for candidate in candidates:
        if candidate.logits is not None:
            hits.setdefault(candidate.name, []).append(candidate.logits.argmax(1) == labels)
    return {name: np.stack(rows) for name, rows in hits.items()}


def accuracy_over_seeds(correct: Mapping[str, np.ndarray]) -> pd.DataFrame:
    """Accuracy of every candidate from its right answers [seeds, images], with its interval.

    Columns: candidate, seeds, accuracy, accuracy_low, accuracy_high. The interval is over both
    other seeds and other images; with one seed, or where all answers are right or all wrong, it
    is Wilson's, over images alone.
    """
    rows = [
        {"candidate": name, "seeds": len(hits), **_seed_interval(hits)}
        for name, hits in correct.items()
    ]
    columns = ["candidate", "seeds", "accuracy", "accuracy_low", "accuracy_high"]
    return pd.DataFrame(rows, columns=columns)


def with_test(
    sweep: pd.DataFrame,
    predicted: Mapping[str, np.ndarray],
    *,
    labels: np.ndarray,
    class_names: Sequence[str],
) -> pd.DataFrame:
    """Add what the test images say of every candidate, from its predicted classes [seeds, N].

    New columns: ``test_accuracy, test_accuracy_low, test_accuracy_high, test_macro_f1``.
    """
    right = {name: classes == labels for name, classes in predicted.items()}
    table = accuracy_over_seeds(right).drop(columns="seeds").set_index("candidate")
    table["macro_f1"] = mean_macro_f1(predicted, labels, class_names=class_names)
    return sweep.join(table.add_prefix("test_"), on="candidate")


def mean_macro_f1(
    predicted: Mapping[str, np.ndarray], labels: np.ndarray, *, class_names: Sequence[str]
) -> pd.Series:
    """Macro-F1 of every candidate's predicted classes [seeds, N], the mean over its seeds."""
    classes = len(class_names)
    means = {
        name: np.mean([quality_row(labels, a, num_classes=classes)["macro_f1"] for a in each])
        for name, each in predicted.items()
    }
    return pd.Series(means, name="macro_f1", dtype=float)


def _seed_interval(hits: np.ndarray) -> dict[str, float]:
    low, high = share_interval(hits)
    return {"accuracy": hits.mean(), "accuracy_low": low, "accuracy_high": high}
