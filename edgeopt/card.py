"""The decision card: what was picked, its numbers, and what they are to the baseline's."""

from collections.abc import Mapping
from typing import Any

import pandas as pd

from edgeopt.explorer import ENERGY, MEMORY, bound_names
from edgeopt.page_parts import TIMES, as_text, known, signed, with_unit
from edgeopt.schema import COLUMNS

ROLES = {"pick": "Pick", "baseline": "Baseline", "runner_up": "Runner-up"}
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
    """Add to the decision's rows what was measured after the choice, such as test accuracy."""
    rows = {row["candidate"]: row for row in sweep.to_dict("records")}
    late = {
        role: rows.get(decision[role]["candidate"], {}) | decision[role]
        for role in ROLES
        if decision[role]
    }
    return {**decision, **late}


def card(decision: Mapping[str, Any]) -> dict[str, Any]:
    """Fill the decision card: the pick's numbers, then pick, baseline and runner-up in a table."""
    columns = [(word, decision[key]) for key, word in ROLES.items() if decision.get(key)]
    rows = [
        (COLUMNS[name].title, [with_unit(row.get(name), name) for _, row in columns])
        for name in COMPARED
        if any(known(row.get(name)) for _, row in columns)
    ]
    pick, baseline = decision["pick"], decision["baseline"]
    return {
        "columns": columns,
        "comparison": rows,
        "measures": measures(pick, baseline or {}) if pick else [],
    }


def measures(pick: Mapping[str, Any], baseline: Mapping[str, Any]) -> list[dict[str, str]]:
    """List the numbers of the card, each with its interval and what it is to the baseline."""
    words = {
        "accuracy": points(pick.get("accuracy"), baseline.get("accuracy")),
        "latency_p50_ms": times(pick, baseline, "latency_p50_ms", words=("faster", "slower")),
        "memory_mb": times(pick, baseline, "memory_mb", words=("smaller", "larger")),
        "artifact_bytes": times(pick, baseline, "artifact_bytes", words=("smaller", "larger")),
    }
    return [
        {
            "title": COLUMNS[name].title,
            "value": with_unit(pick.get(name), name),
            "range": interval(pick, name),
            "against": against,
            "also": tested(pick) if name == "accuracy" else "",
        }
        for name, against in words.items()
    ]


def tested(pick: Mapping[str, Any]) -> str:
    """Say how the pick did on the test images; empty when it was not scored on them."""
    if not known(pick.get("test_accuracy")):
        return ""
    words = f"{with_unit(pick['test_accuracy'], 'test_accuracy')} on test images, scored once"
    return ", ".join(filter(None, (words, interval(pick, "test_accuracy"))))


def interval(row: Mapping[str, Any], name: str) -> str:
    """Write the 95% interval of a number in words; empty when the row has none."""
    low, high = (row.get(bound) for bound in bound_names(name))
    if not (known(low) and known(high)):
        return ""
    return f"95% interval {as_text(low, name)} to {as_text(high, name)}"


def points(value: float | None, reference: float | None) -> str:
    """Write the difference of two shares in percentage points, against the baseline."""
    if not (known(value) and known(reference)):
        return ""
    return f"{signed(100 * (value - reference))} points against the baseline"


def times(
    row: Mapping[str, Any], baseline: Mapping[str, Any], name: str, *, words: tuple[str, str]
) -> str:
    """Write the ratio of two costs in words, e.g. ``6.6x faster than the baseline``."""
    value, reference = row.get(name), baseline.get(name)
    if not (known(value) and known(reference)) or min(value, reference) <= 0:
        return ""
    better, ratio = value <= reference, max(value, reference) / min(value, reference)
    if f"{ratio:.1f}" == "1.0":
        return "the same as the baseline"
    return f"{ratio:.1f}{TIMES} {words[0] if better else words[1]} than the baseline"
