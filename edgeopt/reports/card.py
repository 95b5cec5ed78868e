"""The decision card: what was picked, its numbers, and what they are to the baseline's."""

import math
from collections.abc import Mapping
from typing import Any

import pandas as pd

from edgeopt.reports.explorer import ENERGY, MEMORY, bound_names
from edgeopt.reports.page_parts import TIMES, as_text, known, signed, with_unit
from edgeopt.runtimes import registered, runtime_named
from edgeopt.schema import COLUMNS

ROLES = {"pick": "Pick", "baseline": "Baseline", "runner_up": "Runner-up"}
UNCOMPRESSED = "fastest_uncompressed"
COLUMNS_OF_CARD = {**ROLES, UNCOMPRESSED: "Fastest uncompressed"}
COMPARED = (
    "accuracy",
    "test_accuracy",
    "macro_f1",
    "agreement",
    "latency_p50_ms",
    "latency_p95_ms",
    "throughput_sps",
    *MEMORY,
    *ENERGY,
    "int8_mac_share",
)


def with_late_columns(decision: Mapping[str, Any], sweep: pd.DataFrame) -> dict[str, Any]:
    """Add to the decision's rows what was measured after the choice, such as test accuracy.

    Also adds ``fastest_uncompressed``, the fastest unpruned fp32 candidate of the pick's network,
    unless it is the pick or the baseline: what the choice of a runtime alone would have given.
    """
    rows = {row["candidate"]: row for row in sweep.to_dict("records")}
    late = {
        role: rows.get(decision[role]["candidate"], {}) | decision[role]
        for role in ROLES
        if decision[role]
    }
    return {**decision, **late, UNCOMPRESSED: _fastest_uncompressed(decision, sweep)}


def _fastest_uncompressed(
    decision: Mapping[str, Any], sweep: pd.DataFrame
) -> dict[str, Any] | None:
    needed = {"pruning_level", "precision", "latency_p50_ms"}
    if not decision["pick"] or not needed <= set(sweep.columns):
        return None
    full = sweep[(sweep["pruning_level"] == 0) & (sweep["precision"] == "fp32")]
    if "model" in full:
        full = full[full["model"] == decision["pick"].get("model")]
    known_roles = [decision[role]["candidate"] for role in ("pick", "baseline") if decision[role]]
    fastest = full.nsmallest(1, "latency_p50_ms").to_dict("records")
    return next((row for row in fastest if row["candidate"] not in known_roles), None)


def card(decision: Mapping[str, Any]) -> dict[str, Any]:
    """Fill the decision card: the pick's numbers, then pick, baseline and runner-up in a table."""
    columns = [(word, decision[key]) for key, word in COLUMNS_OF_CARD.items() if decision.get(key)]
    rows = [
        (COLUMNS[name].title, [with_unit(row.get(name), name) for _, row in columns])
        for name in COMPARED
        if any(known(row.get(name)) for _, row in columns)
    ]
    pick, baseline = decision["pick"], decision["baseline"]
    return {
        "columns": columns,
        "comparison": rows,
        "measures": measures(decision, pick, baseline or {}) if pick else [],
    }


def measures(
    decision: Mapping[str, Any], pick: Mapping[str, Any], baseline: Mapping[str, Any]
) -> list[dict[str, Any]]:
    """List the numbers of the card, each with its interval and what it is to the baseline."""
    faster, smaller = ("faster", "slower"), ("smaller", "larger")
    full = decision.get(UNCOMPRESSED) or {}
    notes = {
        "accuracy": [
            points(pick, baseline),
            *tested(decision, pick, baseline),
        ],
        "latency_p50_ms": [
            times(pick, baseline, "latency_p50_ms", words=faster),
            times(pick, full, "latency_p50_ms", words=faster, than=f"uncompressed {runtime(full)}"),
        ],
        "memory_mb": [times(pick, baseline, "memory_mb", words=smaller)],
        "artifact_bytes": [times(pick, baseline, "artifact_bytes", words=smaller)],
    }
    return [
        {
            "title": COLUMNS[name].title,
            "value": with_unit(pick.get(name), name),
            "range": interval(pick, name),
            "notes": [note for note in lines if note],
        }
        for name, lines in notes.items()
    ]


