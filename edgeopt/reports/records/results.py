"""What a run found, read from its files: its decision, candidates and problems."""

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields
from functools import cached_property
from html import escape
from typing import Any
from urllib.parse import quote

import numpy as np
import pandas as pd

from edgeopt.decision import Constraints, Decision, Gates
from edgeopt.reports.records.manifest import MANIFEST, artifact_paths, read_manifest
from edgeopt.schema import quantity
from edgeopt.study import RunFolder, check_schema, read_table
from edgeopt.study.layout import OPERATORS, SUMMARY, SWEEP
from edgeopt.system import file_sha256

ROLES = {"pick": "Pick", "baseline": "Baseline", "runner_up": "Runner-up"}
UNCOMPRESSED = "fastest_uncompressed"
FASTER_REFUSED = 3


@dataclass(frozen=True, eq=False)
class Results:
    """The files of a run that its front page is made from; what is missing is None, with a reason.

    ``manifest`` is what the run was made from. Made by :func:`read_results`.
    """

    run: RunFolder
    manifest: Mapping[str, Any]
    decision: Mapping[str, Any] | None
    sweep: pd.DataFrame | None
    missing: tuple[str, ...]

    @cached_property
    def rows(self) -> dict[str, dict[str, Any]]:
        """Rows of the candidates with a role in the decision, by the role's name.

        What was measured after the choice, such as test accuracy, is in them. The fastest unpruned
        fp32 candidate of the pick's network is there too unless it has a role already: what the
        choice of a runtime alone would have given.
        """
        if not self.decision:
            return {}
        given = {role: self.decision[role] for role in ROLES if self.decision[role]}
        if self.sweep is None:
            return given
        measured = {row["candidate"]: row for row in self.sweep.to_dict("records")}
        found = {role: measured.get(row["candidate"], {}) | row for role, row in given.items()}
        if "pick" in given:
            fastest = self._uncompressed().nsmallest(1, "latency_p50_ms")
            named = {row["candidate"] for row in given.values()}
            for row in fastest[~fastest["candidate"].isin(named)].to_dict("records"):
                found[UNCOMPRESSED] = row
        return found

    def _uncompressed(self) -> pd.DataFrame:
        full = self.sweep[(self.sweep["pruning_level"] == 0) & (self.sweep["precision"] == "fp32")]
        if "model" in full:
            full = full[full["model"] == self.decision["pick"].get("model")]
        return full

    @property
    def problems(self) -> list[str]:
        """What a reader must know first, a sentence each."""
        problems = [
            f"Notebook {name} failed: {state['error']}. What comes after it was not run."
            for name, state in self.manifest["notebooks"].items()
            if state["status"] == "failed"
        ]
        problems += [self.manifest["data"].get("test_warning"), (self.decision or {}).get("busy")]
        problems += [*self.missing, *([] if self.sweep is None else sweep_problems(self.sweep))]
        return [*filter(None, problems)]

    @property
    def artifact(self) -> str:
        """Path, inside the run, of the very file that was measured; empty when it is not there."""
        pick = self.rows.get("pick", {})
        name = pick.get("artifact")
        paths = self.run.path("artifacts").glob(f"*/{name}") if name else []
        same = [path for path in paths if file_sha256(path) == pick["artifact_sha256"]]
        return same[0].relative_to(self.run.root).as_posix() if same else ""

    def rules(self) -> pd.DataFrame:
        """Rules that the candidates were judged by, in words."""
        given = self.manifest["parameters"]
        gates, limits = (
            part(**{field.name: given[field.name] for field in fields(part)})
            for part in (Gates, Constraints)
        )
        budget = given["active_memory_budget_mb"]
        judged = gates.rules(constraints=limits, active_memory_budget_mb=budget)
        return pd.DataFrame(judged, columns=["what is judged", "rule"])

    def funnel(self) -> pd.DataFrame:
        """Count the candidates of each standing, in the order of the rule."""
        if self.sweep is None or "standing" not in self.sweep:
            return pd.DataFrame(columns=["standing", "candidates"])
        counts = self.sweep["standing"].value_counts().reindex([*Decision.STANDINGS])
        counts = counts.dropna().astype(int)
        return counts.rename_axis("standing").rename("candidates").reset_index()

    def operators(self) -> pd.DataFrame:
        """Operators of the file to ship: precision, share of the MACs and of the time."""
        path = self.run.path(OPERATORS)
        return read_table(path) if path.is_file() else pd.DataFrame(columns=["operator"])

    def what_would_change(self) -> list[str]:
        """Say what would have made another candidate win, a sentence each."""
        if not self.decision or not self.decision["pick"]:
            return []
        pick, refused = self.rows["pick"], self.decision.get("rejected", [])
        budget = quantity("memory_mb", pick["memory_mb"])
        lines = [self.decision["what_it_would_take"], f"A budget below {budget} excludes it."]
        if self.sweep is None:
            return lines
        reasons = {row["candidate"]: row["reason"] for row in refused}
        ratios = pick["latency_p50_ms"] / self.sweep.set_index("candidate")["latency_p50_ms"]
        faster = ratios[(ratios > 1) & ratios.index.isin(reasons)].nlargest(FASTER_REFUSED)
        return lines + [
            f"{name} is {ratio:.2f} times as fast and was refused: {reasons[name]}."
            for name, ratio in faster.items()
        ]


def read_results(run: RunFolder) -> Results:
    """Read what a run found.

    Raises
    ------
    FileNotFoundError
        When the run has no manifest.
    ValueError
        When the manifest is not one.
    """
    decision, no_decision = read_summary(run)
    sweep, no_sweep = read_sweep(run)
    missing = tuple(reason for reason in (no_decision, no_sweep) if reason)
    return Results(run, read_manifest(run), decision, sweep, missing)


