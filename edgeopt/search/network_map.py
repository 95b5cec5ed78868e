"""The latency of a network by its widths, measured before any training."""

import itertools
import math
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import pandas as pd
from torch import nn

from edgeopt.data import Split
from edgeopt.experiments import widths_label
from edgeopt.pruning import channel_widths, checked_choices, prune_to_widths
from edgeopt.search.timing import DIED, Bench, Timed, time_networks
from edgeopt.system import ByValue, run_in_order

STEP = 0.08  # of latency between neighbouring widths, above which the one between them is timed
NETWORKS = 150  # at most in one map


@dataclass(frozen=True, eq=False)
class LatencyMap:
    """Latency of every network of a grid of widths.

    ``table`` has one row per network: a column per group of layers, then those of
    :func:`edgeopt.search.time_networks`, all relative to the whole network.
    """

    table: pd.DataFrame
    groups: tuple[str, ...]

    @property
    def numbers(self) -> pd.DataFrame:
        """What the map's figure draws."""
        return self.table

    @property
    def choices(self) -> dict[str, list[int]]:
        """Widths that every group of layers can have."""
        return {name: sorted(map(int, self.table[name].unique())) for name in self.groups}

    def ms(self, widths: Mapping[str, int]) -> float:
        """Latency of the network with these widths; NaN where it could not be timed."""
        return self._by_label.get(widths_label({n: widths[n] for n in self.groups}), math.nan)

    @property
    def _by_label(self) -> dict[str, float]:
        return dict(zip(self.table["network"], self.table["latency_p10_ms"], strict=True))

    @property
    def died(self) -> bool:
        """Whether a worker's death left a gap, which another try may fill."""
        return self.table["error"].str.startswith(DIED).any()

    def slower(self, factor: float) -> "LatencyMap":
        """Return the map with every latency that many times as long."""
        return replace(
            self, table=self.table.assign(latency_p10_ms=factor * self.table["latency_p10_ms"])
        )

    def to_dict(self) -> dict[str, Any]:
        """Return what a :class:`edgeopt.system.Store` keeps."""
        return {"table": self.table.to_dict("list"), "groups": list(self.groups)}

    @classmethod
    def from_dict(cls, kept: Mapping[str, Any]) -> "LatencyMap":
        """Build it from what was kept."""
        return cls(pd.DataFrame(kept["table"]), tuple(kept["groups"]))


def latency_map(
    model: nn.Module,
    choices: Mapping[str, Sequence[int]],
    bench: Bench,
    *,
    images: Split,
    calibration: Iterable = (),
    float_layers: tuple[str, ...] = (),
    grid: int = 1,
    networks: int = NETWORKS,
    executor: Executor | None = None,
) -> LatencyMap:
    """Time a network at every combination of widths, and at finer ones where latency steps.

    Weights do not enter a latency, so that nothing is trained. Where the networks of two
    neighbouring widths are further apart than 8%, by the median over the other groups, the width
    between them is timed too, down to multiples of ``grid`` and until there are ``networks``.

    Parameters
    ----------
    choices : mapping
        Widths by the names of :func:`edgeopt.pruning.channel_widths`; its own width is one of each.
    calibration, float_layers
        As in :class:`edgeopt.search.Timed`.
    """
    whole = channel_widths(model, example_input=images.take(1))
    choices = checked_choices(choices, whole)
    narrowed = partial(_narrowed, model=model, example=images.take(1))
    known = pd.DataFrame()
    finer = choices
    while finer:
        choices = finer
        seen = set(known.get("network", ()))
        asked = [w for w in _grid(choices) if widths_label(w) not in seen or w == whole]
        built = [*run_in_order(narrowed, asked, executor=executor)]
        how = (images, calibration, float_layers)
        table = _timed(asked, built, how, bench, to=widths_label(whole), executor=executor)
        known = _joined(known, table)
        finer = _finer(choices, known, grid=grid, networks=networks)
    return LatencyMap(known, tuple(choices))


def _grid(choices: Mapping[str, Sequence[int]]) -> list[dict[str, int]]:
    return [dict(zip(choices, own, strict=True)) for own in itertools.product(*choices.values())]


def _timed(
    asked: Sequence[Mapping[str, int]],
    built: Sequence[ByValue],
    how: tuple[Split, Iterable, tuple[str, ...]],
    bench: Bench,
    **options: Any,
) -> pd.DataFrame:
    """Time the networks that there are; a row per widths, with an error for those there are not."""
    names = [*map(widths_label, asked)]
    rows = pd.DataFrame([{**w, "network": name} for w, name in zip(asked, names, strict=True)])
    pairs = [*zip(names, built, strict=True)]
    made = {name: Timed(own["network"], *how) for name, own in pairs if "network" in own}
    refused = [{"network": name, **own} for name, own in pairs if "network" not in own]
    table = pd.concat([time_networks(made, bench, **options), pd.DataFrame(refused)])
    return rows.merge(table, on="network")


def _narrowed(widths: Mapping[str, int], *, model: nn.Module, example: Any) -> ByValue:
    """Prune the network; the text of the error where it has no such widths."""
    try:
        return ByValue(network=prune_to_widths(model, widths, example_input=example))
    except ValueError as error:
        return ByValue(error=str(error))


def _joined(known: pd.DataFrame, table: pd.DataFrame) -> pd.DataFrame:
    """Put later networks beside the first: ratios to the whole one are of the same rounds."""
    if known.empty:
        return table
    base = known.loc[known["latency_ratio"] == 1, "latency_p10_ms"].iloc[0]
    new = table[~table["network"].isin(known["network"])]
    new = new.assign(latency_p10_ms=new["latency_ratio"] * base)
    return pd.concat([known, new], ignore_index=True)


def _finer(
    choices: Mapping[str, Sequence[int]], table: pd.DataFrame, *, grid: int, networks: int
) -> dict[str, list[int]]:
    """Add the widths between neighbours that are far apart; empty when there are none."""
    finer = {name: list(own) for name, own in choices.items()}
    for _, name, between in sorted(_steps(choices, table, grid=grid), reverse=True):
        wider = {**finer, name: sorted([*finer[name], between])}
        if math.prod(map(len, wider.values())) <= networks:
            finer = wider
    return finer if finer != {name: list(own) for name, own in choices.items()} else {}


def _steps(
    choices: Mapping[str, Sequence[int]], table: pd.DataFrame, *, grid: int
) -> Iterable[tuple[float, str, int]]:
    """Yield the height of every step, its group, and the width in its middle."""
    for name, own in choices.items():
        others = [other for other in choices if other != name]
        by_width = table.pivot_table("latency_p10_ms", others or "error", name, dropna=False)
        for low, high in itertools.pairwise(own):
            middle = grid * round((low + high) / 2 / grid)
            step = float(np.log(by_width[high] / by_width[low]).abs().median())
            if low < middle < high and step > STEP:
                yield step, name, middle
