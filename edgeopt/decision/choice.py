"""The choice of one candidate from a sweep, with its reasons in computed words."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import pandas as pd

from edgeopt.decision.answers import Answers, gate_intervals
from edgeopt.decision.gates import Constraints, Gates, gate_table
from edgeopt.decision.limits import Limit
from edgeopt.decision.ranking import WORDS, choose, what_it_would_take
from edgeopt.runtimes import registered
from edgeopt.schema import known, quantity, require_columns

CHANGES = {
    "latency_p50_ms": "latency_reduction",
    "memory_mb": "size_reduction",
    "accuracy": "accuracy_drop",
}
NEEDED = ("candidate", "accuracy", "latency_p50_ms", "memory_mb")
NAMED = 3  # candidates in a sentence
NONE_BROKEN = "that break no gate and no limit"
CLASS_WORDS = (
    "that pass every gate and limit",
    "that are acceptable and lose little accuracy (none is good by every gate)",
    "that are acceptable (none loses as little accuracy as wished)",
)


@dataclass(frozen=True, eq=False)
class Decision:
    """What to ship and why; ``pick`` is ``None`` when nothing fits.

    ``pick``, ``runner_up`` and ``baseline`` are rows of the sweep with the columns of
    :func:`edgeopt.decision.gates.gate_table`; ``rejected`` has ``candidate, reason, shortfall``
    (the largest miss as a share of its limit), the nearest first. ``standings`` has ``candidate,
    standing, decided_by`` of every candidate: where it ended (one of ``STANDINGS``) and what
    decided that, in words. ``recall_checked`` tells whether per-class recalls were guarded.
    """

    STANDINGS: ClassVar = (
        "pick",
        "runner-up",
        "good",
        "good, not settled",
        "acceptable",
        "refused",
        "over budget",
        "failed",
    )

    pick: dict[str, Any] | None
    runner_up: dict[str, Any] | None
    baseline: dict[str, Any]
    reason: str
    what_it_would_take: str
    rejected: pd.DataFrame
    standings: pd.DataFrame
    recall_checked: bool

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON types only; numbers that are not known are ``None``."""
        rejected = [_plain(row) for row in self.rejected.to_dict("records")]
        plain = {**vars(self), "rejected": rejected}
        return {key: value for key, value in plain.items() if key != "standings"}


def find_baseline(sweep: pd.DataFrame) -> str:
    """Name the unpruned fp32 candidate, of the first runtime in the order of the registry.

    Of several networks that of the most accurate one. One that failed is named only when all did.
    Raises ``ValueError`` when a column is missing or there is no such candidate.
    """
    require_columns(sweep, ["candidate", "pruning_level", "precision"], what="find_baseline")
    rows = sweep[(sweep["pruning_level"] == 0) & (sweep["precision"] == "fp32")]
    if rows.empty:
        raise ValueError("no candidate has pruning_level 0 and precision fp32 to compare with")
    if "status" in rows and rows["status"].ne("failed").any():
        rows = rows[rows["status"] != "failed"]
    if "runtime" in rows:
        order = list(registered()).index
        rows = rows.sort_values("runtime", key=lambda names: names.map(order), kind="stable")
    if "model" in rows:
        rows = rows.drop_duplicates("model")
        rows = rows.sort_values("accuracy", ascending=False, kind="stable")
    return rows["candidate"].iloc[0]


def _baseline(sweep: pd.DataFrame, answers: Answers | None) -> str:
    """Name the baseline among the candidates that ran with every seed, where one of them is."""
    complete = sweep[sweep["candidate"].isin([*answers.correct])] if answers else sweep
    try:
        return find_baseline(complete)
    except ValueError:
        return find_baseline(sweep)


