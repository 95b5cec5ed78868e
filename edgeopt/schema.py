"""Names, units and vocabularies of every table, written once."""

import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from functools import partial
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
    "int8-dynamic": Precision("int8", 1, 4, 0.2 + 0.1, "#F0C808", "xx", (0, (5, 1, 1, 1, 1, 1))),
}
INT8_PRECISIONS = tuple(name for name, p in PRECISIONS.items() if p.arithmetic == "int8")
# Baseline and pruned networks have the same epochs behind them, pretrained ones fewer.
RECIPES = ("pretrained", "baseline", "one-shot", "fine-tuned", "scratch")
PRUNED_RECIPES = RECIPES[2:]
CRITERIA = ("l1", "l2", "taylor", "random")
DATASETS = ("fashion-mnist-20k", "fashion-mnist", "mnist")

MIB = 2**20
MIN_SAMPLES_P95 = 130
MIN_SAMPLES_P99 = 662


@dataclass(frozen=True)
class Column:
    """A table column: what it is called in words and in which unit it is counted."""

    title: str
    unit: str = ""

    @property
    def label(self) -> str:
        """Axis label, e.g. ``Latency, median (ms)``."""
        return f"{self.title} ({self.unit})" if self.unit else self.title


COLUMNS = {
    "candidate": Column("Candidate"),
    "pruning_level": Column("Pruning level"),
    "precision": Column("Precision"),
    "runtime": Column("Runtime"),
    "recipe": Column("Training recipe"),
    "accuracy": Column("Validation accuracy"),
    "test_accuracy": Column("Test accuracy"),
    "macro_f1": Column("Macro F1"),
    "latency_ms": Column("Latency, mean", "ms"),
    "latency_std_ms": Column("Latency, standard deviation", "ms"),
    "latency_p50_ms": Column("Latency, median", "ms"),
    "latency_p95_ms": Column("Latency, 95th percentile", "ms"),
    "latency_relative": Column("Latency, median, relative to the reference kernel"),
    "throughput_sps": Column("Throughput of calls one after the other", "images/s"),
    "memory_mb": Column("Weights", "MiB"),
    "weight_bytes": Column("Weights", "bytes"),
    "artifact_bytes": Column("Artifact on disk", "bytes"),
    "peak_activation_bytes": Column("Peak activations", "bytes"),
    "peak_rss_bytes": Column("Peak process RSS", "bytes"),
    "energy_proxy_j": Column("Energy estimate (proxy): mean latency x assumed power", "J"),
    "energy_model_j": Column("Energy estimate (model): 45 nm operations and traffic", "J"),
    "energy_measured_j": Column("Energy measured by RAPL", "J"),
    "int8_mac_share": Column("Share of MACs in integer arithmetic"),
    "agreement": Column("Top-1 agreement with the fp32 parent"),
    "macs": Column("Multiply-accumulates", "MACs"),
    "parameters": Column("Parameters"),
}


def label(column: str) -> str:
    """Axis label of a column, falling back to its name in words."""
    return COLUMNS[column].label if column in COLUMNS else column.replace("_", " ")


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
