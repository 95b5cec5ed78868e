"""Names, units and vocabularies of every table, and how numbers are written, all in one place."""

import math
import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from functools import partial
from numbers import Integral
from typing import Annotated, Any

import pydantic.dataclasses
from pydantic import ConfigDict, Field

# A frozen dataclass that checks its fields, and types of fields with the range that is allowed.
checked_spec = partial(pydantic.dataclasses.dataclass, frozen=True, config=ConfigDict(strict=True))
Positive = Annotated[int, Field(ge=1)]
PositiveFloat = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Share = Annotated[float, Field(ge=0, le=1)]


@dataclass(frozen=True)
class Precision:
    """All that is known of a precision before it is measured.

    Attributes
    ----------
    arithmetic : str
        The type that it multiplies in: fp32, fp16, bf16 or int8.
    weight_bytes, activation_bytes : int
        Of an element; int8 keeps its 1-D parameters (biases) in 32 bits.
    mac_picojoules : float
        One multiplication and one addition at 45 nm, 0.9 V: Horowitz, "Computing's Energy
        Problem", ISSCC 2014, fig. 1.1.9, doi:10.1109/ISSCC.2014.6757323. An int8 product is summed
        in 32-bit integers; the paper has no bf16, which is charged as its 16-bit float.
    color, hatch, line : str
        How every figure draws it. Okabe and Ito's colour-blind safe set
        (jfly.uni-koeln.de/color), chosen so that grey values keep the precisions apart in print.
    """

    arithmetic: str
    weight_bytes: int
    activation_bytes: int
    mac_picojoules: float
    color: str
    hatch: str
    line: Any


PRECISIONS = {
    "fp32": Precision("fp32", 4, 4, 3.7 + 0.9, "#222222", "", "-"),
    "fp16": Precision("fp16", 2, 2, 1.1 + 0.4, "#56B4E9", "\\\\", ":"),
    "bf16": Precision("bf16", 2, 2, 1.1 + 0.4, "#0072B2", "..", "--"),
    "int8": Precision("int8", 1, 1, 0.2 + 0.1, "#D55E00", "//", "-."),
    "int8-mixed": Precision("int8", 1, 1, 0.2 + 0.1, "#681E68", "\\\\//", (0, (3, 1, 1, 1))),
    "int8-dynamic": Precision("int8", 1, 4, 0.2 + 0.1, "#F0C808", "xx", (0, (5, 1, 1, 1, 1, 1))),
}
# Static int8 of which less than 95% of the MACs are integer; made by no request, only found.
MIXED = "int8-mixed"
STATIC_INT8 = ("int8", MIXED)
REQUESTED_PRECISIONS = tuple(name for name in PRECISIONS if name != MIXED)
INT8_PRECISIONS = tuple(name for name, p in PRECISIONS.items() if p.arithmetic == "int8")
# Baseline and pruned networks have the same epochs behind them, pretrained ones fewer.
UNPRUNED_RECIPES = ("pretrained", "baseline")
PRUNED_RECIPES = ("one-shot", "fine-tuned", "scratch")  # of the study; the search adds its own
RECIPES = (*UNPRUNED_RECIPES, *PRUNED_RECIPES, "one-epoch")
CRITERIA = ("l1", "l2", "taylor", "random")
DATASETS = ("fashion-mnist-20k", "fashion-mnist", "mnist")

MIB = 2**20
MIN_SAMPLES_P95 = 130
MIN_SAMPLES_P99 = 662


@dataclass(frozen=True)
class Column:
    """A table column: its title in words, its unit, and what it means where the title is short.

    Numbers of the unit ``%`` and ``points`` are kept as shares (0.02 is 2%), of the unit ``MiB``
    and ``bytes`` are shown in what suits their size, of ``J`` with an SI prefix.
    """

    title: str
    unit: str = ""
    meaning: str = ""