def decide(
    sweep: pd.DataFrame,
    *,
    gates: Gates,
    constraints: Constraints | None = None,
    recalls: pd.DataFrame | None = None,
    answers: Answers | None = None,
    samples: pd.DataFrame | None = None,
    baseline: str | None = None,
) -> Decision:
    """Choose the candidate to ship.

    The rule: of the candidates that are inside the active memory budget and break no constraint
    and no gate, keep the best class there is (good; else acceptable with an accuracy drop inside
    ``accuracy_drop_good``; else acceptable), in it those whose every gate is settled before those
    with one that the images do not decide, and take the lowest median latency. Candidates that are
    at most ``latency_tie_cap`` slower than the fastest, and not measurably slower in the same
    rounds (:func:`edgeopt.metrics.latency_ratios`), are as fast: of these the one with the
    smallest weights wins, then the most accurate, then the fastest. The runner-up is the same
    rule's choice without the pick.

    ``sweep`` holds validation results after :func:`edgeopt.decision.apply_budgets`, ``answers`` the
    right answers behind its accuracies: with them accuracy and recalls are judged by paired
    intervals at ``gates.gate_confidence``, without them by the estimates. ``recalls`` has
    ``candidate, class_name, recall``; those of ``answers`` when omitted, and without either no
    class is guarded. Without latency ``samples`` two candidates tie when the intervals of the
    medians in ``sweep`` overlap. ``baseline`` is the unpruned fp32 candidate of the first runtime
    and the most accurate network when omitted.

    Raises
    ------
    ValueError
        When the sweep is empty, or a column, the baseline or a candidate's recalls are missing.
    """
    constraints = (constraints or Constraints()).limits()
    needed = [*NEEDED, "active_budget_mb", *(limit.column for limit in constraints)]
    require_columns(sweep, needed, what="decide")
    if sweep.empty:
        raise ValueError("the sweep has no rows; allowed: one candidate or more")
    baseline = baseline or _baseline(sweep, answers)
    intervals, by_intervals = None, answers is not None and gates.gate_confidence > 0
    if by_intervals and baseline in answers.correct:
        intervals = gate_intervals(answers, baseline=baseline, confidence=gates.gate_confidence)
    recalls = answers.recalls() if recalls is None and answers else recalls
    table = gate_table(
        sweep,
        baseline=baseline,
        gates=gates,
        recalls=recalls,
        intervals=intervals,
        limits=[Limit("memory_mb", sweep["active_budget_mb"].iloc[0]), *constraints],
    )
    table = _with_failures(table)
    fitting, rejected = table[table["_shortfall"] == 0], _rejected(table)
    tie = {"samples": samples, "cap": gates.latency_tie_cap}
    pick = choose(fitting, **tie)
    runner_up = None if pick is None else choose(fitting.drop(pick.name), **tie)
    reason = _nothing_fits(rejected) if pick is None else _reason(pick, fitting, table, baseline)
    if by_intervals and intervals is None:
        reason += f" {baseline} did not run with every seed: estimates decide, not intervals."
    return Decision(
        pick=_plain(pick),
        runner_up=_plain(runner_up),
        baseline=_plain(table.loc[table["candidate"] == baseline].iloc[0]),
        reason=reason,
        what_it_would_take=what_it_would_take(pick, runner_up, **tie),
        rejected=rejected,
        standings=_standings(table, pick=pick, runner_up=runner_up),
        recall_checked=recalls is not None,
    )


def _with_failures(table: pd.DataFrame) -> pd.DataFrame:
    """Refuse what failed or was not measured, with its error for a reason."""
    failed = table["status"].eq("failed") if "status" in table else False
    unmeasured = failed | table[list(NEEDED)].isna().any(axis=1)
    errors = table["error"] if "error" in table else pd.Series("", index=table.index)
    reasons = "failed or not measured: " + errors.astype(object).fillna("").astype(str)
    return table.assign(
        _refused=table["_refused"].mask(unmeasured, reasons.str.removesuffix(": ")),
        _failed=unmeasured,
        _shortfall=table["_shortfall"].mask(unmeasured, math.inf),
    )


def _rejected(table: pd.DataFrame) -> pd.DataFrame:
    """Candidates that break a limit or were not measured, nearest first, each with its reason."""
    names = {"candidate": "candidate", "_refused": "reason", "_shortfall": "shortfall"}
    rejected = table.loc[table["_shortfall"] > 0, [*names]].rename(columns=names)
    return rejected.sort_values("shortfall", kind="stable", ignore_index=True)


