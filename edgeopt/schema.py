"""Names, units and vocabularies of every table, written once."""

import re
from dataclasses import dataclass

RUNTIMES = ("torch", "onnxruntime", "executorch", "openvino")
PRECISIONS = ("fp32", "fp16", "bf16", "int8", "int8-dynamic")
INT8_PRECISIONS = ("int8", "int8-dynamic")
PRECISIONS_OF_RUNTIME = {
    "torch": ("fp32", "fp16", "int8"),
    "onnxruntime": ("fp32", "int8", "int8-dynamic"),
    "executorch": ("fp32", "int8"),
    "openvino": ("fp32", "bf16", "int8"),
}
# (weight, activation) bytes of an element; int8 keeps its 1-D parameters (biases) in 32 bits.
ELEMENT_BYTES = {
    "fp32": (4, 4),
    "fp16": (2, 2),
    "bf16": (2, 2),
    "int8": (1, 1),
    "int8-dynamic": (1, 4),
}
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
    """Write a network's name so that a file can bear it: ``my.nets:make`` as my-nets-make."""
    return re.sub(r"[^A-Za-z0-9_-]+", "-", name)


def require_known(value: str, *, allowed: tuple[str, ...], what: str) -> str:
    """Return ``value``, or raise ``ValueError`` naming what it is and what is allowed."""
    if value not in allowed:
        raise ValueError(f"unknown {what} {value!r}; allowed: {', '.join(allowed)}")
    return value


def require_at_least(smallest: int, **counts: int) -> None:
    """Raise ``ValueError`` naming the first count below ``smallest``."""
    for name, value in counts.items():
        if value < smallest:
            raise ValueError(f"{name} is {value}; allowed: {smallest} or more")
