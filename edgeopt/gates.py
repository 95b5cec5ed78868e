"""Quality gates relative to the baseline and hard limits of the device."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields
from functools import partial

import numpy as np
import pandas as pd

from edgeopt.schema import COLUMNS, MIB, require_known
from edgeopt.selection import require_columns

MEMORY_COLUMNS = {
    "weights": "memory_mb",
    "artifact": "artifact_bytes",
    "peak_activation": "peak_activation_bytes",
    "peak_rss": "peak_rss_bytes",
}
ENERGY_COLUMNS = {"proxy": "energy_proxy_j", "model": "energy_model_j"}
TITLES = {
    "accuracy_drop": "accuracy drop",
    "size_reduction": "size reduction",
    "latency_reduction": "latency reduction",
    "worst_recall_drop": "fall of recall",
    "worst_recall": "recall",
}
NEEDED = ("candidate", "accuracy", "latency_p50_ms", "memory_mb")


@dataclass(frozen=True)
class Limit:
    """A bound on one column, from above unless ``at_least``.

    ``class_column`` names the column that tells which class a per-class value belongs to.
    """

    column: str
    bound: float
    at_least: bool = False
    class_column: str = ""

    def shortfall(self, values: pd.Series) -> pd.Series:
        """Miss of each value as a share of the bound: 0 when met, infinite when unknown."""
        gap = (self.bound - values) if self.at_least else (values - self.bound)
        met = (gap <= 0) | np.isclose(gap, 0, atol=1e-12 + 1e-9 * abs(self.bound))
        return (gap / (abs(self.bound) or 1.0)).mask(met, 0.0).fillna(math.inf)

    def describe(self, row: pd.Series) -> str:
        """Say by how much a row misses the limit, e.g. ``accuracy drop 6.00 points, ...``."""
        title = TITLES.get(self.column) or COLUMNS[self.column].title.lower()
        if self.class_column and isinstance(row[self.class_column], str):
            title = f"{title} of class {row[self.class_column]!r}"
        value = row[self.column]
        known = "is not available" if pd.isna(value) else quantity(self.column, value)
        side = "at least" if self.at_least else "at most"
        return f"{title} {known}, allowed {side} {quantity(self.column, self.bound)}"


@dataclass(frozen=True)
class Gates:
    """Limits of quality relative to the baseline, all as shares (0.02 is 2 points).

    A candidate is bad when it loses more than ``accuracy_drop_bad``, when a class loses more than
    ``max_recall_drop`` of recall, or when a class's recall is under ``min_recall``, whatever the
    baseline's was. It is good when it also stays within ``accuracy_drop_good`` and saves at least
    ``size_reduction_good`` of the weights and ``latency_reduction_good`` of the median latency.
    In between it is acceptable.
    """

    accuracy_drop_good: float = 0.02
    accuracy_drop_bad: float = 0.05
    size_reduction_good: float = 0.5
    latency_reduction_good: float = 0.3
    max_recall_drop: float = 0.10
    min_recall: float = 0.20

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if not 0 <= value <= 1:
                raise ValueError(f"gate {field.name} is {value}; allowed: a share from 0 to 1")
        if self.accuracy_drop_good > self.accuracy_drop_bad:
            raise ValueError(
                f"gate accuracy_drop_good is {self.accuracy_drop_good}; "
                f"allowed: at most accuracy_drop_bad, {self.accuracy_drop_bad}"
            )

    def bad(self, *, recalls: bool) -> list[Limit]:
        """Limits that make a candidate bad when missed; the recall guard only with recalls."""
        guard = [
            Limit("worst_recall_drop", self.max_recall_drop, class_column="worst_drop_class"),
            Limit("worst_recall", self.min_recall, at_least=True, class_column="worst_class"),
        ]
        return [Limit("accuracy_drop", self.accuracy_drop_bad), *(guard if recalls else [])]

    def good(self) -> list[Limit]:
        """Limits that make a candidate acceptable at best when missed."""
        return [
            Limit("accuracy_drop", self.accuracy_drop_good),
            Limit("size_reduction", self.size_reduction_good, at_least=True),
            Limit("latency_reduction", self.latency_reduction_good, at_least=True),
        ]


@dataclass(frozen=True)
class Constraints:
    """Hard limits of the device; ``None`` means no limit.

    ``memory`` says which of the four memory numbers ``max_memory_mb`` (MiB) limits, ``energy``
    which of the two energy estimates ``max_energy_j`` limits.
    """

    max_latency_p95_ms: float | None = None
    max_memory_mb: float | None = None
    max_energy_j: float | None = None
    min_accuracy: float | None = None
    memory: str = "weights"
    energy: str = "proxy"

    def __post_init__(self) -> None:
        require_known(self.memory, allowed=tuple(MEMORY_COLUMNS), what="kind of memory")
        require_known(self.energy, allowed=tuple(ENERGY_COLUMNS), what="kind of energy")
        for name in ("max_latency_p95_ms", "max_memory_mb", "max_energy_j", "min_accuracy"):
            value = getattr(self, name)
            if value is not None and not 0 < value < math.inf:
                raise ValueError(f"constraint {name} is {value}; allowed: above 0 and finite")

    def limits(self) -> list[Limit]:
        """Return the constraints that are set, as limits on sweep columns in their own units."""
        scale = 1 if self.memory == "weights" else MIB
        limits = [
            ("latency_p95_ms", self.max_latency_p95_ms),
            (MEMORY_COLUMNS[self.memory], self.max_memory_mb and self.max_memory_mb * scale),
            (ENERGY_COLUMNS[self.energy], self.max_energy_j),
        ]
        chosen = [Limit(column, bound) for column, bound in limits if bound is not None]
        if self.min_accuracy is not None:
            chosen.append(Limit("accuracy", self.min_accuracy, at_least=True))
        return chosen


def rules(
    gates: Gates, *, constraints: Constraints, active_memory_budget_mb: float
) -> list[tuple[str, str]]:
    """Write the budget, the gates and the limits in words: what is judged, and by what rule."""
    points, share = partial(quantity, "accuracy_drop"), partial(quantity, "accuracy")
    return [
        ("weights", f"refused above {quantity('memory_mb', active_memory_budget_mb)}"),
        (
            "accuracy drop",
            f"good up to {points(gates.accuracy_drop_good)}, "
            f"refused above {points(gates.accuracy_drop_bad)}",
        ),
        ("recall of a class", f"refused below {share(gates.min_recall)}"),
        ("fall of a class's recall", f"refused above {points(gates.max_recall_drop)}"),
        ("weights saved", f"good from {share(gates.size_reduction_good)}"),
        ("latency saved", f"good from {share(gates.latency_reduction_good)}"),
        *(
            (
                COLUMNS[limit.column].title.lower(),
                f"refused {'below' if limit.at_least else 'above'} "
                f"{quantity(limit.column, limit.bound)}",
            )
            for limit in constraints.limits()
        ),
    ]


def gate_table(
    sweep: pd.DataFrame, *, baseline: str, gates: Gates, recalls: pd.DataFrame | None = None
) -> pd.DataFrame:
    """Judge every candidate against the baseline, one row per candidate in the sweep's order.

    Parameters
    ----------
    sweep : DataFrame
        At least ``candidate, accuracy, latency_p50_ms, memory_mb``.
    baseline : str
        The candidate that losses and savings are relative to.
    recalls : DataFrame, optional
        ``candidate, class_name, recall`` on the same images; without it the per-class guard is
        left out and its columns are missing.

    Returns
    -------
    DataFrame
        ``candidate, accuracy_drop, size_reduction, latency_reduction`` (shares), ``verdict``
        (good, acceptable or bad) and ``missed``, the gates that were missed in words.

    Raises
    ------
    ValueError
        When a column, the baseline or a candidate's recalls are missing, or a name repeats.
    """
    require_columns(sweep, NEEDED, what="gate_table")
    table = _relative_to(sweep, baseline=baseline)
    if recalls is not None:
        measured = sweep.loc[sweep["accuracy"].notna(), "candidate"]
        guard = _recall_guard(recalls, baseline=baseline, needed=measured)
        table = table.join(guard, on="candidate")
    bad = gates.bad(recalls=recalls is not None)
    missed_bad = shortfalls(table, bad).gt(0).any(axis=1)
    missed_good = shortfalls(table, gates.good()).gt(0).any(axis=1)
    verdict = np.select([missed_bad, missed_good], ["bad", "acceptable"], default="good")
    return table.assign(verdict=verdict, missed=misses(table, [*bad, *gates.good()]))


def shortfalls(table: pd.DataFrame, limits: Sequence[Limit]) -> pd.DataFrame:
    """Relative miss of every limit by every row: 0 when met, infinite when unknown."""
    columns = [limit.shortfall(pd.to_numeric(table[limit.column])) for limit in limits]
    return pd.concat(columns, axis=1, keys=range(len(limits))) if columns else table[[]]


def misses(table: pd.DataFrame, limits: Sequence[Limit]) -> list[str]:
    """Say per row which limits it misses; of several on one column the first speaks."""
    missed = shortfalls(table, limits).gt(0)
    texts = []
    for (_, row), flags in zip(table.iterrows(), missed.to_numpy(), strict=True):
        said: dict[str, str] = {}
        for limit, flag in zip(limits, flags, strict=True):
            if flag:
                said.setdefault(limit.column, limit.describe(row))
        texts.append("; ".join(said.values()))
    return texts


def quantity(column: str, value: float) -> str:
    """Write a number with the unit of its column, e.g. ``2.00 points`` or ``20.5 KiB``."""
    if column in ("accuracy_drop", "worst_recall_drop"):
        return f"{100 * value:.2f} points"
    if column in TITLES or column == "accuracy":
        return f"{value:.1%}"
    if column.endswith("_bytes") or column == "memory_mb":
        size = value if column == "memory_mb" else value / MIB
        return f"{size:.4g} MiB" if size >= 1 else f"{1024 * size:.4g} KiB"
    return f"{value:.4g} {COLUMNS[column].unit}"


def _relative_to(sweep: pd.DataFrame, *, baseline: str) -> pd.DataFrame:
    repeated = sorted(set(sweep.loc[sweep["candidate"].duplicated(), "candidate"]))
    if repeated:
        raise ValueError(f"candidate(s) {', '.join(repeated)} repeat; allowed: each name once")
    require_known(baseline, allowed=tuple(sweep["candidate"]), what="baseline candidate")
    reference = sweep.loc[sweep["candidate"] == baseline].iloc[0]
    return pd.DataFrame(
        {
            "candidate": sweep["candidate"],
            "accuracy_drop": reference["accuracy"] - sweep["accuracy"],
            "size_reduction": 1 - sweep["memory_mb"] / reference["memory_mb"],
            "latency_reduction": 1 - sweep["latency_p50_ms"] / reference["latency_p50_ms"],
        }
    )


def _recall_guard(recalls: pd.DataFrame, *, baseline: str, needed: Sequence[str]) -> pd.DataFrame:
    """Per candidate: the largest fall of a class's recall, the lowest recall, and which class."""
    require_columns(recalls, ["candidate", "class_name", "recall"], what="the recall guard")
    # pivot, unlike pivot_table, refuses a class that is given twice
    wide = recalls.pivot(index="class_name", columns="candidate", values="recall")  # noqa: PD010
    wide = wide.dropna(axis=1, how="all")
    absent = [name for name in (baseline, *needed) if name not in wide]
    if absent:
        raise ValueError(f"recalls lack the candidate(s) {', '.join(dict.fromkeys(absent))}")
    drops = wide.rsub(wide[baseline], axis=0)
    return pd.DataFrame(
        {
            "worst_recall_drop": drops.max(),
            "worst_drop_class": drops.idxmax(),
            "worst_recall": wide.min(),
            "worst_class": wide.idxmin(),
        }
    )
