"""The remedies for lost int8 accuracy: each turns a plan into another, cheapest first."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import pandas as pd
import torch
from torch import Tensor, nn

from edgeopt.experiments.diagnosis import REACHES
from edgeopt.quantization import OUTLIER, correct_bias, equalize
from edgeopt.runtimes import CALIBRATIONS, Artifact, Runtime

AS_IT_IS = "static int8 as it is"

Calibration = tuple[tuple[Tensor, Tensor], ...]
Train = Callable[[nn.Module], nn.Module]


@dataclass(frozen=True, eq=False)
class Plan:
    """How one artifact is made from fp32 weights; what of it is a network serves any runtime."""

    model: nn.Module
    calibration: str = "minmax"
    float_layers: frozenset[str] = frozenset()
    precision: str = "int8"


@dataclass(frozen=True, eq=False)
class Remedy:
    """A named way to a plan, perhaps on top of another remedy; making it may fail."""

    name: str
    make: Callable[[], Plan]
    based_on: str = ""


class Rewrites:
    """What remedies make of one network, each network and file once, for every runtime."""

    def __init__(
        self, model: nn.Module, *, calibration: Calibration, train_quantized: Train | None = None
    ) -> None:
        self.model, self.train_quantized = model, train_quantized
        self._calibration = calibration
        self._made: dict[tuple[str, nn.Module], nn.Module | ValueError] = {}
        self.artifacts: dict[tuple, Artifact] = {}

    def equalized(self) -> nn.Module:
        """Channel groups rescaled."""
        return self._once("equalized", self.model, self._equalize)

    def inserted(self) -> nn.Module:
        """Channel groups rescaled, and scales inserted where only these help."""
        return self._once("inserted", self.model, lambda m: self._equalize(m, inserted=True))

    def corrected(self, model: nn.Module) -> nn.Module:
        """Biases corrected for what rounding does to every channel's mean."""
        return self._once(
            "corrected", model, lambda m: correct_bias(m, calibration=self._calibration)
        )

    def trained(self, model: nn.Module) -> nn.Module:
        """Weights trained under simulated int8."""
        return self._once("trained", model, self.train_quantized)

    def _equalize(self, model: nn.Module, *, inserted: bool = False) -> nn.Module:
        images = torch.cat([images for images, _ in self._calibration])
        return equalize(model, images=images, inserted=inserted)

    def _once(self, kind: str, model: nn.Module, make: Train) -> nn.Module:
        key = (kind, model)  # modules compare by identity
        if key not in self._made:
            try:
                self._made[key] = make(model)
            except ValueError as error:
                self._made[key] = error
        if isinstance(self._made[key], ValueError):
            raise self._made[key]
        return self._made[key]


def first_remedies(
    rewrites: Rewrites, *, runtime: Runtime, diagnosis: pd.DataFrame
) -> Iterator[Remedy]:
    """Other ranges for the same function, the one that the diagnosis points to first.

    Where a channel is an outlier, rescaling comes before other calibration methods; where only an
    inserted scale reaches it, that comes first.
    """
    yield Remedy(AS_IT_IS, lambda: Plan(rewrites.model))
    outliers = diagnosis[diagnosis["outlier_ratio"] > OUTLIER]["reach"]
    _, inserted, _ = REACHES
    rescaling = [
        Remedy("channel groups rescaled", lambda: Plan(rewrites.equalized())),
        Remedy("scales inserted", lambda: Plan(rewrites.inserted())),
    ]
    rescaling = rescaling[::-1] if (outliers == inserted).any() else rescaling[:1]
    methods = list(CALIBRATIONS)[1:] if runtime.takes_int8_options else []
    calibrations = [
        Remedy(f"calibration: {method}", lambda method=method: Plan(rewrites.model, method))
        for method in methods
    ]
    yield from [*rescaling, *calibrations] if len(outliers) else [*calibrations, *rescaling]


def later_remedies(
    rewrites: Rewrites,
    best: Callable[[], tuple[str, Plan]],
    *,
    runtime: Runtime,
    diagnosis: pd.DataFrame,
    counts: Sequence[int],
) -> Iterator[Remedy]:
    """Yield what changes the function; each remedy starts from the ``best`` plan before it."""
    name, plan = best()
    yield Remedy(
        "bias correction", lambda: replace(plan, model=rewrites.corrected(plan.model)), name
    )
    name, plan = best()
    yield from _float_layers(plan, diagnosis, counts=counts, based_on=name)
    name, plan = best()
    if "int8-dynamic" in runtime.precisions:
        yield Remedy("dynamic", lambda: Plan(plan.model, precision="int8-dynamic"), name)
    if rewrites.train_quantized is not None:
        trained = "quantization-aware training"
        yield Remedy(trained, lambda: Plan(rewrites.trained(plan.model), plan.calibration), name)


def _float_layers(
    plan: Plan, diagnosis: pd.DataFrame, *, counts: Sequence[int], based_on: str
) -> Iterator[Remedy]:
    """Leave the noisiest layers in float, more and more of them."""
    layers = [
        name
        for name in diagnosis["layer"]
        if isinstance(plan.model.get_submodule(name), (nn.Conv2d, nn.Linear))
    ]
    for count in (count for count in counts if count <= len(layers)):
        left = frozenset(layers[:count])
        yield Remedy(
            f"{count} noisiest layer{'s' * (count > 1)} in float",
            lambda left=left: replace(plan, float_layers=left),
            based_on,
        )
