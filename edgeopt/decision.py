"""The choice of one candidate from a sweep, with its reasons in computed words."""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from edgeopt.gates import (
    NEEDED,
    Constraints,
    Gates,
    Limit,
    gate_table,
    misses,
    quantity,
    shortfalls,
)
from edgeopt.schema import RUNTIMES
from edgeopt.selection import require_columns

WORDS = {"memory_mb": "weights", "accuracy": "accuracy", "latency_p50_ms": "median latency"}
CLASS_WORDS = (
    "that pass every gate and limit",
    "that are acceptable and lose little accuracy (none passes every gate)",
    "that are acceptable (none loses as little accuracy as wished)",
)


@dataclass(frozen=True, eq=False)
class Decision:
    """What to ship and why; ``pick`` is ``None`` when nothing fits.

    ``pick``, ``runner_up`` and ``baseline`` are rows of the sweep with the columns of
    :func:`gate_table`; ``rejected`` has ``candidate, reason, shortfall`` (the largest miss as a
    share of its limit), the nearest first. ``recall_checked`` tells whether per-class recalls
    were guarded.
    """

    pick: dict[str, Any] | None
    runner_up: dict[str, Any] | None
    baseline: dict[str, Any]
    reason: str
    what_it_would_take: str
    rejected: pd.DataFrame
    recall_checked: bool

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON types only; numbers that are not known are ``None``."""
        return {
            "pick": self.pick,
            "runner_up": self.runner_up,
            "baseline": self.baseline,
            "reason": self.reason,
            "what_it_would_take": self.what_it_would_take,
            "rejected": [_plain(row) for _, row in self.rejected.iterrows()],
            "recall_checked": self.recall_checked,
        }


def find_baseline(sweep: pd.DataFrame) -> str:
    """Name the unpruned fp32 candidate, of the first runtime in the order of ``schema.RUNTIMES``.

    One that failed is named only when all did.

    Raises
    ------
    ValueError
        When a column is missing or there is no such candidate.
    """
    require_columns(sweep, ["candidate", "pruning_level", "precision"], what="find_baseline")
    rows = sweep[(sweep["pruning_level"] == 0) & (sweep["precision"] == "fp32")]
    if rows.empty:
        raise ValueError("no candidate has pruning_level 0 and precision fp32 to compare with")
    if "status" in rows and rows["status"].ne("failed").any():
        rows = rows[rows["status"] != "failed"]
    if "runtime" in rows:
        rows = rows.sort_values("runtime", key=lambda s: s.map(RUNTIMES.index), kind="stable")
    return rows["candidate"].iloc[0]


def decide(
    sweep: pd.DataFrame,
    *,
    gates: Gates,
    constraints: Constraints | None = None,
    recalls: pd.DataFrame | None = None,
    baseline: str | None = None,
) -> Decision:
    """Choose the candidate to ship.

    The rule: of the candidates that are inside the active memory budget, meet every constraint
    and are not bad by the gates, keep the best class there is (good; else acceptable with an
    accuracy drop inside ``accuracy_drop_good``; else acceptable) and take the lowest median
    latency. Candidates whose interval ``latency_p50_low_ms`` to ``latency_p50_high_ms``, where
    the sweep has it, overlaps that of the fastest are as fast: of these the one with the smallest
    weights wins, then the most accurate, then the fastest. No accepted candidate of the same class
    is better in accuracy and weights and faster beyond noise. The runner-up is the same rule's
    choice without the pick.

    Parameters
    ----------
    sweep : DataFrame
        Validation results after :func:`edgeopt.selection.apply_budgets`.
    recalls : DataFrame, optional
        ``candidate, class_name, recall``; without it no class is guarded.
    baseline : str, optional
        Candidate to compare with; :func:`find_baseline` when omitted.

    Raises
    ------
    ValueError
        When the sweep is empty, or a column, the baseline or a candidate's recalls are missing.
    """
    require_columns(sweep, [*NEEDED, "active_budget_mb"], what="decide")
    if sweep.empty:
        raise ValueError("the sweep has no rows; allowed: one candidate or more")
    baseline = baseline or find_baseline(sweep)
    judged = gate_table(sweep, baseline=baseline, gates=gates, recalls=recalls)
    table = _with_rank_columns(sweep.merge(judged, on="candidate"), gates=gates)
    limits = [
        Limit("memory_mb", sweep["active_budget_mb"].iloc[0]),
        *(constraints or Constraints()).limits(),
        *gates.bad(recalls=recalls is not None),
    ]
    require_columns(table, [limit.column for limit in limits], what="decide")
    rejected = _rejected(table, limits)
    fitting = table[~table["candidate"].isin(rejected["candidate"])]
    pick = _choose(fitting)
    others = fitting if pick is None else fitting[fitting["candidate"] != pick["candidate"]]
    runner_up = _choose(others)
    reason = _nothing_fits(rejected) if pick is None else _reason(pick, fitting, table, baseline)
    return Decision(
        pick=_plain(pick),
        runner_up=_plain(runner_up),
        baseline=_plain(table.loc[table["candidate"] == baseline].iloc[0]),
        reason=reason,
        what_it_would_take=_what_it_would_take(pick, runner_up),
        rejected=rejected,
        recall_checked=recalls is not None,
    )


def _with_rank_columns(table: pd.DataFrame, *, gates: Gates) -> pd.DataFrame:
    """Add the class (0 good, 1 acceptable and accurate, 2 acceptable) and the latency interval."""
    accurate = (
        Limit("accuracy_drop", gates.accuracy_drop_good).shortfall(table["accuracy_drop"]) == 0
    )
    rank = (table["verdict"] != "good").astype(int) + (~accurate).astype(int)
    median = table["latency_p50_ms"]
    return table.assign(
        _class=rank,
        _low=table.get("latency_p50_low_ms", median).fillna(median),
        _high=table.get("latency_p50_high_ms", median).fillna(median),
    )


def _rejected(table: pd.DataFrame, limits: list[Limit]) -> pd.DataFrame:
    """Candidates that miss a limit or were not measured, nearest first, each with its reason."""
    shortfall = shortfalls(table, limits).max(axis=1)
    failed = table["status"].eq("failed") if "status" in table else shortfall.isna()
    unmeasured = failed | table[list(NEEDED)].isna().any(axis=1)
    errors = table["error"] if "error" in table else pd.Series("", index=table.index)
    reasons = pd.Series(misses(table, limits), index=table.index)
    reasons = reasons.mask(unmeasured, "failed or not measured: " + errors.fillna("").astype(str))
    rejected = pd.DataFrame(
        {
            "candidate": table["candidate"],
            "reason": reasons.str.removesuffix(": "),
            "shortfall": shortfall.mask(unmeasured, math.inf),
        }
    )
    rejected = rejected[unmeasured | shortfall.gt(0)]
    return rejected.sort_values("shortfall", kind="stable", ignore_index=True)


def _choose(fitting: pd.DataFrame) -> pd.Series | None:
    """Apply the rule of :func:`decide` to the candidates that fit."""
    if fitting.empty:
        return None
    best = fitting[fitting["_class"] == fitting["_class"].min()]
    fastest = best.loc[best["latency_p50_ms"].idxmin()]
    as_fast = best[best["_low"] <= fastest["_high"]]
    order = as_fast.sort_values(
        ["memory_mb", "accuracy", "latency_p50_ms"], ascending=[True, False, True], kind="stable"
    )
    return pd.concat([order.iloc[0], pd.Series({"_tie_edge": fastest["_high"]})])


def _reason(pick: pd.Series, fitting: pd.DataFrame, table: pd.DataFrame, baseline: str) -> str:
    """One sentence with the pick's numbers beside the baseline's."""
    peers = fitting[fitting["_class"] == pick["_class"]]
    faster = peers["latency_p50_ms"] < pick["latency_p50_ms"]
    quality = CLASS_WORDS[pick["_class"]]
    how = (
        "the lightest of those as fast within noise as the fastest"
        if faster.any()
        else "the fastest"
    )
    against = "the baseline itself" if pick["candidate"] == baseline else f"against {baseline}"
    return (
        f"{pick['candidate']} is {how} of the {len(peers)} (out of {len(table)}) candidates "
        f"{quality}: "
        f"median latency {quantity('latency_p50_ms', pick['latency_p50_ms'])} "
        f"({0 - pick['latency_reduction']:+.1%}), "
        f"weights {quantity('memory_mb', pick['memory_mb'])} ({0 - pick['size_reduction']:+.1%}), "
        f"accuracy {quantity('accuracy', pick['accuracy'])} "
        f"({0 - 100 * pick['accuracy_drop']:+.2f} points), {against}."
    )


def _nothing_fits(rejected: pd.DataFrame) -> str:
    nearest = rejected.iloc[0]
    if math.isinf(nearest["shortfall"]):
        return (
            f"Nothing fits: none of the {len(rejected)} candidates was measured in full; "
            f"{nearest['candidate']}: {nearest['reason']}."
        )
    return (
        f"Nothing fits: {nearest['candidate']} comes nearest, its largest miss is "
        f"{nearest['shortfall']:.1%} of the limit: {nearest['reason']}."
    )


def _what_it_would_take(pick: pd.Series | None, runner_up: pd.Series | None) -> str:
    """Say what would make the runner-up win, the rest unchanged."""
    if runner_up is None:
        return "There is no runner-up: no other candidate passes every gate and limit."
    lower_class = runner_up["_class"] > pick["_class"]
    steps = [f"meet what it misses ({runner_up['missed']})"] if lower_class else []
    if not (lower_class and runner_up["_high"] < pick["_low"]):
        steps += _missing_margin(pick, runner_up)
    if not steps:
        return f"Nothing measured separates {runner_up['candidate']}: the first listed was taken."
    return f"For {runner_up['candidate']} to win it would have to {' and '.join(steps)}."


def _missing_margin(pick: pd.Series, runner_up: pd.Series) -> list[str]:
    """Name what the runner-up lacks: latency or, where as fast, the first tie-breaker it loses."""
    if runner_up["_low"] > pick["_tie_edge"]:
        lighter = runner_up["memory_mb"] < pick["memory_mb"]
        return [_change(runner_up, "latency_p50_ms", to=pick["_tie_edge" if lighter else "_low"])]
    for column, better in (("memory_mb", -1), ("accuracy", 1), ("latency_p50_ms", -1)):
        lead = better * (pick[column] - runner_up[column])
        if lead:
            return [_change(runner_up, column, to=pick[column])] if lead > 0 else []
    return []


def _change(row: pd.Series, column: str, *, to: float) -> str:
    verb, side = ("raise", "above") if to > row[column] else ("cut", "below")
    return (
        f"{verb} its {WORDS[column]} from {quantity(column, row[column])} "
        f"to {side} {quantity(column, to)} ({to / row[column] - 1:+.1%})"
    )


def _plain(row: pd.Series | None) -> dict[str, Any] | None:
    """Row as JSON types without the internal columns; NaN and infinity become ``None``."""
    if row is None:
        return None
    public = {key: value for key, value in row.items() if not str(key).startswith("_")}
    return {key: _json_value(value) for key, value in public.items()}


def _json_value(value: Any) -> Any:
    plain = value.item() if isinstance(value, np.generic) else value
    unknown = pd.isna(plain) or (isinstance(plain, float) and math.isinf(plain))
    return None if unknown else plain
