"""Candidates set side by side: on test images, int8 beside fp32, networks, and words for it."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from edgeopt.decision import Decision, paired_comparison
from edgeopt.experiments.candidates import Candidate, testable_parents
from edgeopt.schema import INT8_PRECISIONS


def compare_on_test(
    right: Mapping[str, np.ndarray], candidates: Sequence[Candidate], *, decision: Decision
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Compare every variant with its fp32 parent, and the pick with what it was chosen over.

    ``right`` says which test images each candidate gets right, [seeds, N]; those that lack a seed
    are left out. ``candidates`` are the first seed's. Both tables are those of
    :func:`edgeopt.decision.paired_comparison`; the pick is the ``parent`` in the second one.
    """
    seeds = max(map(len, right.values()))
    complete = {name: rows for name, rows in right.items() if len(rows) == seeds}
    parents = testable_parents([c for c in candidates if c.name in complete])
    pick = decision.pick and decision.pick["candidate"]
    others = [row["candidate"] for row in (decision.baseline, decision.runner_up) if row]
    rivals = {name: pick for name in others if name != pick and {name, pick} <= complete.keys()}
    return paired_comparison(complete, parent=parents), paired_comparison(complete, parent=rivals)


def int8_cost(table: pd.DataFrame) -> pd.DataFrame:
    """Set every int8 candidate beside the fp32 one of the same network and runtime.

    ``table`` is a sweep with the columns below and ``accuracy, macro_f1, artifact_bytes,
    latency_p50_ms``. Columns: ``candidate, parent, model, pruning_level, runtime, precision``; the
    changes ``accuracy_change`` and ``macro_f1_change``; fp32 over int8 as ``file_ratio`` and
    ``speedup``. Candidates that failed, or whose fp32 did, are left out.
    """
    keys = ["model", "pruning_level", "runtime"]
    ran = table[table["accuracy"].notna()]
    measures = ["candidate", "accuracy", "macro_f1", "artifact_bytes", "latency_p50_ms"]
    fp32 = ran[ran["precision"] == "fp32"][[*keys, *measures]]
    int8 = ran[ran["precision"].isin(INT8_PRECISIONS)][[*keys, *measures, "precision"]]
    pairs = int8.merge(fp32, on=keys, suffixes=("", "_fp32"))
    return pairs[["candidate", *keys, "precision"]].assign(
        parent=pairs["candidate_fp32"],
        accuracy_change=pairs["accuracy"] - pairs["accuracy_fp32"],
        macro_f1_change=pairs["macro_f1"] - pairs["macro_f1_fp32"],
        file_ratio=pairs["artifact_bytes_fp32"] / pairs["artifact_bytes"],
        speedup=pairs["latency_p50_ms_fp32"] / pairs["latency_p50_ms"],
    )


def class_changes(recalls: pd.DataFrame, cost: pd.DataFrame) -> pd.DataFrame:
    """Change of every class's recall (rows) in each int8 candidate of ``cost``, by its model.

    ``recalls`` has ``candidate, class_name, recall``; ``cost`` is :func:`int8_cost`, with one row
    per model.
    """
    recall = recalls.pivot_table("recall", "class_name", "candidate", sort=False)
    return pd.DataFrame(
        {row.model: recall[row.candidate] - recall[row.parent] for row in cost.itertuples()}
    )


def answer_sections(
    frontier: pd.DataFrame,
    *,
    held: pd.DataFrame,
    paid: pd.DataFrame,
    decision: Mapping[str, Any],
) -> list[str]:
    """Answer in words what the frontier is, what int8 costs, and what to ship.

    ``held`` is the part of :func:`int8_cost` with one row per network, ``paid`` its
    :func:`class_changes`, ``decision`` what :meth:`edgeopt.decision.Decision.to_dict` gives.
    """
    points = [
        f"{row.candidate} ({row.accuracy:.1%}, {row.latency_p50_ms:.3g} ms, "
        f"{row.memory_mb:.3g} MiB of weights)"
        for row in frontier.itertuples()
    ]
    words = [
        "The frontier of accuracy against latency, from the fastest: "
        f"{', '.join(points) or 'nothing fits the budget'}."
    ]
    words += [_int8_words(row, paid[row.model]) for row in held.itertuples()]
    return [*words, decision["reason"], f"Runner-up: {decision['what_it_would_take']}"]


def _int8_words(row: Any, change: pd.Series) -> str:
    change = 100 * change
    payer = f"{change.idxmin()} pays most, with {change.min():+.2f} points of recall"
    return (
        f"{row.model} in static int8 ({row.runtime}) changes by {100 * row.accuracy_change:+.2f} "
        f"points of accuracy and {100 * row.macro_f1_change:+.2f} of macro-F1 in a file "
        f"{row.file_ratio:.2f} times smaller, at {row.speedup:.2f} times the speed; "
        f"{payer if change.min() < 0 else 'no class loses recall'}."
    )


def markdown_page(
    title: str,
    paragraphs: Sequence[str],
    tables: Mapping[str, pd.DataFrame],
    *,
    columns: Sequence[str],
) -> str:
    """Write a page of Markdown: paragraphs, then each table under its heading."""
    parts = [f"# {title}", *paragraphs]
    for heading, table in tables.items():
        present = [name for name in columns if name in table]
        parts += [f"## {heading}", table[present].to_markdown(index=False, floatfmt=".4g")]
    return "\n\n".join(parts) + "\n"