TIMES, MINUS, DASH = "\N{MULTIPLICATION SIGN}", "\N{MINUS SIGN}", "\N{EN DASH}"
COLUMNS = {
    "candidate": Column("Candidate", meaning="Network, level, runtime and precision in one name."),
    "model": Column("Network"),
    "pruning_level": Column(
        "Pruning level", "%", "Share of the channels that every prunable layer lost."
    ),
    "level_reached": Column("Level reached", "%", "Share of all prunable channels that is gone."),
    "precision": Column("Precision", meaning="Type that the executed graph multiplies in."),
    "runtime": Column("Runtime"),
    "recipe": Column("Training recipe", meaning="How the network came by its weights."),
    "int8_recovery": Column("int8 recovery", meaning="What became of an int8 that collapsed."),
    "outlier_ratio": Column(
        "Outlier ratio", meaning="Largest magnitude of the widest channel over the median one's."
    ),
    "sqnr_db": Column("SQNR", "dB", "Signal over rounding noise, of the median channel."),
    "accuracy_alone": Column("Accuracy, alone", "%", "With this tensor alone rounded to int8."),
    "remedy_accuracy": Column(
        "Accuracy", "%", "On all validation images or, far from the goal, on some of calibration."
    ),
    "simulated": Column(
        "Simulated",
        meaning="An estimate, by int8 as torch computes it: no file was written.",
    ),
    "tied_to": Column("Tied to", meaning="Other layers that write the same channel group."),
    "reach": Column("Reach", meaning="What can shrink the widest channel."),
    "remedy": Column("Remedy", meaning="What repaired an int8 that had lost too much accuracy."),
    "status": Column("Status", meaning="ok, or failed with its error."),
    "standing": Column("Standing", meaning="Where the rule of the decision put it."),
    "decided_by": Column("Decided by", meaning="What it was refused for, misses or leaves open."),
    "artifact": Column("File", meaning="Below artifacts/sweep of the run."),
    "artifact_sha256": Column("SHA-256 of the file"),
    "regret": Column("Regret", "%", "How much longer than the device's own pick it takes."),
    "tau": Column("Kendall's tau of the orders"),
    "load_ms": Column("Loading", "ms"),
    "first_call_ms": Column("First call", "ms"),
    "clock_mhz": Column("Clock", "MHz"),
    "temperature_c": Column("Temperature", "\N{DEGREE SIGN}C"),
    "parity_difference": Column(
        "Difference from torch", meaning="Of the exported float logits, as a share of the largest."
    ),
    "parity_agreement": Column(
        "Agreement with torch", "%", "Images on which the exported float network answers alike."
    ),
    "samples": Column("Timed calls"),
    "seeds": Column("Seeds", meaning="Trainings that the accuracy is a mean of."),
    "active_budget_mb": Column("Memory budget", "MiB", "Of weights."),
    "rss_unavailable": Column("Why its memory is not known"),
    "error": Column("Error"),
    "accuracy": Column("Validation accuracy", "%", "Mean over the seeds."),
    "accuracy_low": Column("Validation accuracy, low end", "%", "Of the 95% interval."),
    "accuracy_high": Column("Validation accuracy, high end", "%", "Of the 95% interval."),
    "test_accuracy": Column("Test accuracy", "%", "Scored once, after the choice."),
    "test_accuracy_low": Column("Test accuracy, low end", "%", "Of the 95% interval."),
    "test_accuracy_high": Column("Test accuracy, high end", "%", "Of the 95% interval."),
    "test_macro_f1": Column("Macro F1 on test images", "%"),
    "macro_f1": Column("Macro F1", "%", "Mean over classes of the F1 score, and over the seeds."),
    "recall": Column("Recall", "%"),
    "agreement": Column(
        "Agreement with fp32", "%", "Images on which it answers as its fp32 parent does."
    ),
    "latency_ms": Column("Latency, mean", "ms"),
    "latency_std_ms": Column("Latency, standard deviation", "ms"),
    "latency_p10_ms": Column(
        "Latency, undisturbed",
        "ms",
        "Tenth percentile of the calls, of a network with any weights.",
    ),
    "latency_ratio": Column("Latency, relative to the unpruned network"),
    "map_ms": Column(
        "Latency by the map", "ms", "Measured where networks are timed whole, else predicted."
    ),
    "kept": Column("Importance kept", "%", "Of all channels, by the Taylor criterion."),
    "network": Column("Widths", meaning="Channels of every group of layers, or their digest."),
    "float_layers": Column("Layers in float"),
    "found": Column("Found by the search"),
    "weights_mb": Column("Weights, estimate", "MiB"),
    "latency_p50_ms": Column("Latency, median", "ms", "Of one call of the runtime."),
    "latency_p50_low_ms": Column("Latency, median, low end", "ms", "Of the 95% interval."),
    "latency_p50_high_ms": Column("Latency, median, high end", "ms", "Of the 95% interval."),
    "latency_p95_ms": Column("Latency, 95th percentile", "ms"),
    "latency_p99_ms": Column(
        "Latency, 99th percentile", "ms", f"Empty below {MIN_SAMPLES_P99} calls."
    ),
    "latency_relative": Column(
        "Latency, median, relative to the reference kernel",
        meaning="The kernel is one matrix product, timed in every round.",
    ),
    "device": Column("Device", meaning="Where latency and memory were measured."),
    "device_accuracy": Column("Validation accuracy on the device", "%"),
    "device_differs": Column("Images answered otherwise than on the host"),
    "device_logits": Column("Logits, against the host's"),
    "call_floor_ms": Column(
        "Floor of a call", "ms", "Median of the runtime's smallest network in the same rounds."
    ),
    "call_share": Column("Share of the call", "%", "Of the latency: the floor over the median."),
    "latency_kind": Column("Kind of latency", meaning="measured, or estimated by a multiplier."),
    "throughput_sps": Column("Reciprocal of the mean latency", "images/s"),
    "memory_mb": Column("Weights", "MiB", "What the memory budgets limit."),
    "weight_bytes": Column("Weights", "bytes"),
    "artifact_bytes": Column("Artifact on disk", "bytes"),
    "peak_activation_bytes": Column(
        "Peak activations", "bytes", "By liveness over the executed graph."
    ),
    "added_rss_bytes": Column(
        "Memory that the file adds",
        "bytes",
        "Resident memory that one more copy, loaded and run, adds to a process of its runtime; "
        "0 where the allocator had room for it.",
    ),
    "peak_rss_bytes": Column(
        "Peak memory of the process",
        "bytes",
        "Of a fresh process that loads and runs the file: Python and the runtime's library "
        "included, which dwarf a small network.",
    ),
    "idle_rss_bytes": Column("Memory of the idle process", "bytes", "Before the file is loaded."),
    "energy_proxy_j": Column(
        "Energy estimate (proxy)", "J", f"Mean latency {TIMES} an assumed power."
    ),
    "energy_model_j": Column(
        "Energy estimate (model)", "J", "Operations and traffic at published 45 nm energies."
    ),
    "energy_measured_j": Column("Energy measured by RAPL", "J"),
    "int8_mac_share": Column("MACs in integers", "%", "Read from the executed graph."),
    "macs": Column("Multiply-accumulates (MACs)"),
    "parameters": Column("Parameters"),
    "macs_kept": Column("MACs kept", "%"),
    "parameters_kept": Column("Parameters kept", "%"),
    "accepted": Column("Fits the memory budget"),
    "accepted_ratio": Column("Share that fits the memory budget", "%"),
    "frontier_probability": Column("Probability of being on the frontier", "%"),
    "accuracy_ties": Column("Candidates as accurate", meaning="By a paired test."),
    "accuracy_drop": Column("Accuracy drop", "points"),
    "quality_drop": Column(
        "Drop of accuracy or macro F1", "points", "Below fp32 of the same images; the larger one."
    ),
    "accuracy_difference": Column("Accuracy, difference", "points"),
    "accuracy_change": Column("Accuracy, change", "points"),
    "macro_f1_change": Column("Macro F1, change", "points"),
    "difference_low": Column("Difference, low end", "points"),
    "difference_high": Column("Difference, high end", "points"),
    "worst_recall_drop": Column("Fall of recall", "points"),
    "worst_recall": Column("Recall", "%"),
    "size_reduction": Column("Size reduction", "%"),
    "latency_reduction": Column("Latency reduction", "%"),
    "shortfall": Column("Largest miss", "%", "As a share of the limit that it misses."),
    "reason": Column("Reason"),
    "p_value": Column("p"),
    "p_holm": Column("p, corrected (Holm)"),
    "file_ratio": Column("File, times smaller than fp32"),
    "speedup": Column("Speed, times that of fp32"),
    "share": Column("Share of the time", "%"),
    "measured_share": Column("Share of the time", "%"),
    "macs_share": Column("Share of the MACs", "%"),
    "measured_ms": Column("Time", "ms"),
    "op": Column("Operator"),
    "val_accuracy": Column("Validation accuracy", "%"),
    "train_accuracy": Column("Training accuracy", "%"),
    "latency_estimate_high_ms": Column("Latency, estimate, high end", "ms"),
    "headroom": Column("Memory left", "%"),
    "arithmetic_intensity": Column("Arithmetic intensity", "MACs/byte"),
    "achieved_gmacs": Column("Achieved", "GMAC/s"),
    "compute_utilization": Column("Of the compute ceiling", "%"),
    "bandwidth_utilization": Column("Of the bandwidth ceiling", "%"),
    "latency_estimate_ms": Column("Latency, estimate", "ms"),
}
SCALES = {"%": 100, "points": 100}
JOULES = ((1, "J"), (1e-3, "mJ"), (1e-6, "\N{MICRO SIGN}J"), (1e-9, "nJ"))


