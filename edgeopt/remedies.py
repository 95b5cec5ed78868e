"""The remedies for lost int8 accuracy: each turns a recipe into another, cheapest first."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import pandas as pd
from torch import Tensor, nn

from edgeopt.bias_correction import correct_bias
from edgeopt.equalization import equalize
from edgeopt.export import Artifact, export_artifact
from edgeopt.export_onnx import CALIBRATIONS, INPUT, Int8Options
from edgeopt.qdq import export_mixed_int8, nodes_around, prepared_fp32

Calibration = tuple[tuple[Tensor, Tensor], ...]


@dataclass(frozen=True, eq=False)
class Recipe:
    """How one ONNX Runtime artifact is made from fp32 weights."""

    model: nn.Module
    calibration: str = "minmax"
    float_nodes: frozenset[str] = frozenset()
    precision: str = "int8"


@dataclass(frozen=True, eq=False)
class Remedy:
    """A named way to a recipe; making it may cost time, and may fail."""

    name: str
    make: Callable[[], Recipe]


def export_recipe(
    recipe: Recipe, path: Path, *, input_shape: tuple[int, ...], calibration: Calibration
) -> Artifact:
    """Write the artifact of a recipe."""
    if recipe.precision != "int8":
        return export_artifact(
            recipe.model,
            path,
            runtime="onnxruntime",
            precision=recipe.precision,
            input_shape=input_shape,
        )
    return export_mixed_int8(
        recipe.model,
        path,
        input_shape=input_shape,
        float_nodes=recipe.float_nodes,
        calibration_loader=calibration,
        calibration_batches=len(calibration),
        options=Int8Options(calibration=recipe.calibration),
    )


def rescaling_remedies(model: nn.Module, *, images: Tensor) -> Iterator[Remedy]:
    """Other ranges for the same function: calibration methods, then equalization."""
    for method in CALIBRATIONS:
        yield Remedy(f"calibration: {method}", lambda method=method: Recipe(model, method))
    yield Remedy("equalization by weights", lambda: Recipe(equalize(model)))
    for method in CALIBRATIONS:
        yield Remedy(
            f"equalization by activations, {method}",
            lambda method=method: Recipe(equalize(model, images=images), method),
        )


def bias_remedy(recipe: Recipe, *, calibration: Calibration) -> Remedy:
    """Bias correction on top of a recipe."""
    return Remedy(
        "bias correction",
        lambda: replace(
            recipe,
            model=correct_bias(
                recipe.model, calibration_loader=calibration, calibration_batches=len(calibration)
            ),
        ),
    )


def float_layer_remedies(
    recipe: Recipe, diagnosis: pd.DataFrame, *, counts: Sequence[int], input_shape: tuple[int, ...]
) -> Iterator[Remedy]:
    """Leave the most sensitive layers in float, more and more of them."""
    layers = [name for name in diagnosis["layer"].unique() if name != INPUT]
    graph = prepared_fp32(recipe.model, input_shape=input_shape)
    done: set[frozenset[str]] = set()
    for count in (n for n in counts if n <= len(layers)):
        nodes = frozenset().union(*(nodes_around(graph, layer) for layer in layers[:count]))
        if nodes in done:
            continue
        done.add(nodes)
        yield Remedy(
            f"{count} most sensitive layer{'s' * (count > 1)} in float",
            lambda nodes=nodes: replace(recipe, float_nodes=nodes),
        )
