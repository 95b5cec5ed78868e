"""The choice of one candidate from a sweep, with its reasons in computed words."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from edgeopt.decision.answers import Answers, gate_intervals
from edgeopt.decision.gates import NEEDED, Constraints, Gates, gate_table
from edgeopt.decision.limits import BROKEN, NOT_SETTLED, Limit, findings, texts
from edgeopt.metrics import latency_ratios
from edgeopt.runtimes import registered
from edgeopt.schema import known, quantity, require_columns

WORDS = {"memory_mb": "weights", "accuracy": "accuracy", "latency_p50_ms": "median latency"}
STANDINGS = (
    "pick",
    "runner-up",
    "good",
    "good, not settled",
    "acceptable",
    "refused",
    "over budget",
    "failed",
)
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
    :func:`gate_table`; ``rejected`` has ``candidate, reason, shortfall`` (the largest miss as a
    share of its limit), the nearest first. ``standings`` has ``candidate, standing, decided_by``
    of every candidate: where it ended (``STANDINGS``) and what decided that, in words.
    ``recall_checked`` tells whether per-class recalls were guarded.
    """

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
    """Name the unpruned fp32 candidate, of the first runtime in the order of the registry.

    Of several networks that of the most accurate one. One that failed is named only when all did.

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
        rows = rows.sort_values(
            "runtime", key=lambda s: s.map(list(registered()).index), kind="stable"
        )
    if "model" in rows and len(rows["model"].unique()) > 1:
        first = rows.drop_duplicates("model")
        rows = first.sort_values("accuracy", ascending=False, kind="stable")
    return rows["candidate"].iloc[0]


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

    Parameters
    ----------
    sweep : DataFrame
        Validation results after :func:`edgeopt.decision.apply_budgets`.
    recalls : DataFrame, optional
        ``candidate, class_name, recall``; those of ``answers`` when omitted. Without either no
        class is guarded.
    answers : Answers, optional
        The right answers behind the accuracies. With them accuracy and recalls are judged by paired
        intervals at ``gates.gate_confidence``, without them by the estimates.
    samples : DataFrame, optional
        Latency samples. Without them two candidates tie when the intervals of the medians in
        ``sweep`` overlap.
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
    recalls = answers.recalls() if recalls is None and answers else recalls
    intervals = _gate_intervals(answers, baseline, gates)
    judged = gate_table(sweep, baseline=baseline, gates=gates, recalls=recalls, intervals=intervals)
    limits = [
        Limit("memory_mb", sweep["active_budget_mb"].iloc[0]),
        *(constraints or Constraints()).limits(),
        *gates.bad(recalls=recalls is not None),
    ]
    table = sweep.merge(judged, on="candidate")
    require_columns(table, [limit.column for limit in limits], what="decide")
    table = _with_rank(table, limits, gates=gates, intervals=intervals)
    rejected = _rejected(table)
    fitting = table[~table["candidate"].isin(rejected["candidate"])]
    pick = _choose(fitting, samples, cap=gates.latency_tie_cap)
    others = fitting if pick is None else fitting[fitting["candidate"] != pick["candidate"]]
    runner_up = _choose(others, samples, cap=gates.latency_tie_cap)
    reason = _nothing_fits(rejected) if pick is None else _reason(pick, fitting, table, baseline)
    return Decision(
        pick=_plain(pick),
        runner_up=_plain(runner_up),
        baseline=_plain(table.loc[table["candidate"] == baseline].iloc[0]),
        reason=reason,
        what_it_would_take=_what_it_would_take(pick, runner_up, samples, gates.latency_tie_cap),
        rejected=rejected,
        standings=_standings(table, rejected, pick=pick, runner_up=runner_up),
        recall_checked=recalls is not None,
    )


def _gate_intervals(answers: Answers | None, baseline: str, gates: Gates) -> pd.DataFrame | None:
    if answers is None or not gates.gate_confidence or baseline not in answers.correct:
        return None
    return gate_intervals(answers, baseline=baseline, confidence=gates.gate_confidence)


def _with_rank(
    table: pd.DataFrame,
    limits: Sequence[Limit],
    *,
    gates: Gates,
    intervals: pd.DataFrame | None,
) -> pd.DataFrame:
    """Add the class (0 good, 1 acceptable and accurate, 2 acceptable) and why a row is refused."""
    found = findings(table, limits, intervals)
    wished = findings(table, gates.good(), intervals)
    accurate = Limit("accuracy_drop", gates.accuracy_drop_good)
    inaccurate = np.array([own[accurate].verdict == BROKEN for own in wished])
    return table.assign(
        not_settled=[
            texts(own | good, NOT_SETTLED) for own, good in zip(found, wished, strict=True)
        ],
        _class=(table["verdict"] != "good").astype(int) + inaccurate,
        _shortfall=[max(f.shortfall for f in own.values()) for own in found],
        _refused=[texts(own, BROKEN) for own in found],
    )


def _rejected(table: pd.DataFrame) -> pd.DataFrame:
    """Candidates that break a limit or were not measured, nearest first, each with its reason."""
    failed = table["status"].eq("failed") if "status" in table else False
    unmeasured = failed | table[list(NEEDED)].isna().any(axis=1)
    errors = table["error"] if "error" in table else pd.Series("", index=table.index)
    reasons = table["_refused"].mask(
        unmeasured, "failed or not measured: " + errors.fillna("").astype(str)
    )
    rejected = pd.DataFrame(
        {
            "candidate": table["candidate"],
            "reason": reasons.str.removesuffix(": "),
            "shortfall": table["_shortfall"].mask(unmeasured, math.inf),
        }
    )
    rejected = rejected[unmeasured | table["_shortfall"].gt(0)]
    return rejected.sort_values("shortfall", kind="stable", ignore_index=True)


def _standings(
    table: pd.DataFrame,
    rejected: pd.DataFrame,
    *,
    pick: pd.Series | None,
    runner_up: pd.Series | None,
) -> pd.DataFrame:
    """Say of every candidate where it ended and what decided that."""
    reasons = rejected.set_index("candidate")
    refused = table["candidate"].isin(rejected["candidate"])
    unmeasured = table["candidate"].map(reasons["shortfall"]).map(math.isinf)
    heavy = table["memory_mb"] > table["active_budget_mb"]
    open_gates = table["not_settled"] != ""
    good, role = table["_class"] == 0, {}
    for row, word in ((runner_up, "runner-up"), (pick, "pick")):
        role |= {row["candidate"]: word} if row is not None else {}
    first_true = {
        "failed": unmeasured,
        "over budget": refused & heavy,
        "refused": refused,
        "acceptable": ~good,
        "good, not settled": open_gates,
    }
    standing = np.select([*first_true.values()], [*first_true], default="good")
    words = table["missed"].where(~good, table["not_settled"])
    return pd.DataFrame(
        {
            "candidate": table["candidate"],
            "standing": [*map(role.get, table["candidate"], standing)],
            "decided_by": words.mask(refused, table["candidate"].map(reasons["reason"])),
        }
    )


def _choose(fitting: pd.DataFrame, samples: pd.DataFrame | None, *, cap: float) -> pd.Series | None:
    """Apply the rule of :func:`decide` to the candidates that fit."""
    if fitting.empty:
        return None
    best = fitting[fitting["_class"] == fitting["_class"].min()]
    settled = best[best["not_settled"] == ""]
    best = best if settled.empty else settled
    fastest = best.loc[best["latency_p50_ms"].idxmin()]
    ties = _ties(_ratios(best, fastest, samples), cap)
    order = best[ties].sort_values(
        ["memory_mb", "accuracy", "latency_p50_ms"], ascending=[True, False, True], kind="stable"
    )
    return order.iloc[0]


def _ratios(rows: pd.DataFrame, fastest: pd.Series, samples: pd.DataFrame | None) -> pd.DataFrame:
    """Latency of each row over that of the fastest, and the low end of its interval."""
    median = rows["latency_p50_ms"]
    ratio = median / fastest["latency_p50_ms"]
    if samples is not None:
        own = samples[samples["candidate"].isin([*rows["candidate"], fastest["candidate"]])]
        table = latency_ratios(own, to=fastest["candidate"]).set_index("candidate")
        low = rows["candidate"].map(table["latency_ratio_low"])
    else:
        high = fastest.get("latency_p50_high_ms", np.nan)
        high = fastest["latency_p50_ms"] if pd.isna(high) else high
        low = rows.get("latency_p50_low_ms", median).fillna(median) / high
    return pd.DataFrame({"latency_ratio": ratio, "latency_ratio_low": low.fillna(ratio)})


def _ties(ratios: pd.DataFrame, cap: float) -> pd.Series:
    """Rows that are not measurably slower than the fastest, nor by more than ``cap``."""
    return (ratios["latency_ratio_low"] <= 1) & (ratios["latency_ratio"] <= 1 + cap)


def _reason(pick: pd.Series, fitting: pd.DataFrame, table: pd.DataFrame, baseline: str) -> str:
    """One sentence with the pick's numbers beside the baseline's, and what is not settled."""
    peers = fitting[fitting["_class"] == pick["_class"]]
    open_gates = f" Not settled: {pick['not_settled']}." if pick["not_settled"] else ""
    if not open_gates:
        peers = peers[peers["not_settled"] == ""]
    faster = peers["latency_p50_ms"] < pick["latency_p50_ms"]
    quality = NONE_BROKEN if open_gates and not pick["_class"] else CLASS_WORDS[pick["_class"]]
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
        f"({_change('latency_reduction', pick['latency_reduction'])}), "
        f"weights {quantity('memory_mb', pick['memory_mb'])} "
        f"({_change('size_reduction', pick['size_reduction'])}), "
        f"accuracy {quantity('accuracy', pick['accuracy'])} "
        f"({_change('accuracy_drop', pick['accuracy_drop'])}), {against}.{open_gates}"
    )


def _change(column: str, value: float) -> str:
    return quantity(column, 0 - value, signed=True) if known(value) else "baseline not known"


def _nothing_fits(rejected: pd.DataFrame) -> str:
    nearest = rejected.iloc[0]
    if math.isinf(nearest["shortfall"]):
        return (
            f"Nothing fits: none of the {len(rejected)} candidates could be judged in full; "
            f"{nearest['candidate']}: {nearest['reason']}."
        )
    return (
        f"Nothing fits: {nearest['candidate']} comes nearest, its largest miss is "
        f"{_share_of_limit(nearest['shortfall'])} of the limit: {nearest['reason']}."
    )


def _share_of_limit(shortfall: float) -> str:
    return "less than 0.1%" if shortfall < 0.0005 else f"{shortfall:.1%}"


def _what_it_would_take(
    pick: pd.Series | None, runner_up: pd.Series | None, samples: pd.DataFrame | None, cap: float
) -> str:
    """Say what would make the runner-up win, the rest unchanged."""
    if runner_up is None:
        return "There is no runner-up: every other candidate breaks a gate or a limit."
    steps = []
    if runner_up["_class"] > pick["_class"]:
        steps.append(f"meet what it misses ({runner_up['missed']})")
    elif runner_up["not_settled"] and not pick["not_settled"]:
        steps.append(f"have settled what is open ({runner_up['not_settled']})")
    steps += _missing_margin(pick, runner_up, samples, cap)
    if not steps:
        return f"Nothing measured separates {runner_up['candidate']}: the first listed was taken."
    return f"For {runner_up['candidate']} to win it would have to {' and '.join(steps)}."


def _missing_margin(
    pick: pd.Series, runner_up: pd.Series, samples: pd.DataFrame | None, cap: float
) -> list[str]:
    """Name what the runner-up lacks: latency or, where as fast, the first tie-breaker it loses."""
    rows = pd.DataFrame([pick, runner_up]).infer_objects()
    fastest = rows.loc[rows["latency_p50_ms"].idxmin()]
    ratios = _ratios(rows, fastest, samples)
    if not _ties(ratios, cap).all():
        ratio, low = ratios.iloc[1]
        if ratio == 1:  # the pick is the slower one
            return []
        lighter = runner_up["memory_mb"] < pick["memory_mb"]
        noise = min(1 + cap, ratio / low)
        target = pick["latency_p50_ms"] * (noise if lighter else 1 / noise)
        return [_step(runner_up, "latency_p50_ms", to=target)]
    for column, better in (("memory_mb", -1), ("accuracy", 1), ("latency_p50_ms", -1)):
        lead = better * (pick[column] - runner_up[column])
        if lead:
            return [_step(runner_up, column, to=pick[column])] if lead > 0 else []
    return []


def _step(row: pd.Series, column: str, *, to: float) -> str:
    verb, side = ("raise", "above") if to > row[column] else ("cut", "below")
    return (
        f"{verb} its {WORDS[column]} from {quantity(column, row[column])} "
        f"to {side} {quantity(column, to)} "
        f"({quantity('latency_reduction', to / row[column] - 1, signed=True)})"
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
