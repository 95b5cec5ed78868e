"""The remedies for lost int8 accuracy: each turns a plan into another, cheapest first."""

import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn

from edgeopt.data import Split
from edgeopt.experiments.recovery.diagnosis import COLUMNS, INSERTED_SCALE, diagnose
from edgeopt.model import layers_as_modules, predict_logits
from edgeopt.quantization import OUTLIER, calibration_images, correct_bias, equalize
from edgeopt.runtimes import CALIBRATIONS, Artifact, Runtime

logger = logging.getLogger(__name__)

AS_IT_IS = "static int8 as it is"
DIAGNOSIS_IMAGES = 128
SCREENING_IMAGES = 256

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


@dataclass(frozen=True, eq=False)
class Progress:
    """How far the remedies came.

    The ``best`` plan so far with the name of its remedy, whether one ``reached`` the goal, and
    whether the latest left so many layers in float that it is ``mixed``.
    """

    best: Callable[[], tuple[str, Plan]]
    reached: Callable[[], bool]
    mixed: Callable[[], bool]


class Rewrites:
    """What is found of one network once, for every runtime: networks, files, answers, diagnoses.

    ``model`` is the network with its layers as modules, named as in its diagnosis, or as it was
    given where it cannot be rewritten.
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        calibration: Iterable[tuple[Tensor, Tensor]],
        train_quantized: Train | None = None,
    ) -> None:
        self.model, self.train_quantized = model, train_quantized
        self.calibration = tuple(calibration)
        self._images = torch.cat(calibration_images(self.calibration))
        with suppress(ValueError):  # every rescaling raises it again, as its attempt's error
            self.model = layers_as_modules(model, example=self._images)
        labels = torch.cat([labels for _, labels in self.calibration])
        self.screening = Split(self._images[:SCREENING_IMAGES], labels[:SCREENING_IMAGES])
        self.artifacts: dict[tuple, Artifact] = {}
        self._made: dict[tuple, Any] = {}

    def answers(self, split: Split) -> np.ndarray:
        """Classes [N] that the network gives in torch."""
        return self._once(
            "answers", split.digest, lambda _: predict_logits(self.model, split).argmax(1).numpy()
        )

    def diagnosis(self, model: nn.Module) -> pd.DataFrame:
        """Which tensors 8 bits do not hold, the noisiest first; none where nothing can tell."""
        some = self.screening.first(DIAGNOSIS_IMAGES)
        try:
            return self._once("diagnosis", model, lambda m: diagnose(m, some, judged=0))
        except Exception as error:  # of a user's code; what needs no diagnosis is still tried
            logger.warning("%s cannot be diagnosed: %s", type(model).__name__, error)
            return pd.DataFrame(columns=COLUMNS)

    def equalized(self) -> nn.Module:
        """Channel groups rescaled."""
        return self._once("equalized", self.model, lambda m: equalize(m, images=self._images))

    def inserted(self) -> nn.Module:
        """Channel groups rescaled, and scales inserted where only these help."""
        return self._once(
            "inserted", self.model, lambda m: equalize(m, images=self._images, inserted=True)
        )

    def corrected(self, model: nn.Module, *, weight_steps: int) -> nn.Module:
        """Biases corrected for what rounding does to every channel's mean."""
        how = {"calibration": self.calibration, "weight_steps": weight_steps}
        return self._once(
            f"corrected for {weight_steps} steps", model, lambda m: correct_bias(m, **how)
        )

    def trained(self, model: nn.Module) -> nn.Module:
        """Weights trained under simulated int8."""
        return self._once("trained", model, self.train_quantized)

    def _once(self, kind: str, subject: Any, make: Callable[[Any], Any]) -> Any:
        key = (kind, subject)  # modules compare by identity
        if key not in self._made:
            try:
                self._made[key] = make(subject)
            except Exception as error:  # of a user's code too, which nothing should run twice
                self._made[key] = error
        if isinstance(self._made[key], Exception):
            raise self._made[key]
        return self._made[key]


def rescalings(rewrites: Rewrites) -> list[Remedy]:
    """List what gives the same function other ranges, that first to which the diagnosis points."""
    diagnosis = rewrites.diagnosis(rewrites.model)
    reach = diagnosis.loc[diagnosis["outlier_ratio"] > OUTLIER, "reach"]
    plain = Remedy("channel groups rescaled", lambda: Plan(rewrites.equalized()))
    inserted = Remedy("scales inserted", lambda: Plan(rewrites.inserted()))
    return [inserted, plain] if INSERTED_SCALE in set(reach) else [plain]


def first_remedies(rewrites: Rewrites, *, runtime: Runtime) -> Iterator[Remedy]:
    """Yield other ranges for the same function; where a channel is an outlier, rescaling first."""
    yield Remedy(AS_IT_IS, lambda: Plan(rewrites.model))
    outlier = rewrites.diagnosis(rewrites.model)["outlier_ratio"].max() > OUTLIER
    methods = list(CALIBRATIONS)[1:] if runtime.takes_int8_options else []
    calibrations = [
        Remedy(f"calibration: {method}", lambda method=method: Plan(rewrites.model, method))
        for method in methods
    ]
    rescaling = rescalings(rewrites)
    yield from [*rescaling, *calibrations] if outlier else [*calibrations, *rescaling]


def later_remedies(
    rewrites: Rewrites,
    progress: Progress,
    *,
    runtime: Runtime,
    counts: Sequence[int],
    weight_steps: int,
) -> Iterator[Remedy]:
    """Yield what changes the function; each remedy starts from the best plan before it.

    Where the network can be trained, layers are left in float only until that makes an
    ``int8-mixed``; dynamic ranges, and more layers in float, when training did not suffice.
    """
    name, plan = progress.best()
    yield Remedy(
        "bias correction",
        lambda plan=plan: replace(
            plan, model=rewrites.corrected(plan.model, weight_steps=weight_steps)
        ),
        name,
    )
    name, plan = progress.best()
    in_float = _float_layers(plan, rewrites.diagnosis(plan.model), counts=counts, based_on=name)
    for remedy in in_float:
        yield remedy
        if rewrites.train_quantized is not None and progress.mixed():
            break
    name, plan = progress.best()
    if rewrites.train_quantized is not None:
        trained = "quantization-aware training"
        yield Remedy(
            trained,
            lambda plan=plan: Plan(rewrites.trained(plan.model), plan.calibration),
            name,
        )
    name, plan = progress.best()
    if "int8-dynamic" in runtime.precisions and not progress.reached():
        dynamic = Plan(plan.model, precision="int8-dynamic")
        yield Remedy("dynamic", lambda: dynamic, name)
    while not progress.reached() and (remedy := next(in_float, None)):
        yield remedy


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