def runtime(row: Mapping[str, Any]) -> str:
    """Title of a row's runtime; empty when it has none."""
    name = row.get("runtime")
    return runtime_named(name).title if name in registered() else ""


def tested(
    decision: Mapping[str, Any], pick: Mapping[str, Any], baseline: Mapping[str, Any]
) -> list[str]:
    """Say how the pick did on the test images, beside the baseline and a better runner-up.

    ``decision["against_pick"]`` are rows of :func:`edgeopt.decision.paired_comparison` with
    the pick as parent.
    """
    if not known(pick.get("test_accuracy")):
        return []
    words = f"{with_unit(pick['test_accuracy'], 'test_accuracy')} on test images, scored once"
    lines = [", ".join(filter(None, (words, interval(pick, "test_accuracy"))))]
    runner_up = decision.get("runner_up") or {}
    for row in decision.get("against_pick", []):
        if row["candidate"] == baseline.get("candidate"):
            lines.append(f"there {_difference(row, sign=-1)} against the baseline")
        elif row["candidate"] == runner_up.get("candidate") and row["significant"]:
            verb = "better" if row["accuracy_difference"] > 0 else "worse"
            lines.append(f"there the runner-up is {verb}: {_difference(row, sign=1)}")
    return lines


def _difference(row: Mapping[str, Any], *, sign: int) -> str:
    """Write a paired difference with its interval first, then how and how surely it was found."""
    ends = sorted(
        100 * sign * row.get(end, math.nan) for end in ("difference_low", "difference_high")
    )
    between = f"95% interval {signed(ends[0])} to {signed(ends[1])}, " if known(ends[0]) else ""
    found = "" if row["significant"] else "no difference detected, "
    change = signed(100 * sign * row["accuracy_difference"])
    method = row.get("method", "paired test")
    return f"{change} points ({between}{found}{method}, p = {row['p_holm']:.2g})"


def interval(row: Mapping[str, Any], name: str) -> str:
    """Write the 95% interval of a number in words; empty when the row has none."""
    low, high = (row.get(bound) for bound in bound_names(name))
    if not (known(low) and known(high)):
        return ""
    return f"95% interval {as_text(low, name)} to {as_text(high, name)}"


def points(row: Mapping[str, Any], baseline: Mapping[str, Any]) -> str:
    """Write the change of accuracy in percentage points, against the baseline."""
    value, reference = row.get("accuracy"), baseline.get("accuracy")
    if not (known(value) and known(reference)):
        return ""
    text = f"{signed(100 * (value - reference))} points against the baseline on validation images"
    low, high = row.get("accuracy_drop_low"), row.get("accuracy_drop_high")
    if known(low) and known(high):
        confidence = f"{row['accuracy_drop_confidence']:.0%}"
        text += f", paired {confidence} interval {signed(-100 * high)} to {signed(-100 * low)}"
    if known(row.get("accuracy_within")):
        text += f": within the {100 * row['accuracy_within']:g} points that the gate allows"
    return text


def times(
    row: Mapping[str, Any],
    baseline: Mapping[str, Any],
    name: str,
    *,
    words: tuple[str, str],
    than: str = "the baseline",
) -> str:
    """Write the ratio of two costs in words, e.g. ``6.6x faster than the baseline``."""
    value, reference = row.get(name), baseline.get(name)
    if not (known(value) and known(reference)) or min(value, reference) <= 0:
        return ""
    better, ratio = value <= reference, max(value, reference) / min(value, reference)
    if f"{ratio:.1f}" == "1.0":
        return f"the same as {than}"
    return f"{ratio:.1f}{TIMES} {words[0] if better else words[1]} than {than}"
