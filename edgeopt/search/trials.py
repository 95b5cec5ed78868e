"""The search: many networks by their importance, some after an epoch, a few trained to the end."""

import math
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import pandas as pd

from edgeopt.config import SearchSpec
from edgeopt.decision.frontier import REFERENCE
from edgeopt.experiments import widths_label
from edgeopt.schema import MIB, PRECISIONS

with warnings.catch_warnings():
    warnings.filterwarnings("ignore", message="IProgress not found")  # of a bar that nobody draws
    import optuna
    from optuna.distributions import CategoricalDistribution

BITS = "float_layers"  # a trial's parameter beside the widths
POPULATION = 40
Widths = Mapping[str, int]


class Latencies(Protocol):
    """What tells the latency of a network by its widths."""

    @property
    def choices(self) -> Mapping[str, Sequence[int]]:
        """Widths of every group."""

    def ms(self, widths: Widths) -> float:
        """Latency in milliseconds; NaN where it is not known."""


@dataclass(frozen=True, eq=False)
class Space:
    """What can be chosen: a latency by widths for every set of layers in float.

    ``importance`` holds, for every group of layers, the scores of its channels, the highest first;
    ``weights`` counts the weights of each layer of a network by its widths.
    """

    latencies: Mapping[tuple[str, ...], Latencies]
    importance: Mapping[str, np.ndarray]
    weights: Callable[[Widths], Mapping[str, int]]

    def __post_init__(self) -> None:
        """Refuse importance that is not a number, or 0 of all channels."""
        totals = {name: float(scores.sum()) for name, scores in self.importance.items()}
        if not (np.isfinite([*totals.values()]).all() and any(totals.values())):
            raise ValueError(
                f"the importance of the channels is {totals}; allowed: finite numbers, one above 0"
            )

    @property
    def distributions(self) -> dict[str, CategoricalDistribution]:
        """Choices of every group of layers, and of the layers in float where there are several."""
        found: dict[str, set[int]] = {}
        for own in self.latencies.values():
            for name, widths in own.choices.items():
                found.setdefault(name, set()).update(widths)
        given = {name: CategoricalDistribution(sorted(widths)) for name, widths in found.items()}
        return given | {BITS: CategoricalDistribution([*map("+".join, self.latencies)])}

    def kept(self, widths: Widths) -> float:
        """Share of the channels' importance that these widths keep.

        The geometric mean over the groups of layers, because no layer makes up for what another
        has lost. A group counts by the square root of its importance, so that the channels of one
        that does little cost little.
        """
        shares = [scores[: widths[name]].sum() for name, scores in self.importance.items()]
        totals = np.array([scores.sum() for scores in self.importance.values()])
        there = totals > 0
        logs = np.log(np.array(shares)[there] / totals[there])
        return float(np.exp(np.average(logs, weights=np.sqrt(totals[there]))))

    def ms(self, params: Mapping[str, Any]) -> float:
        """Latency of a trial."""
        return self.latencies[_in_float(params)].ms(params)

    def weights_mb(self, params: Mapping[str, Any], precision: str) -> float:
        """MiB of a trial's weights, of which those of layers in float take four bytes each."""
        floats, sizes = _in_float(params), self.weights(params)
        own = PRECISIONS[precision].weight_bytes
        count = [PRECISIONS["fp32"].weight_bytes if name in floats else own for name in sizes]
        return float(np.dot(count, [*sizes.values()])) / MIB


def _in_float(params: Mapping[str, Any]) -> tuple[str, ...]:
    return tuple(name for name in params[BITS].split("+") if name)


def explore(space: Space, spec: SearchSpec) -> pd.DataFrame:
    """Try widths and layers in float by importance kept and latency, with NSGA-II.

    One row per distinct trial that meets the constraint: a column per group of layers,
    ``float_layers``, ``network``, ``kept``, ``map_ms``, ``weights_mb``. The same latencies give
    the same trials. Raises ``ValueError`` when no trial meets the constraint, or the latency of
    none is known.

    Source: Deb et al. 2002, doi:10.1109/4235.996017; Optuna, doi:10.1145/3292500.3330701.
    """
    distributions = space.distributions
    sampler = optuna.samplers.NSGAIISampler(population_size=POPULATION, seed=spec.seed)
    with _quiet():
        study = optuna.create_study(directions=["maximize", "minimize"], sampler=sampler)
        for params in _first(distributions):
            study.enqueue_trial(params)
        study.optimize(lambda trial: _judged(trial, space, spec, distributions), spec.trials)
    rows = {tuple(t.params.items()): t for t in study.trials if t.state.name == "COMPLETE"}
    table = pd.DataFrame([_row(trial, space) for trial in rows.values()])
    if table.empty:
        raise ValueError(f"the latency of none of {len(study.trials)} trials is known")
    fitting = table[table["weights_mb"] <= (spec.max_weights_mb or math.inf)]
    if fitting.empty:
        raise ValueError(
            f"none of {len(table)} trials meets max_weights_mb {spec.max_weights_mb:g}; the "
            f"smallest holds {table['weights_mb'].min():.3g} MiB"
        )
    return fitting.sort_values("map_ms", ignore_index=True)


