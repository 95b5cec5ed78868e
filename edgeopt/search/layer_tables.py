"""The latency of a deep network by its widths: tables of its layers, timed alone and added up."""

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn

from edgeopt.data import Split
from edgeopt.experiments import widths_label
from edgeopt.pruning import LayerChannels, channel_widths, layer_channels, prune_to_widths
from edgeopt.pruning.probing import run_named
from edgeopt.search.network_map import check_choices
from edgeopt.search.timing import Bench, Timed, time_networks

FITTED, CHECKED = 10, 30  # networks that scale the sum of the layers, and that it is checked on
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
        lost = {name: self.whole[name] - width for name, width in widths.items()}
        gone = [
            sum(round(often * lost.get(name, 0)) for name, often in side.items())
            for side in (self.channels.inputs, self.channels.outputs)
        ]
        inputs, outputs = self.shape.inputs - gone[0], self.shape.outputs - gone[1]
        depthwise = self.shape.groups == self.shape.inputs > 1
        groups = outputs if depthwise else self.shape.groups
        return replace(self.shape, inputs=inputs, outputs=outputs, groups=groups)

    def shapes(self, choices: Mapping[str, Sequence[int]]) -> Iterator[LayerShape]:
        """Every shape that the choices of its groups give it."""
        own = [name for name in choices if name in {*self.channels.inputs, *self.channels.outputs}]
        for some in itertools.product(*(choices[name] for name in own)):
            yield self.with_widths(dict(zip(own, some, strict=True)))


@dataclass(frozen=True, eq=False)
class LayerMap:
    """Latency of a network as ``base_ms + scale`` times the sum of its layers' own latencies.

    Attributes
    ----------
    layers : dict
        By name, in the network's order.
    table : DataFrame
        One row per shape: ``shape, latency_ms``, without the call's floor.
    checked : DataFrame
        One row per network that the sum was compared with: ``network, fitted, latency_p10_ms,
        predicted_ms, relative_error``; the fitted ones set ``base_ms`` and ``scale``.
    """

    layers: Mapping[str, Layer]
    choices: Mapping[str, Sequence[int]]
    table: pd.DataFrame
    base_ms: float = 0.0
    scale: float = 1.0
    checked: pd.DataFrame | None = None

    def ms(self, widths: Mapping[str, int]) -> float:
        """Latency of the network with these widths; NaN where a layer could not be timed."""
        return self.base_ms + self.scale * self.sum_ms(widths)

    def sum_ms(self, widths: Mapping[str, int]) -> float:
        """Add up the layers' own latencies."""
        known = dict(zip(self.table["shape"], self.table["latency_ms"], strict=True))
        shapes = (layer.with_widths(widths) for layer in self.layers.values())
        return sum(known.get(shape.name, math.nan) for shape in shapes)

    @property
    def median_error(self) -> float:
        """Median relative error of the networks that were not fitted."""
        own = self.checked[~self.checked["fitted"]]
        return float(own["relative_error"].abs().median())


def layer_map(
    model: nn.Module,
    choices: Mapping[str, Sequence[int]],
    bench: Bench,
    *,
    images: Split,
    executor: Executor | None = None,
    seed: int = 0,
) -> LayerMap:
    """Time every shape that a layer of the network can have, and check their sum on whole networks.

    What lies between the layers, and what a runtime saves by seeing them together, is in two
    numbers that whole networks with random widths set by least squares of relative errors; others
    tell how far it is off. ``choices`` are as in :func:`edgeopt.search.latency_map`.
    """
    example = images.take(1)
    whole = check_choices(choices, channel_widths(model, example_input=example))
    layers = network_layers(model, example)
    shapes = {s.name: s for layer in layers.values() for s in layer.shapes(choices)}
    networks = {FLOOR: Timed(_floor(), _random_images((1, 1, 1)))}
    networks |= {name: _timed(shape) for name, shape in shapes.items()}
    timed = time_networks(networks, bench, to=FLOOR, executor=executor)
    floor = timed["latency_p10_ms"].iloc[0]
    own = (timed["latency_p10_ms"].iloc[1:] - floor).clip(lower=0)
    table = pd.DataFrame({"shape": timed["network"].iloc[1:], "latency_ms": own})
    added = LayerMap(layers, choices, table)
    return _checked(added, model, whole, bench, images=images, executor=executor, seed=seed)


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


def _floor() -> nn.Module:
    return nn.Sequential(nn.Conv2d(1, 1, 1)).eval()


def _random_images(shape: tuple[int, ...]) -> Split:
    pixels = np.random.default_rng(0).integers(0, 256, (CALIBRATION_IMAGES, *shape), dtype=np.uint8)
    return Split(torch.from_numpy(pixels), torch.arange(CALIBRATION_IMAGES) % 2)


def _timed(shape: LayerShape) -> Timed:
    images = _random_images((shape.inputs, *shape.size))
    return Timed(shape.build(), images, images.loader(CALIBRATION_IMAGES))


def _checked(
    added: LayerMap,
    model: nn.Module,
    whole: Mapping[str, int],
    bench: Bench,
    *,
    images: Split,
    executor: Executor | None,
    seed: int,
) -> LayerMap:
    """Scale the sum by some whole networks, and compare it with others."""
    rng = np.random.default_rng(seed)
    drawn = [dict(whole)]
    drawn += [
        {name: int(rng.choice(own)) for name, own in added.choices.items()}
        for _ in range(FITTED + CHECKED - 1)
    ]
    example = images.take(1)
    built = {widths_label(w): prune_to_widths(model, w, example_input=example) for w in drawn}
    networks = {name: Timed(network, images) for name, network in built.items()}
    timed = time_networks(networks, bench, to=widths_label(whole), executor=executor)
    sums = {widths_label(w): added.sum_ms(w) for w in drawn}
    table = timed[["network", "latency_p10_ms"]].assign(
        sum_ms=timed["network"].map(sums), fitted=np.arange(len(timed)) < FITTED
    )
    base, scale = _fit(table[table["fitted"]].dropna())
    predicted = base + scale * table["sum_ms"]
    error = predicted / table["latency_p10_ms"] - 1
    table = table.assign(predicted_ms=predicted, relative_error=error)
    return replace(added, base_ms=base, scale=scale, checked=table)


def _fit(table: pd.DataFrame) -> tuple[float, float]:
    """Find base and scale by least squares of relative errors."""
    measured = table["latency_p10_ms"].to_numpy()
    terms = np.stack([np.ones_like(measured), table["sum_ms"].to_numpy()], axis=1)
    found, *_ = np.linalg.lstsq(terms / measured[:, None], np.ones_like(measured), rcond=None)
    return tuple(map(float, found))