def read_summary(run: RunFolder) -> tuple[dict[str, Any] | None, str]:
    """Read the decision of a run; None and the reason when there is none."""
    path = run.path(SUMMARY)
    if not path.is_file():
        return None, f"No decision: no notebook of this run has written {SUMMARY}."
    try:
        summary = json.loads(path.read_text(encoding="utf-8"))
        check_schema(summary, name=SUMMARY)
    except ValueError as error:
        return None, f"No decision: {SUMMARY} cannot be read: {error}"
    return summary, ""


def read_sweep(run: RunFolder) -> tuple[pd.DataFrame | None, str]:
    """Read the candidates of a run; None and the reason when there are none."""
    path = run.path(SWEEP)
    if not path.is_file():
        return None, f"No candidates: no notebook of this run has written {path.name}."
    try:
        sweep = read_table(path)
    except pd.errors.ParserError as error:
        return None, f"No candidates: {path.name} cannot be read: {error}"
    except pd.errors.EmptyDataError:
        return None, f"No candidates: {path.name} is empty."
    if sweep.empty or "candidate" not in sweep:
        return None, f"No candidates: {path.name} has no rows, or no column candidate."
    if "device" in sweep:  # the first is the one that decides
        sweep = sweep[sweep["device"] == sweep["device"].iloc[0]].reset_index(drop=True)
    return sweep, ""


def sweep_problems(sweep: pd.DataFrame) -> list[str]:
    """Say what a reader must know first: all failed, none fits, one only, times are estimates."""
    if "status" in sweep and sweep["status"].eq("failed").all():
        return [f"All {len(sweep)} candidates failed; the table gives each one's error."]
    found = []
    if "accepted" in sweep and not sweep["accepted"].eq(True).any():
        found.append(f"None of the {len(sweep)} candidates fits the active memory budget.")
    if len(sweep) == 1:
        found.append("There is only one candidate, so nothing to choose between.")
    if "latency_kind" in sweep and sweep["latency_kind"].eq("estimated").any():
        found.append("All latencies are estimates: what was measured, times latency_multiplier.")
    return found


def provenance_table(results: Results) -> pd.DataFrame:
    """List what the numbers come from: data, code, machine and versions, a row each."""
    facts = results.manifest
    data, git, host = facts["data"], facts["git"], facts["host"]
    scheme = facts["int8_scheme"]
    counts = ", ".join(f"{role} {count:,}" for role, count in data.get("counts", {}).items())
    rows = {
        "run": f"{results.run.name}, finished {finished(facts['notebooks'])}",
        "data": data.get("unavailable") or f"{data['name']}: {counts}; SHA-256 {data['checksum']}",
        "images of the pick": images_as_seen(results.rows.get("pick", {}).get("model"), data),
        "commit": git["commit"] + (", with uncommitted changes" if git["dirty"] else ""),
        "CPU": f"{host['cpu']}; {facts['threads']} of {host['usable_cores']} cores used",
        "instruction sets": ", ".join(host["isa"]) or "none that matter here",
        "int8 scheme": f"{scheme['name']}: {scheme['reason']}. {scheme['note']}",
        "versions": in_words(facts["packages"]),
    }
    return pd.DataFrame(list(rows.items()), columns=["fact", "of this run"])


def parameter_table(results: Results) -> pd.DataFrame:
    """Parameters of the run, a row each."""
    pairs = results.manifest["parameters"].items()
    shown = [(name, in_words(value)) for name, value in pairs]
    return pd.DataFrame(shown, columns=["parameter", "value"])


def in_words(value: Any) -> str:
    """Write a value of the manifest as a parameter file does, its parts separated by commas."""
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {in_words(item)}" for key, item in value.items())
    if isinstance(value, list):
        return ", ".join(map(in_words, value))
    return json.dumps(value) if value is None or isinstance(value, bool) else str(value)


def all_files(run: RunFolder) -> str:
    """Write links to every file of a run as HTML, folded."""
    names = [name for name in artifact_paths(run) if not name.startswith(("_static", "index."))]
    return file_list("All files of this run", [*names, MANIFEST])


def file_list(title: str, names: Iterable[str]) -> str:
    """Write links to files beside the page as HTML, folded under a title."""
    links = "".join(f'<li><a href="{quote(n)}" download>{escape(n)}</a></li>' for n in names)
    return f"<details><summary>{title}</summary><ul>{links}</ul></details>"


def images_as_seen(model: str | None, data: Mapping[str, Any]) -> str:
    """Say how a network takes its images, which a program that serves it has to do alike."""
    how = data.get("preprocessing", {}).get(model)
    if not how:
        return ""
    side, channels = how["image_size"], how["channels"]
    size = f"{side}x{side} by {how['resize']}, {how['interpolation']}" if side else "their own size"
    kind = {1: "grey", 3: "colour"}.get(channels, "their own channels")
    seen = [size, kind, "values from 0 to 1"]
    for name in ("mean", "std"):
        if how[name] is not None:
            seen.append(f"{name} {', '.join(f'{v:g}' for v in np.atleast_1d(how[name]))}")
    return ", ".join(seen)


def finished(notebooks: Mapping[str, Mapping[str, Any]]) -> str:
    """Day and minute (UTC) when the last notebook of a run ended; empty when none has."""
    ends = [state["finished"] for state in notebooks.values() if state.get("finished")]
    return max(ends)[:16].replace("T", " ") + " UTC" if ends else ""
