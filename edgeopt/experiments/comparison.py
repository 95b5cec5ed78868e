"""Candidates side by side: variants and their parents, int8 and fp32, and words for it."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from edgeopt.decision import Decision, paired_comparison
from edgeopt.experiments.candidates.candidate import Candidate
from edgeopt.experiments.candidates.seeds import with_every_seed
from edgeopt.schema import INT8_PRECISIONS, quantity, signed


def compare_on_test(
    right: Mapping[str, np.ndarray], candidates: Sequence[Candidate], *, decision: Decision
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Compare every variant with its fp32 parent, and the pick with what it was chosen over.

    ``right`` says which test images each candidate gets right, [seeds, N]; those that lack a seed
    are left out. ``candidates`` are the first seed's. Both tables are those of
    :func:`edgeopt.decision.paired_comparison`; the pick is the ``parent`` in the second one.
    """
    complete = with_every_seed(right)
    parents = testable_parents([c for c in candidates if c.name in complete])
    pick = decision.pick and decision.pick["candidate"]
    others = [row["candidate"] for row in (decision.baseline, decision.runner_up) if row]
    rivals = {name: pick for name in others if name != pick and {name, pick} <= complete.keys()}
    return paired_comparison(complete, parent=parents), paired_comparison(complete, parent=rivals)


def fp32_parents(candidates: Sequence[Candidate]) -> dict[str, str]:
    """Map every candidate that ran to the one its losses are counted from.

    That is the same network in fp32, of the first runtime that ran it; for this one, the unpruned
    network. The unpruned fp32 network itself has none.
    """
    ran = [c for c in candidates if not c.error]
    fp32 = [c for c in reversed(ran) if c.spec.precision == "fp32"]
    roots = {c.spec.network: c.name for c in fp32}  # of equals, the first runtime's stays
    parents = {}
    for candidate in ran:
        model, seed, _ = network = candidate.spec.network
        parent = roots.get(network)
        if parent == candidate.name:
            parent = roots.get((model, seed, 0.0))
        if parent not in (None, candidate.name):
            parents[candidate.name] = parent
    return parents


def testable_parents(candidates: Sequence[Candidate]) -> dict[str, str]:
    """Return :func:`fp32_parents` without the candidates that cannot differ from another one's.

    Left out are fp32 beside fp32 of the same network, and a file that another runtime runs in the
    same precision: they would be counted as tests though chance alone could tell them apart.
    """
    specs = {candidate.name: candidate.spec for candidate in candidates}
    ran = [c for c in reversed(candidates) if c.artifact and not c.error]
    firsts = {(c.artifact.sha256, c.spec.precision): c.name for c in ran}
    return {
        name: parent
        for name, parent in fp32_parents(candidates).items()
        if name in firsts.values()
        and (specs[name].precision != "fp32" or specs[name].network != specs[parent].network)
    }


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


def answer_sections(
    frontier: pd.DataFrame,
    *,
    held: pd.DataFrame,
    paid: pd.DataFrame,
    decision: Mapping[str, Any],
) -> list[str]:
    """Answer in words what the frontier is, what int8 costs, and what to ship.

    ``held`` is the part of :func:`int8_cost` with one row per network, ``paid`` the change of every
    class's recall (rows) by network, ``decision`` what :meth:`edgeopt.decision.Decision.to_dict`
    gives.
    """
    points = [
        f"{row.candidate} ({row.accuracy:.1%}, {quantity('latency_p50_ms', row.latency_p50_ms)}, "
        f"{quantity('memory_mb', row.memory_mb)} of weights)"
        for row in frontier.itertuples()
    ]
    return [
        "The frontier of accuracy against latency, from the fastest: "
        f"{', '.join(points) or 'nothing fits the budget'}.",
        *(_int8_words(row, paid[row.model]) for row in held.itertuples()),
        decision["reason"],
        f"Runner-up: {decision['what_it_would_take']}",
    ]


def _int8_words(row: Any, change: pd.Series) -> str:
    change = 100 * change
    payer = f"{change.idxmin()} pays most, with {signed(change.min(), digits=2)} points of recall"
    return (
        f"{row.model} in static int8 ({row.runtime}) changes by "
        f"{signed(100 * row.accuracy_change, digits=2)} points of accuracy and "
        f"{signed(100 * row.macro_f1_change, digits=2)} of macro-F1 in a file "
        f"{row.file_ratio:.2f} times smaller, at {row.speedup:.2f} times the speed; "
        f"{payer if change.min() < 0 else 'no class loses recall'}."
    )
