"""The latency of a deep network by its widths: tables of its layers, timed alone and added up.

A layer that is timed alone finds its weights in the cache; in a large network they come from
memory. What whole networks take is therefore explained by three numbers: a base, a scale of the sum
of the layers, and a time per MiB of weights.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import Executor
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import pandas as pd
import torch
from scipy.optimize import nnls
from torch import Tensor, nn

from edgeopt.data import Split
from edgeopt.experiments import widths_label
from edgeopt.pruning import (
    LayerChannels,
    channel_widths,
    checked_choices,
    layer_channels,
    prune_to_widths,
)
from edgeopt.pruning.probing import run_named
from edgeopt.search.timing import DIED, Bench, Timed, time_networks

FITTED, CHECKED = 10, 30  # networks that scale the sum of the layers, and that it is checked on
DRAWS = 1000  # at most, until these are all different
SHAPES = 3000  # of layers that are timed at most
CALIBRATION_IMAGES = 8
FLOOR = "floor"


@dataclass(frozen=True)
class LayerShape:
    """A convolution or linear layer with its widths: what its latency depends on."""

    kind: str
    inputs: int
    outputs: int
    groups: int = 1
    size: tuple[int, int] = (1, 1)
    kernel: tuple[int, int] = (1, 1)
    stride: tuple[int, int] = (1, 1)
    padding: tuple[int, int] = (0, 0)
    dilation: tuple[int, int] = (1, 1)

    @property
    def name(self) -> str:
        """The shape in words, which no other shape has."""
        sizes = (self.size, self.kernel, self.stride, self.padding, self.dilation)
        rest = "-".join("x".join(map(str, pair)) for pair in sizes)
        return f"{self.kind}-{self.inputs}-{self.outputs}-{self.groups}-{rest}"

    @property
    def weights(self) -> int:
        """Weights and biases that the layer holds."""
        return self.outputs * (self.inputs // self.groups * math.prod(self.kernel) + 1)

    def build(self) -> nn.Module:
        """Build the layer, with random weights and a bias, as a network of one layer."""
        if self.kind == "linear":
            return nn.Sequential(nn.Flatten(), nn.Linear(self.inputs, self.outputs)).eval()
        layer = nn.Conv2d(
            self.inputs,
            self.outputs,
            self.kernel,
            self.stride,
            self.padding,
            self.dilation,
            self.groups,
        )
        return nn.Sequential(layer).eval()


@dataclass(frozen=True)
class Layer:
    """A layer of a network: its shape there, and which groups of channels it reads and writes."""

    shape: LayerShape
    channels: LayerChannels
    whole: Mapping[str, int]

    def with_widths(self, widths: Mapping[str, int]) -> LayerShape:
        """Shape of the layer in the network with these widths."""
        lost = [self._lost(name, widths.get(name, whole)) for name, whole in self.whole.items()]
        return self._without(*map(sum, zip(*lost, strict=True)))

    def shapes(self, choices: Mapping[str, Sequence[int]]) -> list[LayerShape]:
        """Every shape that the choices of its groups give it, each once.

        A layer that reads many groups (DenseNet's concatenations) has far fewer shapes than there
        are choices: what counts is how many channels are gone.
        """
        gone = {(0, 0)}
        for name, own in choices.items():
            lost = {self._lost(name, width) for width in own}
            gone = {(i + some, o + others) for i, o in gone for some, others in lost}
        return [self._without(*pair) for pair in sorted(gone)]

    def _lost(self, group: str, width: int) -> tuple[int, int]:
        """Input and output channels that the layer loses with a group's."""
        gone = self.whole[group] - width
        sides = (self.channels.inputs, self.channels.outputs)
        inputs, outputs = (round(side.get(group, 0) * gone) for side in sides)
        return inputs, outputs

    def _without(self, inputs: int = 0, outputs: int = 0) -> LayerShape:
        inputs, outputs = self.shape.inputs - inputs, self.shape.outputs - outputs
        depthwise = self.shape.groups == self.shape.inputs > 1
        groups = outputs if depthwise else self.shape.groups
        return replace(self.shape, inputs=inputs, outputs=outputs, groups=groups)


@dataclass(frozen=True, eq=False)
class LayerMap:
    """Latency of a network by the sum of its layers' own latencies, and by its weights.

    ``terms`` are milliseconds that every network takes, the factor of the sum, and milliseconds per
    MiB of fp32 weights.

    Attributes
    ----------
    layers : dict
        By name, in the network's order.
    table : DataFrame
        One row per shape: ``shape, latency_ms``, without the call's floor, ``error``.
    checked : DataFrame
        One row per network that the sum was compared with: ``network, fitted, latency_p10_ms,
        predicted_ms, relative_error``; the fitted ones set ``terms``.
    """

    layers: Mapping[str, Layer]
    choices: Mapping[str, Sequence[int]]
    table: pd.DataFrame
    float_layers: tuple[str, ...] = ()
    terms: tuple[float, float, float] = (0.0, 1.0, 0.0)
    checked: pd.DataFrame | None = None

    def ms(self, widths: Mapping[str, int]) -> float:
        """Latency of the network with these widths; NaN where a layer could not be timed."""
        return float(np.dot(self.terms, self.features(widths)))

    def features(self, widths: Mapping[str, int]) -> tuple[float, float, float]:
        """Return what the terms are of: 1, the sum of the layers, and MiB of fp32 weights."""
        weights = sum(count_weights(self.layers, widths).values())
        return 1.0, self._sum_ms(widths), 4 * weights / 2**20

    def _sum_ms(self, widths: Mapping[str, int]) -> float:
        known = dict(zip(self.table["shape"], self.table["latency_ms"], strict=True))
        keys = (
            _key(layer.with_widths(widths), name in self.float_layers)
            for name, layer in self.layers.items()
        )
        return sum(known.get(key, math.nan) for key in keys)

    def require_whole(self, whole: Mapping[str, int]) -> None:
        """Raise ``ValueError``, with the cause, where a layer of this network was not timed."""
        if math.isnan(self._sum_ms(whole)):
            row = self.table[self.table["error"] != ""].iloc[0]
            raise ValueError(f"{row['shape']} could not be timed: {row['error']}")

    @property
    def died(self) -> bool:
        """Whether a worker's death left a gap, which another try may fill."""
        return self.table["error"].str.startswith(DIED).any()

    def slower(self, factor: float) -> "LayerMap":
        """Return the map with every latency that many times as long."""
        return replace(self, terms=tuple(factor * term for term in self.terms))

    def to_dict(self) -> dict[str, Any]:
        """Return what a :class:`edgeopt.system.Store` keeps."""
        return {
            "layers": {name: asdict(layer) for name, layer in self.layers.items()},
            "choices": {name: list(own) for name, own in self.choices.items()},
            "table": self.table.to_dict("list"),
            "float_layers": self.float_layers,
            "terms": self.terms,
            "checked": self.checked.to_dict("list"),
        }

    @classmethod
    def from_dict(cls, kept: Mapping[str, Any]) -> "LayerMap":
        """Build it from what was kept."""
        layers = {
            name: Layer(LayerShape(**own["shape"]), LayerChannels(**own["channels"]), own["whole"])
            for name, own in kept["layers"].items()
        }
        tables = {name: pd.DataFrame(kept[name]) for name in ("table", "checked")}
        return cls(**{**kept, "layers": layers, **tables})

    @property
    def numbers(self) -> pd.DataFrame:
        """What the map's figure draws."""
        return self.checked


def layer_map(
    model: nn.Module,
    choices: Mapping[str, Sequence[int]],
    bench: Bench,
    *,
    images: Split,
    calibration: Iterable = (),
    float_layers: tuple[str, ...] = (),
    executor: Executor | None = None,
    seed: int = 0,
) -> LayerMap:
    """Time every shape that a layer of the network can have, and check their sum on whole networks.

    What lies between the layers, and what a runtime saves by seeing them together, is in the terms,
    which whole networks with random widths set by least squares of relative errors; others tell how
    far it is off. ``choices`` and the rest are as in :func:`edgeopt.search.latency_map`. Raises
    ``ValueError`` where layers would have too many shapes, or one of the unpruned network cannot be
    timed.
    """
    example = images.take(1)
    whole = channel_widths(model, example_input=example)
    choices = checked_choices(choices, whole)
    layers = network_layers(model, example)
    table = _shape_table(layers, choices, bench, float_layers=float_layers, executor=executor)
    added = LayerMap(layers, choices, table, float_layers)
    added.require_whole(whole)
    drawn = _drawn(whole, choices, seed=seed)
    built = {widths_label(w): prune_to_widths(model, w, example_input=example) for w in drawn}
    how = (images, calibration, float_layers)
    whole_networks = {name: Timed(own, *how) for name, own in built.items()}
    timed = time_networks(whole_networks, bench, to=widths_label(whole), executor=executor)
    return _fitted(added, timed, np.array([added.features(w) for w in drawn]))


def _shape_table(
    layers: Mapping[str, Layer],
    choices: Mapping[str, Sequence[int]],
    bench: Bench,
    *,
    float_layers: tuple[str, ...],
    executor: Executor | None,
) -> pd.DataFrame:
    """Time every shape of every layer alone."""
    networks = {FLOOR: _timed(LayerShape("conv", 1, 1), bench)}
    for name, layer in layers.items():
        for shape in layer.shapes(choices):
            in_float = name in float_layers
            networks[_key(shape, in_float)] = _timed(shape, bench, in_float=in_float)
    if (count := len(networks) - 1) > SHAPES:
        raise ValueError(
            f"layers have {count:,} shapes by these widths; allowed: at most {SHAPES:,}, "
            "which fewer widths in search.channels give"
        )
    timed = time_networks(networks, bench, to=FLOOR, executor=executor)
    floor, alone = timed["latency_p10_ms"].iloc[0], timed.iloc[1:]
    own = (alone["latency_p10_ms"] - floor).clip(lower=0)
    return alone[["network", "error"]].rename(columns={"network": "shape"}).assign(latency_ms=own)


def network_layers(model: nn.Module, example: Tensor) -> dict[str, Layer]:
    """Describe every convolution and linear layer of a network."""
    channels = layer_channels(model, example_input=example)
    whole = channel_widths(model, example_input=example)
    _, given = run_named(model, example)
    none = LayerChannels({}, {})
    return {
        name: Layer(_shape(module, given[module][0]), channels.get(name, none), whole)
        for name, module in model.named_modules()
        if isinstance(module, nn.Conv2d | nn.Linear) and module in given
    }


def count_weights(layers: Mapping[str, Layer], widths: Mapping[str, int]) -> dict[str, int]:
    """Count the weights and biases of each of a network's layers, with these widths."""
    return {name: layer.with_widths(widths).weights for name, layer in layers.items()}


def _shape(layer: nn.Conv2d | nn.Linear, images: Tensor) -> LayerShape:
    if isinstance(layer, nn.Linear):
        return LayerShape("linear", layer.in_features, layer.out_features)
    return LayerShape(
        "conv",
        layer.in_channels,
        layer.out_channels,
        layer.groups,
        tuple(images.shape[2:]),
        layer.kernel_size,
        layer.stride,
        layer.padding,
        layer.dilation,
    )


def _random_images(count: int, shape: tuple[int, ...]) -> Split:
    pixels = np.random.default_rng(0).integers(0, 256, (count, *shape), dtype=np.uint8)
    return Split(torch.from_numpy(pixels), torch.arange(count) % 2)


def _key(shape: LayerShape, in_float: bool) -> str:
    return f"{shape.name}-float" if in_float else shape.name


def _timed(shape: LayerShape, bench: Bench, *, in_float: bool = False) -> Timed:
    count = max(CALIBRATION_IMAGES, bench.batch_size)
    images = _random_images(count, (shape.inputs, *shape.size))
    batches = images.loader(CALIBRATION_IMAGES)
    return Timed(shape.build(), images, batches, precision="fp32" if in_float else None)


def _drawn(
    whole: Mapping[str, int], choices: Mapping[str, Sequence[int]], *, seed: int
) -> list[dict[str, int]]:
    """Draw different networks that set the terms and that check them, the unpruned one first."""
    rng, drawn = np.random.default_rng(seed), {widths_label(whole): dict(whole)}
    for _ in range(DRAWS):
        if len(drawn) == FITTED + CHECKED:
            break
        own = {name: int(rng.choice(widths)) for name, widths in choices.items()}
        drawn.setdefault(widths_label(own), own)
    return [*drawn.values()]


def _fitted(added: LayerMap, timed: pd.DataFrame, known: np.ndarray) -> LayerMap:
    """Set the terms by some whole networks, and compare the prediction with the others."""
    measured = timed["latency_p10_ms"].to_numpy()
    fitted = np.arange(len(timed)) < min(FITTED, math.ceil(len(timed) / 2))
    usable = fitted & np.isfinite(measured) & np.isfinite(known).all(axis=1)
    relative = known[usable] / measured[usable, None]  # least squares of relative errors
    terms, _ = nnls(relative, np.ones(usable.sum()))
    predicted = known @ terms
    table = timed[["network", "latency_p10_ms"]].assign(
        fitted=fitted, predicted_ms=predicted, relative_error=predicted / measured - 1
    )
    return replace(added, terms=tuple(map(float, terms)), checked=table)
