"""Which layers of an int8 network are faster in float: short dot products gain least."""

import math
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass
from typing import Any

from torch import nn

from edgeopt.data import Split
from edgeopt.search.layer_tables import network_layers
from edgeopt.search.timing import Bench, Timed, time_networks

TRIED = 8  # layers, those with the shortest dot products
GAIN = 0.05  # of the network's latency that a layer in float has to save
WHOLE, ALL = "int8", "all in float"


@dataclass(frozen=True)
class FloatLayers:
    """Layers that are faster in float, and what that does to the unpruned network.

    ``ratio`` is its latency with all of them in float over that in int8, in the same rounds.
    """

    names: tuple[str, ...] = ()
    ratio: float = 1.0

    def to_dict(self) -> dict[str, Any]:
        """Return what a :class:`edgeopt.system.Store` keeps."""
        return {"names": list(self.names), "ratio": self.ratio}

    @classmethod
    def from_dict(cls, kept: Mapping[str, Any]) -> "FloatLayers":
        """Build it from what was kept."""
        return cls(tuple(kept["names"]), kept["ratio"])


def faster_in_float(
    models: Sequence[nn.Module],
    bench: Bench,
    *,
    images: Split,
    calibration: Iterable,
    executor: Executor | None = None,
) -> FloatLayers:
    """Name the layers that make one of the int8 networks at least 5% faster in float.

    ``models`` are the same network with other widths, the unpruned one first. Each is timed with
    each of the layers in float alone, in the same rounds; a layer counts when the whole interval of
    its gain does. Only runtimes that read ONNX files can be asked.
    """
    layers = network_layers(models[0], images.take(1))
    lengths = {
        name: own.shape.inputs * math.prod(own.shape.kernel) / own.shape.groups
        for name, own in layers.items()
    }
    tried = sorted(layers, key=lengths.__getitem__)[:-1][:TRIED]  # one layer has to stay int8
    found: set[str] = set()
    for model in models:
        networks = {WHOLE: Timed(model, images, calibration)}
        networks |= {name: Timed(model, images, calibration, (name,)) for name in tried}
        table = time_networks(networks, bench, to=WHOLE, executor=executor)
        found |= {*table.loc[table["latency_ratio_high"] < 1 - GAIN, "network"]}
    if not found:
        return FloatLayers()
    names = tuple(name for name in layers if name in found)
    networks = {WHOLE: Timed(models[0], images, calibration)}
    networks[ALL] = Timed(models[0], images, calibration, names)
    both = time_networks(networks, bench, to=WHOLE, executor=executor).set_index("network")
    if both.loc[ALL, "error"]:
        raise ValueError(f"{', '.join(names)} in float: {both.loc[ALL, 'error']}")
    return FloatLayers(names, float(both.loc[ALL, "latency_ratio"]))
