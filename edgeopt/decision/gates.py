"""Quality gates relative to the baseline and hard limits of the device."""

from collections.abc import Sequence
from functools import partial
from typing import Annotated, Literal

import numpy as np
import pandas as pd
from pydantic import Field

from edgeopt.decision.limits import BROKEN, NOT_SETTLED, Limit, findings, texts
from edgeopt.schema import (
    MIB,
    PositiveFloat,
    Share,
    checked_spec,
    quantity,
    require_columns,
    require_known,
)

MEMORY_COLUMNS = {
    "weights": "memory_mb",
    "artifact": "artifact_bytes",
    "peak_activation": "peak_activation_bytes",
    "peak_rss": "peak_rss_bytes",
}
ENERGY_COLUMNS = {"proxy": "energy_proxy_j", "model": "energy_model_j"}


@checked_spec
class Gates:
    """Limits of quality relative to the baseline, all as shares (0.02 is 2 points).

    A candidate is bad when it loses more than ``accuracy_drop_bad``, when a class loses more than
    ``max_recall_drop`` of recall, or when a class's recall is under ``min_recall``, whatever the
    baseline's was. It is good when it also stays within ``accuracy_drop_good`` and saves at least
    ``size_reduction_good`` of the weights and ``latency_reduction_good`` of the median latency.
    In between it is acceptable.

    What images decide (accuracy and recalls) is judged by intervals at ``gate_confidence``; 0
    judges by the estimates. ``latency_tie_cap`` is the share by which a latency may be above the
    fastest and still count as a tie.
    """

    accuracy_drop_good: Share = 0.02
    accuracy_drop_bad: Share = 0.05
    size_reduction_good: Share = 0.5
    latency_reduction_good: Share = 0.3
    max_recall_drop: Share = 0.1
    min_recall: Share = 0.2
    gate_confidence: Annotated[float, Field(ge=0, lt=1)] = 0.95
    latency_tie_cap: Share = 0.05

    def __post_init__(self) -> None:
        if self.accuracy_drop_good > self.accuracy_drop_bad:
            raise ValueError(
                f"accuracy_drop_good is {self.accuracy_drop_good}; "
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

    def rules(
        self, *, constraints: "Constraints", active_memory_budget_mb: float
    ) -> list[tuple[str, str]]:
        """Write the budget, the gates and the limits in words: what is judged, by what rule."""
        points, share = partial(quantity, "accuracy_drop"), partial(quantity, "accuracy")
        return [
            ("weights", f"refused above {quantity('memory_mb', active_memory_budget_mb)}"),
            (
                "accuracy drop",
                f"good up to {points(self.accuracy_drop_good)}, "
                f"refused above {points(self.accuracy_drop_bad)}",
            ),
            ("recall of a class", f"refused below {share(self.min_recall)}"),
            ("fall of a class's recall", f"refused above {points(self.max_recall_drop)}"),
            (
                "accuracy and recalls",
                f"judged by paired intervals at {share(self.gate_confidence)}; what they leave "
                "open comes after what they settle"
                if self.gate_confidence
                else "judged by the estimates",
            ),
            ("as fast within noise", f"at most {share(self.latency_tie_cap)} above the fastest"),
            ("weights saved", f"good from {share(self.size_reduction_good)}"),
            ("latency saved", f"good from {share(self.latency_reduction_good)}"),
            *(limit.rule() for limit in constraints.limits()),
        ]


@checked_spec
class Constraints:
    """Hard limits of the device; ``None`` means no limit.

    ``memory`` says which of the four memory numbers ``max_memory_mb`` (MiB) limits, ``energy``
    which of the two energy estimates ``max_energy_j`` limits.
    """

    max_latency_p95_ms: PositiveFloat | None = None
    max_memory_mb: PositiveFloat | None = None
    max_energy_j: PositiveFloat | None = None
    min_accuracy: Share | None = None
    memory: Literal[tuple(MEMORY_COLUMNS)] = "weights"
    energy: Literal[tuple(ENERGY_COLUMNS)] = "proxy"

    def limits(self) -> list[Limit]:
        """Return the constraints that are set, as limits on sweep columns in their own units."""
        scale = 1 if self.memory == "weights" else MIB
        bounds = {
            "latency_p95_ms": self.max_latency_p95_ms,
            MEMORY_COLUMNS[self.memory]: self.max_memory_mb and self.max_memory_mb * scale,
            ENERGY_COLUMNS[self.energy]: self.max_energy_j,
            "accuracy": self.min_accuracy,
        }
        return [
            Limit(column, bound, at_least=column == "accuracy")
            for column, bound in bounds.items()
            if bound is not None
        ]


def gate_table(
    sweep: pd.DataFrame,
    *,
    baseline: str,
    gates: Gates,
    recalls: pd.DataFrame | None = None,
    intervals: pd.DataFrame | None = None,
    limits: Sequence[Limit] = (),
) -> pd.DataFrame:
    """Judge every candidate against the baseline and by hard limits: new columns of the sweep.

    ``accuracy_drop, size_reduction, latency_reduction`` (shares), ``verdict`` (good, acceptable or
    bad), ``missed``, the gates that were missed in words, and ``not_settled``, what the images do
    not decide. With ``recalls`` (``candidate, class_name, recall`` on the same images) the guard of
    each class. With ``intervals`` (:func:`edgeopt.decision.answers.gate_intervals`), which judge in
    place of the estimates, ``accuracy_drop_low``, ``accuracy_drop_high``,
    ``accuracy_drop_confidence``, and ``accuracy_within``: the gate on the fall of accuracy that was
    shown to be met, the stricter one of the two. For the choice: ``_class`` (0 good, 1 acceptable
    and accurate, 2 acceptable), ``_refused``, the gates and ``limits`` broken, and ``_shortfall``,
    the largest miss of these. Raises ``ValueError`` when the baseline or a candidate's recalls are
    missing, or a name repeats.
    """
    table = _relative_to(sweep, baseline=baseline)
    if recalls is not None:
        measured = sweep.loc[sweep["accuracy"].notna(), "candidate"]
        guard = _recall_guard(recalls, baseline=baseline, needed=measured)
        table = table.join(guard, on="candidate")
    bad, good = gates.bad(recalls=recalls is not None), gates.good()
    found = findings(table, [*limits, *bad, *good], intervals)

    def said(verdict: str, of: Sequence[Limit]) -> pd.Series:
        return pd.Series([texts({limit: own[limit] for limit in of}, verdict) for own in found])

    missed = said(BROKEN, [*bad, *good])
    inaccurate = said(BROKEN, [limit for limit in good if limit.column == "accuracy_drop"]) != ""
    table = table.assign(
        verdict=np.select(
            [said(BROKEN, bad) != "", missed != ""], ["bad", "acceptable"], default="good"
        ),
        missed=missed,
        not_settled=said(NOT_SETTLED, [*limits, *bad, *good]),
        _class=(missed != "").astype(int) + inaccurate,
        _refused=said(BROKEN, [*limits, *bad]),
        _shortfall=[max(own[limit].shortfall for limit in [*limits, *bad]) for own in found],
    )
    return table if intervals is None else _with_interval(table, intervals, gates=gates)


def _relative_to(sweep: pd.DataFrame, *, baseline: str) -> pd.DataFrame:
    repeated = sorted(set(sweep.loc[sweep["candidate"].duplicated(), "candidate"]))
    if repeated:
        raise ValueError(f"candidate(s) {', '.join(repeated)} repeat; allowed: each name once")
    require_known(baseline, allowed=tuple(sweep["candidate"]), what="baseline candidate")
    reference = sweep.loc[sweep["candidate"] == baseline].iloc[0]
    return sweep.reset_index(drop=True).assign(
        accuracy_drop=lambda rows: reference["accuracy"] - rows["accuracy"],
        size_reduction=lambda rows: 1 - rows["memory_mb"] / reference["memory_mb"],
        latency_reduction=lambda rows: 1 - rows["latency_p50_ms"] / reference["latency_p50_ms"],
    )


def _with_interval(table: pd.DataFrame, intervals: pd.DataFrame, *, gates: Gates) -> pd.DataFrame:
    drops = intervals[intervals["gate"] == "accuracy_drop"].set_index("candidate")
    low, high = (table["candidate"].map(drops[end]) for end in ("low", "high"))
    bounds = (gates.accuracy_drop_good, gates.accuracy_drop_bad)
    within = np.select([high <= bound for bound in bounds], bounds, default=np.nan)
    return table.assign(
        accuracy_drop_low=low,
        accuracy_drop_high=high,
        accuracy_drop_confidence=gates.gate_confidence,
        accuracy_within=within,
    )


def _recall_guard(recalls: pd.DataFrame, *, baseline: str, needed: Sequence[str]) -> pd.DataFrame:
    """Per candidate: the largest fall of a class's recall, the lowest recall, and which class.

    The falls are NaN where the baseline failed and so has no recalls.
    """
    require_columns(recalls, ["candidate", "class_name", "recall"], what="the recall guard")
    # pivot, unlike pivot_table, refuses a class that is given twice
    wide = recalls.pivot(index="class_name", columns="candidate", values="recall")  # noqa: PD010
    wide = wide.dropna(axis=1, how="all")
    if absent := [name for name in needed if name not in wide]:
        raise ValueError(f"recalls lack the candidate(s) {', '.join(absent)}")
    guard = pd.DataFrame({"worst_recall": wide.min(), "worst_class": wide.idxmin()})
    if baseline not in wide:
        return guard.assign(worst_recall_drop=np.nan, worst_drop_class="")
    drops = wide.rsub(wide[baseline], axis=0)
    return guard.assign(worst_recall_drop=drops.max(), worst_drop_class=drops.idxmax())
