"""Two runs, candidate by candidate: what is better, what is worse, and what is within noise."""

from dataclasses import dataclass
from itertools import chain

import numpy as np
import pandas as pd

from edgeopt.reports.pages.card import MEASURES, SIZES, bound_names
from edgeopt.reports.pages.conditions import changed_facts, obstacles
from edgeopt.reports.records.results import Results, read_results
from edgeopt.schema import COLUMNS, quantity
from edgeopt.study import RunFolder

LATENCY = "latency_p50_ms"
JUDGED = ("accuracy", LATENCY)
INTERVALS = {name: [*bound_names(name)] for name in JUDGED}
PAIRED = ["candidate", *JUDGED, *chain(*INTERVALS.values()), "latency_relative", *SIZES]
PICK_COLUMNS = ["number", "first", "second", "verdict"]
# Two sweeps of the same code on one machine differ by up to this much (`make bench` prints by how
# much here): more than the intervals within a run know of.
REPEATABILITY = 0.05
# Files of the same network differ by a few bytes of names and paths that they hold.
SAME_SIZE = 0.01
WORSE, BETTER, SAME = "worse", "better", "within noise"
NOT_JUDGED, UNKNOWN, NO_INTERVAL = "not judged", "not measured", "no interval"
OVERALL = (
    "regression",
    "mixed",
    "now fails",
    "improvement",
    "now works",
    "no change beyond noise",
    "not judged",
    "fails in both",
    "only in the first run",
    "only in the second run",
)


@dataclass(frozen=True, eq=False)
class Comparison:
    """Two finished runs side by side.

    ``changes`` are the facts of their making that differ (``fact, first, second``), ``warnings``
    say what is shown but not judged, ``pick`` compares the two picks (``number, first, second,
    verdict``) and ``candidates`` all that both runs have (:func:`compare_tables`).
    """

    changes: pd.DataFrame
    warnings: list[str]
    pick: pd.DataFrame
    candidates: pd.DataFrame

    def table(self, first: str, second: str) -> pd.DataFrame:
        """Lay the candidates out for readers: numbers of both runs, the change, the verdicts.

        Latencies are relative to the reference kernel where machines differ and both have them.
        """
        rows = self.candidates
        alike = rows["latency_verdict"].ne(NOT_JUDGED).any()
        relative = not alike and rows["latency_relative_first"].notna().any()
        timed = "latency_relative" if relative else LATENCY
        unit = "of the reference kernel" if relative else "ms"
        shown = {
            "candidate": rows["candidate"],
            "verdict": rows["verdict"],
            f"Accuracy, {first} (%)": 100 * rows["accuracy_first"],
            f"Accuracy, {second} (%)": 100 * rows["accuracy_second"],
            "points": 100 * (rows["accuracy_second"] - rows["accuracy_first"]),
            "accuracy is": rows["accuracy_verdict"],
            f"Latency, {first} ({unit})": rows[f"{timed}_first"],
            f"Latency, {second} ({unit})": rows[f"{timed}_second"],
            "ratio": rows[f"{timed}_second"] / rows[f"{timed}_first"],
            "latency is": rows["latency_verdict"],
        }
        return pd.DataFrame(shown).reset_index(drop=True)

    @property
    def regressions(self) -> list[str]:
        """Numbers of the pick that got worse beyond noise."""
        return self.pick.loc[self.pick["verdict"] == WORSE, "number"].tolist()


def compare_runs(first: RunFolder, second: RunFolder) -> Comparison:
    """Compare two finished runs, candidate by candidate and pick with pick.

    Raises
    ------
    FileNotFoundError
        When a run has no manifest.
    ValueError
        When a manifest cannot be read, or a run has no candidates.
    """
    results = read_results(first), read_results(second)
    for result in results:
        if result.sweep is None:
            reasons = " ".join(result.missing)
            raise ValueError(f"run {result.run.name} cannot be compared. {reasons}")
    unjudged = obstacles(*results)
    judged = {name: not reasons for name, reasons in unjudged.items()}
    pick = compare_picks(*results, **judged)
    unbounded = pick.loc[pick["verdict"] == NO_INTERVAL, "number"]
    return Comparison(
        changes=changed_facts(*(result.manifest for result in results)),
        warnings=[reason for reasons in unjudged.values() for reason in reasons]
        + [f"{name} has no interval in one of the runs: it is not judged." for name in unbounded],
        pick=pick,
        candidates=compare_tables(*(result.sweep for result in results), **judged),
    )


def compare_picks(
    first: Results, second: Results, *, accuracy: bool = True, latency: bool = True
) -> pd.DataFrame:
    """Judge the second run's pick against the first's: ``number, first, second, verdict``.

    A run without a pick is worse than one with any.
    """
    picks = [result.rows.get("pick") for result in (first, second)]
    names = [pick["candidate"] if pick else "nothing fits" for pick in picks]
    if not all(picks):
        verdict = SAME if not any(picks) else WORSE if picks[0] else BETTER
        return pd.DataFrame([("candidate", *names, verdict)], columns=PICK_COLUMNS)
    tables = [pd.DataFrame([{**pick, "candidate": "pick"}]) for pick in picks]
    row = compare_tables(*tables, accuracy=accuracy, latency=latency).iloc[0]
    rows = [(COLUMNS["candidate"].title, *names, "")]
    verdicts = [row["accuracy_verdict"], row["latency_verdict"]]
    verdicts += [_size_verdict(row[f"{size}_second"] / row[f"{size}_first"]) for size in SIZES]
    for number, verdict in zip(MEASURES, verdicts, strict=True):
        values = (quantity(number, row[f"{number}_{side}"]) for side in ("first", "second"))
        rows.append((COLUMNS[number].title, *values, verdict))
    return pd.DataFrame(rows, columns=PICK_COLUMNS)


