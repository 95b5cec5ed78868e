"""Two runs, candidate by candidate: what changed in their making, and what is beyond noise."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from edgeopt.reports.results import Results, read_results
from edgeopt.schema import COLUMNS, DASH, quantity
from edgeopt.study import RunFolder
from edgeopt.study.layout import CEILINGS, CONDITIONS
from edgeopt.system import HOST_IDENTITY

ACCURACY = ("accuracy", "accuracy_low", "accuracy_high")
MEDIAN = ("latency_p50_ms", "latency_p50_low_ms", "latency_p50_high_ms")
OTHERS = ("latency_relative", "memory_mb", "artifact_bytes")
SECTIONS = ("data", "parameters", "git", "packages", "host", "threads")
# Two sweeps of the same code on one machine differ by up to this much (`make bench` prints by how
# much here): more than the intervals within a run know of.
REPEATABILITY = 0.05
# Files of the same network differ by a few bytes of names and paths that they hold.
SAME_SIZE = 0.01
# Ceilings of one machine, measured twice, lie closer together than this.
SAME_SPEED = 0.25
PICK_COLUMNS = ["number", "first", "second", "verdict"]
WORSE, BETTER, SAME = "worse", "better", "within noise"
NOT_JUDGED, UNKNOWN = "not judged", "not measured"
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

# Parameters that two runs must share for their latencies to be comparable.
TIMED_ALIKE = ("threads", "benchmark_batch_size", "latency_multiplier")


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
        timed = "latency" if alike or rows["relative_first"].isna().all() else "relative"
        unit = "ms" if timed == "latency" else "of the reference kernel"
        shown = {"candidate": rows["candidate"], "verdict": rows["verdict"]}
        for side, name in (("first", first), ("second", second)):
            shown[f"accuracy, {name} (%)"] = 100 * rows[f"accuracy_{side}"]
        shown["points"] = 100 * (rows["accuracy_second"] - rows["accuracy_first"])
        shown["accuracy is"] = rows["accuracy_verdict"]
        for side, name in (("first", first), ("second", second)):
            shown[f"latency, {name} ({unit})"] = rows[f"{timed}_{side}"]
        shown["ratio"] = rows[f"{timed}_second"] / rows[f"{timed}_first"]
        shown["latency is"] = rows["latency_verdict"]
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
    manifests = results[0].manifest, results[1].manifest
    tables = [_sweep(result) for result in results]
    same_data = manifests[0]["data"] == manifests[1]["data"]
    other_host = host_difference(first, second, manifests)
    unlike = [n for n in TIMED_ALIKE if _setting(manifests[0], n) != _setting(manifests[1], n)]
    judged = {"accuracy": same_data, "latency": not other_host and not unlike}
    return Comparison(
        changes=changed_facts(*manifests),
        warnings=_warnings(manifests, same_data=same_data, host=other_host, unlike=unlike),
        pick=compare_picks(*results, **judged),
        candidates=compare_tables(*tables, **judged),
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
    rows = [("candidate", *names, "")]
    for number, column in (("accuracy", "accuracy"), ("latency_p50_ms", "latency")):
        values = (row[f"{column}_{side}"] for side in ("first", "second"))
        rows.append((number, *(quantity(number, v) for v in values), row[f"{column}_verdict"]))
    for number in ("memory_mb", "artifact_bytes"):
        values = [row[f"{number}_{side}"] for side in ("first", "second")]
        rows.append((number, *(quantity(number, v) for v in values), _size_verdict(*values)))
    table = pd.DataFrame(rows, columns=PICK_COLUMNS)
    return table.assign(number=[COLUMNS[name].title for name in table["number"]])


def _size_verdict(first: float, second: float) -> str:
    if np.isnan(first) or np.isnan(second):
        return UNKNOWN
    ratio = second / first
    return SAME if abs(ratio - 1) <= SAME_SIZE else WORSE if ratio > 1 else BETTER


def host_difference(
    first: RunFolder, second: RunFolder, manifests: tuple[Mapping[str, Any], Mapping[str, Any]]
) -> str:
    """Say in what the hosts of two runs differ; empty when they are the same.

    A host is its CPU's family, model and stepping, its instruction sets, its caches, and the
    ceilings that its own run measured.
    """
    hosts = [manifest["host"] for manifest in manifests]
    for fact in HOST_IDENTITY:
        values = [_words(host.get(fact, "not recorded")) for host in hosts]
        if values[0] != values[1]:
            return f"{fact.replace('_', ' ')} {values[0]} and {values[1]}"
    speeds = [_measured_speeds(run) for run in (first, second)]
    shared = [name for name in speeds[0] if name in speeds[1]]
    ratios = {name: speeds[1][name] / speeds[0][name] for name in shared}
    apart = {name: r for name, r in ratios.items() if max(r, 1 / r) > 1 + SAME_SPEED}
    if apart:
        name = max(apart, key=lambda name: max(apart[name], 1 / apart[name]))
        return f"{name}, as the runs measured it, {speeds[0][name]:.3g} and {speeds[1][name]:.3g}"
    return "" if shared else "speed, which one of the runs has not measured"


def _measured_speeds(run: RunFolder) -> dict[str, float]:
    """Ceilings and reference kernel that a run measured, by name."""
    speeds: dict[str, float] = {}
    if run.path(CEILINGS).is_file():
        table = run.read_table(CEILINGS)
        for row in table[table["kind"] == "measured"].fillna("").itertuples():
            words = f"{row.name} ceiling {row.precision}".strip()
            speeds[f"{words} ({row.unit})"] = row.value
    if run.path(CONDITIONS).is_file():
        reference = run.read_table(CONDITIONS)["reference_ms"].median()
        speeds["reference kernel (ms)"] = float(reference)
    return speeds


def _sweep(results: Results) -> pd.DataFrame:
    if results.sweep is None:
        reasons = " ".join(results.missing)
        raise ValueError(f"run {results.run.name} cannot be compared. {reasons}")
    return results.sweep


def changed_facts(first: Mapping[str, Any], second: Mapping[str, Any]) -> pd.DataFrame:
    """List what differs in data, parameters, code, versions and machine."""
    pairs = _flat(first), _flat(second)
    keys = sorted({**pairs[0], **pairs[1]}, key=lambda key: SECTIONS.index(key.split(":")[0]))
    rows = [
        (key, pairs[0].get(key, DASH), pairs[1].get(key, DASH))
        for key in keys
        if pairs[0].get(key) != pairs[1].get(key) and key != "parameters: run"
    ]
    return pd.DataFrame(rows, columns=["fact", "first", "second"])


def _flat(manifest: Mapping[str, Any]) -> dict[str, str]:
    facts: dict[str, str] = {}
    for section in SECTIONS:
        value = manifest[section]
        items = value.items() if isinstance(value, Mapping) else [("", value)]
        facts |= {f"{section}: {key}" if key else section: _words(item) for key, item in items}
    return facts


def _setting(manifest: Mapping[str, Any], name: str) -> Any:
    return manifest["threads"] if name == "threads" else manifest["parameters"].get(name)


def _words(value: Any) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {item}" for key, item in value.items())
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)


def compare_tables(
    first: pd.DataFrame, second: pd.DataFrame, *, accuracy: bool = True, latency: bool = True
) -> pd.DataFrame:
    """Pair two sweeps by candidate, one row each, the regressions first.

    Columns: ``candidate``, each number with ``_first`` and ``_second``, ``accuracy_verdict``,
    ``latency_verdict`` (worse, better, within noise, not measured or not judged) and ``verdict``
    of the candidate as a whole. Worse and better need intervals that do not overlap, and latencies
    that differ by more than two runs of the same code do (``REPEATABILITY``).

    Parameters
    ----------
    accuracy, latency : bool
        Whether the two may be judged: not on other data, not on another machine.

    Raises
    ------
    ValueError
        When a candidate repeats in a sweep.
    """
    for name, table in (("first", first), ("second", second)):
        repeated = table.loc[table["candidate"].duplicated(), "candidate"].tolist()
        if repeated:
            raise ValueError(f"{name} run: candidate(s) {repeated} repeat; allowed: each name once")
    spread = "median" if _has_median_interval([first, second]) else "mean"
    sides = [_numbers(table, spread=spread) for table in (first, second)]
    both = sides[0].merge(
        sides[1], on="candidate", how="outer", suffixes=("_first", "_second"), indicator=True
    )
    both["accuracy_verdict"] = _verdicts(both, "accuracy", sign=1) if accuracy else NOT_JUDGED
    steady = (both["latency_second"] / both["latency_first"] - 1).abs() <= REPEATABILITY
    judged = pd.Series(_verdicts(both, "latency", sign=-1), index=both.index)
    both["latency_verdict"] = judged.mask(steady, SAME) if latency else NOT_JUDGED
    both["verdict"] = both.apply(_overall, axis=1)
    order = pd.Categorical(both["verdict"], ordered=True, categories=list(OVERALL))
    return both.iloc[np.argsort(order.codes, kind="stable")].drop(columns="_merge")


def _has_median_interval(tables: list[pd.DataFrame]) -> bool:
    return all(set(MEDIAN) <= set(table.columns) for table in tables)


def _numbers(table: pd.DataFrame, *, spread: str) -> pd.DataFrame:
    """Candidate, accuracy and latency with their bounds, weights, and whether it failed."""
    rows = table.reindex(
        columns=["candidate", *ACCURACY, *MEDIAN, "latency_ms", "latency_std_ms", *OTHERS]
    )
    median = spread == "median"
    latency = rows["latency_p50_ms" if median else "latency_ms"]
    return pd.DataFrame(
        {
            "candidate": rows["candidate"],
            "accuracy": rows["accuracy"],
            "accuracy_low": rows["accuracy_low"],
            "accuracy_high": rows["accuracy_high"],
            "latency": latency,
            "latency_low": rows[MEDIAN[1]] if median else latency - rows["latency_std_ms"],
            "latency_high": rows[MEDIAN[2]] if median else latency + rows["latency_std_ms"],
            "relative": rows["latency_relative"],
            "memory_mb": rows["memory_mb"],
            "artifact_bytes": rows["artifact_bytes"],
            "failed": table["status"].eq("failed") if "status" in table else False,
        }
    )


def _verdicts(both: pd.DataFrame, name: str, *, sign: int) -> np.ndarray:
    """Judge the second run against the first; ``sign`` is 1 where more is better."""
    first = both[[f"{name}_low_first", f"{name}_high_first"]].to_numpy() * sign
    second = both[[f"{name}_low_second", f"{name}_high_second"]].to_numpy() * sign
    unknown = np.isnan(first).any(axis=1) | np.isnan(second).any(axis=1)
    worse = second.max(axis=1) < first.min(axis=1)
    better = second.min(axis=1) > first.max(axis=1)
    return np.select([unknown, worse, better], [UNKNOWN, WORSE, BETTER], default=SAME)


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
    return "not judged" if NOT_JUDGED in verdicts else "no change beyond noise"


def _warnings(
    manifests: tuple[Mapping[str, Any], ...],
    *,
    same_data: bool,
    host: str,
    unlike: list[str],
) -> list[str]:
    first, second = manifests
    warnings = []
    if not same_data:
        names = [side["data"].get("name", "unrecorded data") for side in manifests]
        same_name = " (same name, other images)" if names[0] == names[1] else ""
        warnings.append(
            f"The two runs used different data: {names[0]} and {names[1]}{same_name}. "
            "Their accuracies are shown but not judged."
        )
    if host:
        warnings.append(
            f"The two runs were measured on different hosts: {host}. Their latencies are shown, "
            "where known relative to the reference kernel, but not judged."
        )
    for name in unlike:
        warnings.append(
            f"The two runs differ in {name}: {_setting(first, name)} and {_setting(second, name)}. "
            "Their latencies are shown but not judged."
        )
    return warnings