def column(name: str) -> Column:
    """Look a column up; means and budgets by what they are of, others by their name in words.

    A name in ``_ms`` has that unit.
    """
    if name in COLUMNS:
        return COLUMNS[name]
    stem = name.removesuffix("_mean")
    if stem in COLUMNS:
        return replace(COLUMNS[stem], title=f"{COLUMNS[stem].title} (mean)")
    if name.startswith("violates_"):
        return Column(f"Over {name.removeprefix('violates_').removesuffix('mb')} MiB of weights")
    stem = name.removesuffix("_ms")
    words = stem.replace("_", " ")
    return Column(words[:1].upper() + words[1:], "" if stem == name else "ms")


def label(name: str) -> str:
    """Axis label, e.g. ``Latency, median (ms)``; an axis of shares has the % at its ticks."""
    shown = column(name)
    return f"{shown.title} ({shown.unit})" if shown.unit not in ("", "%") else shown.title


def known(value: Any) -> bool:
    """Whether a cell holds something: not None, not NaN, not empty."""
    return value not in (None, "") and not (isinstance(value, float) and math.isnan(value))


def significant(value: float) -> str:
    """Write a number with at most four significant digits; a count in full."""
    return _with_sign(_four_digits(value))


def _four_digits(value: float) -> str:
    if isinstance(value, Integral):
        return f"{value:,}"
    text = f"{value:.4g}"
    return text if abs(value) < 1000 else f"{float(text):,.0f}"