def _size_verdict(ratio: float) -> str:
    if np.isnan(ratio):
        return UNKNOWN
    return SAME if abs(ratio - 1) <= SAME_SIZE else WORSE if ratio > 1 else BETTER


def compare_tables(
    first: pd.DataFrame, second: pd.DataFrame, *, accuracy: bool = True, latency: bool = True
) -> pd.DataFrame:
    """Pair two sweeps by candidate, one row each, the regressions first.

    Columns: ``candidate``, each number with ``_first`` and ``_second``, ``accuracy_verdict``,
    ``latency_verdict`` (worse, better, within noise, not measured, no interval or not judged) and
    ``verdict`` of the candidate as a whole. Worse and better need intervals that do not overlap,
    and latencies that differ by more than two runs of the same code do (``REPEATABILITY``), in
    milliseconds and relative to the reference kernel. ``accuracy`` and ``latency`` say whether the
    two may be judged. ``ValueError`` names a candidate that repeats.
    """
    for name, table in (("first", first), ("second", second)):
        repeated = table.loc[table["candidate"].duplicated(), "candidate"].tolist()
        if repeated:
            raise ValueError(f"{name} run: candidate(s) {repeated} repeat; allowed: each name once")
    median = all({LATENCY, *INTERVALS[LATENCY]} <= {*table} for table in (first, second))
    one, other = (_numbers(table, median=median) for table in (first, second))
    sides = ("_first", "_second")
    both = one.merge(other, on="candidate", how="outer", suffixes=sides, indicator=True)
    both["accuracy_verdict"] = _verdicts(both, "accuracy", sign=1) if accuracy else NOT_JUDGED
    timed = np.where(_steady(both), SAME, _verdicts(both, LATENCY, sign=-1))
    both["latency_verdict"] = timed if latency else NOT_JUDGED
    both["verdict"] = both.apply(_overall, axis=1)
    rank = both["verdict"].map(OVERALL.index)
    return both.iloc[rank.argsort(kind="stable")].drop(columns="_merge")


def _steady(both: pd.DataFrame) -> pd.Series:
    """Whether a latency is as it was, or no further off than the reference kernel's is.

    What that kernel shares is the machine's change, not the candidate's.
    """
    names = (LATENCY, "latency_relative")
    taken, relative = (both[f"{name}_second"] / both[f"{name}_first"] - 1 for name in names)
    relative = relative.fillna(taken)
    small = (taken.abs() <= REPEATABILITY) | (relative.abs() <= REPEATABILITY)
    return small | (taken * relative < 0)


def _numbers(table: pd.DataFrame, *, median: bool) -> pd.DataFrame:
    """Numbers to compare, and whether the candidate failed.

    Without intervals of the ``median`` latency is the mean, its interval the standard deviation.
    """
    if not median:
        mean, spread = (table.get(name, np.nan) for name in ("latency_ms", "latency_std_ms"))
        low, high = mean - spread, mean + spread
        table = table.assign(latency_p50_ms=mean, latency_p50_low_ms=low, latency_p50_high_ms=high)
    failed = table["status"].eq("failed") if "status" in table else False
    table = table.reindex(columns=PAIRED)
    # Of a table of one row, a number that is not known is None.
    return table.astype(dict.fromkeys(PAIRED[1:], float)).assign(failed=failed)


def _verdicts(both: pd.DataFrame, name: str, *, sign: int) -> np.ndarray:
    """Judge the second run against the first; ``sign`` is 1 where more is better."""
    first, second = (
        sign * both[[f"{bound}_{side}" for bound in INTERVALS[name]]].to_numpy()
        for side in ("first", "second")
    )
    measured = both[[f"{name}_first", f"{name}_second"]].notna().all(axis=1)
    bounded = ~np.isnan(np.hstack([first, second])).any(axis=1)
    worse = second.max(axis=1) < first.min(axis=1)
    better = second.min(axis=1) > first.max(axis=1)
    found = [~measured, ~bounded, worse, better]
    return np.select(found, [UNKNOWN, NO_INTERVAL, WORSE, BETTER], default=SAME)


def _overall(row: pd.Series) -> str:
    if row["_merge"] != "both":
        side = "first" if row["_merge"] == "left_only" else "second"
        return f"only in the {side} run"
    if row["failed_first"] != row["failed_second"]:
        return "now fails" if row["failed_second"] else "now works"
    if row["failed_first"]:
        return "fails in both"
    verdicts = {row["accuracy_verdict"], row["latency_verdict"]}
    if {WORSE, BETTER} <= verdicts:
        return "mixed"
    if verdicts & {WORSE, BETTER}:
        return "regression" if WORSE in verdicts else "improvement"
    open_ones = verdicts & {NOT_JUDGED, UNKNOWN, NO_INTERVAL}
    return "not judged" if open_ones else "no change beyond noise"
