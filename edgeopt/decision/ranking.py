"""The rule of the choice: which candidate wins, and what another one lacks to win."""

from operator import gt, lt

import pandas as pd

from edgeopt.metrics import latency_ratios
from edgeopt.schema import quantity

WORDS = {"latency_p50_ms": "median latency", "memory_mb": "weights", "accuracy": "accuracy"}


def choose(fitting: pd.DataFrame, *, samples: pd.DataFrame | None, cap: float) -> pd.Series | None:
    """Apply the rule of :func:`edgeopt.decision.decide` to the candidates that fit."""
    if fitting.empty:
        return None
    best = fitting[fitting["_class"] == fitting["_class"].min()]
    settled = best[best["not_settled"] == ""]
    best = best if settled.empty else settled
    order = best[_ties(_ratios(best, samples), cap)].sort_values(
        ["memory_mb", "accuracy", "latency_p50_ms"], ascending=[True, False, True], kind="stable"
    )
    return order.iloc[0]


def _ratios(rows: pd.DataFrame, samples: pd.DataFrame | None) -> pd.DataFrame:
    """Latency of each row over that of the fastest, and the low end of its interval."""
    names, median = rows["candidate"], rows["latency_p50_ms"]
    fastest = median.idxmin()
    ratio = median / median[fastest]
    if samples is not None:
        own = samples[samples["candidate"].isin(names)]
        table = latency_ratios(own, to=names[fastest]).set_index("candidate")
        low = names.map(table["latency_ratio_low"])
    else:
        high = rows.get("latency_p50_high_ms", median).fillna(median)[fastest]
        low = rows.get("latency_p50_low_ms", median).fillna(median) / high
    return pd.DataFrame({"latency_ratio": ratio, "latency_ratio_low": low.fillna(ratio)})


def _ties(ratios: pd.DataFrame, cap: float) -> pd.Series:
    """Rows that are not measurably slower than the fastest, nor by more than ``cap``."""
    return (ratios["latency_ratio_low"] <= 1) & (ratios["latency_ratio"] <= 1 + cap)


def what_it_would_take(
    pick: pd.Series | None,
    runner_up: pd.Series | None,
    *,
    samples: pd.DataFrame | None,
    cap: float,
) -> str:
    """Say what would make the runner-up win, the rest unchanged."""
    if runner_up is None:
        return "There is no runner-up: no other candidate meets every gate and limit."
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
    ratios = _ratios(rows, samples)
    if not _ties(ratios, cap).all():
        ratio, low = ratios.iloc[1]
        if ratio == 1:  # the pick is the slower one
            return []
        own, other = ((row["memory_mb"], -row["accuracy"]) for row in (runner_up, pick))
        lead = int(own < other) - int(own > other)  # as fast within noise, it would win, or lose
        target = pick["latency_p50_ms"] * min(1 + cap, ratio / low) ** lead
        return [_step(runner_up, "latency_p50_ms", to=target)]
    for column, better in (("memory_mb", lt), ("accuracy", gt), ("latency_p50_ms", lt)):
        if pick[column] != runner_up[column]:
            leads = better(pick[column], runner_up[column])
            return [_step(runner_up, column, to=pick[column])] if leads else []
    return []


def _step(row: pd.Series, column: str, *, to: float) -> str:
    verb, side = ("raise", "above") if to > row[column] else ("cut", "below")
    return (
        f"{verb} its {WORDS[column]} from {quantity(column, row[column])} "
        f"to {side} {quantity(column, to)} "
        f"({quantity('latency_reduction', to / row[column] - 1, signed=True)})"
    )