def _standings(
    table: pd.DataFrame, *, pick: pd.Series | None, runner_up: pd.Series | None
) -> pd.DataFrame:
    """Say of every candidate where it ended and what decided that."""
    refused, good = table["_shortfall"] > 0, table["_class"] == 0
    first_true = {
        "failed": table["_failed"],
        "over budget": refused & (table["memory_mb"] > table["active_budget_mb"]),
        "refused": refused,
        "acceptable": ~good,
        "good, not settled": table["not_settled"] != "",
    }
    standing = np.select([*first_true.values()], [*first_true], default="good").astype(object)
    for row, role in ((pick, "pick"), (runner_up, "runner-up")):
        if row is not None:
            standing[row.name] = role
    words = table["missed"].where(~good, table["not_settled"]).mask(refused, table["_refused"])
    if "int8_recovery" in table:
        fallen = table["int8_recovery"]
        words = words.mask(fallen != "", (words + "; " + fallen).str.removeprefix("; "))
    return pd.DataFrame(
        {"candidate": table["candidate"], "standing": standing, "decided_by": words}
    )


def _reason(pick: pd.Series, fitting: pd.DataFrame, table: pd.DataFrame, baseline: str) -> str:
    """One sentence with the pick's numbers beside the baseline's, and what is not settled."""
    peers = fitting[fitting["_class"] == pick["_class"]]
    open_gates = f" Not settled: {pick['not_settled']}." if pick["not_settled"] else ""
    passed_over = ""
    if not open_gates:
        unsettled = peers["not_settled"] != ""
        peers, passed_over = peers[~unsettled], _passed_over(pick, peers[unsettled])
    faster = peers["latency_p50_ms"] < pick["latency_p50_ms"]
    quality = NONE_BROKEN if open_gates and not pick["_class"] else CLASS_WORDS[pick["_class"]]
    how = "the lightest of those as fast within noise as the fastest"
    how = how if faster.any() else "the fastest"
    against = "the baseline itself" if pick["candidate"] == baseline else f"against {baseline}"
    numbers = ", ".join(
        f"{WORDS[column]} {quantity(column, pick[column])} ({_change(change, pick[change])})"
        for column, change in CHANGES.items()
    )
    return (
        f"{pick['candidate']} is {how} of the {len(peers)} (out of {len(table)}) candidates "
        f"{quality}: {numbers}, {against}.{_call_share(pick)}{open_gates}{passed_over}"
    )


def _passed_over(pick: pd.Series, unsettled: pd.DataFrame) -> str:
    """Name the candidates that are faster, but of which not every gate is settled."""
    faster = unsettled[unsettled["latency_p50_ms"] < pick["latency_p50_ms"]]
    if faster.empty:
        return ""
    names = faster.sort_values("latency_p50_ms")["candidate"].tolist()
    more = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
    return f" Faster, but not settled: {', '.join(names[:NAMED])}{more}."


def _call_share(pick: pd.Series) -> str:
    """Say how much of the latency is the call itself, where that was measured."""
    share = pick.get("call_share")
    if not known(share):
        return ""
    return f" {quantity('call_share', share)} of its latency is the call of the runtime itself."


def _change(column: str, value: float) -> str:
    return quantity(column, 0 - value, signed=True) if known(value) else "baseline not known"


def _nothing_fits(rejected: pd.DataFrame) -> str:
    name, reason, shortfall = rejected.iloc[0]
    if math.isinf(shortfall):
        return (
            f"Nothing fits: none of the {len(rejected)} candidates could be judged in full; "
            f"{name}: {reason}."
        )
    miss = "less than 0.1%" if shortfall < 0.0005 else f"{shortfall:.1%}"
    return f"Nothing fits: {name} comes nearest, its largest miss is {miss} of the limit: {reason}."


def _plain(row: Mapping[str, Any] | None) -> dict[str, Any] | None:
    """Row as JSON types without the internal columns; NaN and infinity become ``None``."""
    if row is None:
        return None
    public = {key: value for key, value in row.items() if not key.startswith("_")}
    values = pd.Series(public, dtype=object).replace([math.inf, -math.inf], math.nan)
    return values.where(values.notna(), None).to_dict()