def signed(value: float, *, digits: int) -> str:
    """Write a change with its sign; what is written as zero has none."""
    return _with_sign(f"{value:.{digits}f}", plus=True)


def _with_sign(text: str, *, plus: bool = False) -> str:
    """Write a minus for a hyphen, and a plus where asked; what is written as zero has neither."""
    bare = text.removeprefix("-")
    if not bare.strip("0."):
        return bare
    return f"{'+' if plus and bare == text else ''}{text}".replace("-", MINUS)


def quantity(name: str, value: Any, *, exact: bool = False, signed: bool = False) -> str:
    """Write a number with the unit of its column, e.g. ``20.5 KiB``, ``1.2 points`` or ``89.5%``.

    What is not known is a dash. ``exact`` gives ten digits, and bytes in place of KiB and MiB;
    ``signed`` puts a plus before what is above zero.
    """
    if not known(value):
        return DASH
    scale, unit = display_unit(name, abs(value), exact=exact)
    number = value * scale
    digits = {"%": ",.1f", "points": ".2f"}.get(unit)
    text = f"{number:,.10g}" if exact else f"{number:{digits}}" if digits else _four_digits(number)
    return f"{_with_sign(text, plus=signed)}{'' if unit == '%' else ' '}{unit}".strip()


def display_unit(name: str, largest: float, *, exact: bool = False) -> tuple[float, str]:
    """Scale and unit of a whole table column, whose largest value decides.

    ``exact`` leaves bytes in place of KiB and MiB.
    """
    unit = column(name).unit
    if unit in ("bytes", "MiB"):
        size = MIB if unit == "MiB" else 1
        if exact:
            return size, "bytes"
        return (size / MIB, "MiB") if largest * size >= MIB else (size / 1024, "KiB")
    if unit == "J":
        scale, prefixed = next((s, u) for s, u in JOULES if largest >= s or s == JOULES[-1][0])
        return 1 / scale, prefixed
    return SCALES.get(unit, 1), unit


def file_stem(name: str) -> str:
    """Write a network's name for use in file names: ``my.nets:make`` as my-nets-make."""
    return re.sub(r"[^A-Za-z0-9_-]+", "-", name)


def require_known(value: str, *, allowed: Collection[str], what: str) -> str:
    """Return ``value``, or raise ``ValueError`` naming what it is and what is allowed."""
    if value not in allowed:
        raise ValueError(f"unknown {what} {value!r}; allowed: {', '.join(allowed)}")
    return value


def require_at_least(smallest: int, **counts: int) -> None:
    """Raise ``ValueError`` naming the first count below ``smallest``."""
    for name, value in counts.items():
        if value < smallest:
            raise ValueError(f"{name} is {value}; allowed: {smallest} or more")


def require_columns(df: Any, columns: Sequence[str], *, what: str) -> None:
    """Raise ``ValueError`` naming the columns that ``what`` needs and ``df`` does not have."""
    missing = [column for column in columns if column not in df.columns]
    if missing:
        raise ValueError(
            f"{what} needs the column(s) {', '.join(missing)}; "
            f"the table has: {', '.join(map(str, df.columns)) or 'none'}"
        )
