"""The remedies for lost int8 accuracy: each turns a plan into another, cheapest first."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import pandas as pd
from torch import Tensor, nn

from edgeopt.experiments.bias_correction import correct_bias
from edgeopt.quantization import equalize
from edgeopt.runtimes import (
    CALIBRATIONS,
    INPUT,
    Artifact,
    Int8Options,
    export_artifact,
    nodes_around,
    prepared_fp32,
)
from edgeopt.runtimes.onnxruntime import OnnxRuntime
from edgeopt.system import U8S8, Int8Scheme

RUNTIME = OnnxRuntime.name

Calibration = tuple[tuple[Tensor, Tensor], ...]


@dataclass(frozen=True, eq=False)
class Plan:
    """How one ONNX Runtime artifact is made from fp32 weights."""

    model: nn.Module
    calibration: str = "minmax"
    float_nodes: frozenset[str] = frozenset()
    precision: str = "int8"


@dataclass(frozen=True, eq=False)
class Remedy:
    """A named way to a plan, perhaps on top of another remedy; making it may fail."""

    name: str
    make: Callable[[], Plan]
    based_on: str = ""


def export_plan(
    plan: Plan,
    path: Path,
    *,
    input_shape: tuple[int, ...],
    calibration: Calibration,
    scheme: Int8Scheme = U8S8,
) -> Artifact:
    """Write the artifact of a plan."""
    options = Int8Options(plan.calibration, scheme=scheme, float_nodes=plan.float_nodes)
    return export_artifact(
        plan.model,
        path,
        runtime=RUNTIME,
        precision=plan.precision,
        input_shape=input_shape,
        calibration=calibration,
        options=options if plan.precision == "int8" else Int8Options(),
    )


def rescaling_remedies(model: nn.Module, *, images: Tensor) -> Iterator[Remedy]:
    """Other ranges for the same function: calibration methods, then equalization."""
    for method in CALIBRATIONS:
        yield Remedy(f"calibration: {method}", lambda method=method: Plan(model, method))
    yield Remedy("equalization by weights", lambda: Plan(equalize(model)))
    for method in CALIBRATIONS:
        yield Remedy(
            f"equalization by activations, {method}",
            lambda method=method: Plan(equalize(model, images=images), method),
        )


def bias_remedy(plan: Plan, *, calibration: Calibration) -> Remedy:
    """Bias correction on top of a plan."""
    return Remedy(
        "bias correction",
        lambda: replace(plan, model=correct_bias(plan.model, calibration=calibration)),
    )


def float_layer_remedies(
    plan: Plan, diagnosis: pd.DataFrame, *, counts: Sequence[int], input_shape: tuple[int, ...]
) -> Iterator[Remedy]:
    """Leave the most sensitive layers in float, more and more of them."""
    layers = [name for name in diagnosis["layer"].unique() if name != INPUT]
    graph = prepared_fp32(plan.model, input_shape=input_shape)
    done: set[frozenset[str]] = set()
    for count in (n for n in counts if n <= len(layers)):
        nodes = frozenset().union(*(nodes_around(graph, layer) for layer in layers[:count]))
        if nodes in done:
            continue
        done.add(nodes)
        yield Remedy(
            f"{count} most sensitive layer{'s' * (count > 1)} in float",
            lambda nodes=nodes: replace(plan, float_nodes=nodes),
        )


def dynamic_remedy(plan: Plan) -> Remedy:
    """Measure the ranges of activations anew for every image, of the plan's weights."""
    return Remedy("dynamic", lambda: Plan(plan.model, precision="int8-dynamic"))


def training_remedy(plan: Plan, train_quantized: Callable[[nn.Module], nn.Module]) -> Remedy:
    """Train the plan's weights under simulated int8."""
    return Remedy(
        "quantization-aware training",
        lambda: Plan(train_quantized(plan.model), plan.calibration),
    )