def _first(distributions: Mapping[str, CategoricalDistribution]) -> list[dict[str, Any]]:
    """List the whole network, the smallest, and those in between at one share of their choices."""
    depth = max(len(own.choices) for name, own in distributions.items() if name != BITS)
    shares = [step / max(1, depth - 1) for step in range(depth)]
    bits = distributions[BITS].choices[0]
    return [
        {
            name: bits if name == BITS else own.choices[round(share * (len(own.choices) - 1))]
            for name, own in distributions.items()
        }
        for share in shares
    ]


@contextmanager
def _quiet() -> Iterator[None]:
    """Leave out the line that Optuna logs for every trial."""
    before = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    try:
        yield
    finally:
        optuna.logging.set_verbosity(before)


def _judged(
    trial: optuna.Trial,
    space: Space,
    spec: SearchSpec,
    distributions: Mapping[str, CategoricalDistribution],
) -> tuple[float, float]:
    """Judge a trial by the importance that it keeps and its latency; unknown ones are pruned."""
    params = {n: trial.suggest_categorical(n, own.choices) for n, own in distributions.items()}
    if not math.isfinite(ms := space.ms(params)):
        raise optuna.TrialPruned
    kept = space.kept(params)
    told = {"weights_mb": space.weights_mb(params, spec.precision), "kept": kept}
    if spec.max_weights_mb:
        trial.set_constraint("weights", told["weights_mb"] - spec.max_weights_mb)
    for name, value in {**told, "map_ms": ms}.items():
        trial.set_user_attr(name, value)
    return kept, ms


def _row(trial: optuna.trial.FrozenTrial, space: Space) -> dict[str, Any]:
    widths = {name: trial.params[name] for name in space.importance}
    return {
        **trial.params,
        "network": widths_label(widths),
        "kept": trial.user_attrs["kept"],
        "map_ms": trial.user_attrs["map_ms"],
        "weights_mb": trial.user_attrs["weights_mb"],
    }


def promoted(table: pd.DataFrame, count: int, *, score: str) -> pd.DataFrame:
    """Choose the networks that go on: those of the best fronts of ``score`` and ``map_ms``.

    A front is what no faster network equals. Whole fronts are taken while there is room; of the
    last one, one after the other, the network that enlarges the hypervolume most (successive
    halving, Jamieson and Talwalkar 2016, arXiv:1502.07943; greedy subsets, Guerreiro, Fonseca and
    Paquete 2016, doi:10.1162/EVCO_a_00188).
    """
    rest, taken = table.sort_values(["map_ms", score], ascending=[True, False]), []
    while len(rest) and count > 0:
        best_before = rest[score].cummax().shift(fill_value=-math.inf)
        front = rest[rest[score] > best_before]
        if len(front) > count:
            front = _largest(front, count, score=score, worst_ms=REFERENCE * table["map_ms"].max())
        taken.append(front)
        count -= len(front)
        rest = rest.drop(index=front.index)
    return pd.concat(taken).sort_values("map_ms") if taken else table.iloc[:0]


def _largest(front: pd.DataFrame, count: int, *, score: str, worst_ms: float) -> pd.DataFrame:
    """Choose networks of a front by the hypervolume that they add, against a score of 0.

    What one adds is a rectangle, up to the next slower and above the next faster that is chosen.
    """
    ms, scores = front["map_ms"].to_numpy(), front[score].to_numpy()
    chosen = np.array([], dtype=int)
    for _ in range(count):
        place = np.searchsorted(chosen, np.arange(len(front)))
        slower, below = np.append(ms[chosen], worst_ms)[place], np.append(0, scores[chosen])[place]
        added = (slower - ms) * (scores - below)  # 0 of what is chosen
        chosen = np.sort(np.append(chosen, added.argmax()))
    return front.iloc[chosen]


def record(table: pd.DataFrame, path: Path, *, name: str, space: Space, score: str) -> None:
    """Keep trials in an Optuna study in an SQLite file, which ``optuna-dashboard`` opens.

    A study of that name is replaced; its objectives are ``score`` and ``map_ms``.
    """
    storage, directions = f"sqlite:///{path}", ["maximize", "minimize"]
    with _quiet():
        if name in optuna.get_all_study_names(storage):
            optuna.delete_study(study_name=name, storage=storage)
        study = optuna.create_study(study_name=name, storage=storage, directions=directions)
    study.set_user_attr("objectives", [score, "map_ms"])
    distributions = space.distributions
    trials = [
        optuna.trial.create_trial(
            params={key: row[key] for key in distributions},
            distributions=distributions,
            values=[row[score], row["map_ms"]],
        )
        for row in table.dropna(subset=[score]).to_dict("records")
    ]
    study.add_trials(trials)
