"""The pages that people open: a run's index, the index of all runs, two runs compared."""

import base64
import gzip
import json
import logging
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

import pandas as pd
from markupsafe import Markup
from plotly.offline import get_plotlyjs

from edgeopt.decision import Constraints, Gates, rules
from edgeopt.reports.card import ROLES, card, with_late_columns
from edgeopt.reports.compare import compare_runs
from edgeopt.reports.explorer import explorer_data, read_sweep
from edgeopt.reports.manifest import read_manifest
from edgeopt.reports.page_parts import DASH, FigurePart, read_figures, write_page
from edgeopt.reports.stamps import INDEX, read_record
from edgeopt.study import RunFolder, check_schema
from edgeopt.study.layout import SUMMARY, SWEEP
from edgeopt.system import file_sha256

# The figures that argue for the pick, in the order of the argument.
LEADING = (
    "frontier",
    "samples",
    "budgets",
    "pruning_curves",
    "quantization",
    "precision_tradeoffs",
)
log = logging.getLogger(__name__)


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


def sweep_problem(sweep: pd.DataFrame) -> str:
    """Say what a reader must know first: all failed, none fits, one only, times are estimates."""
    if "status" in sweep and sweep["status"].eq("failed").all():
        return f"All {len(sweep)} candidates failed; the table gives each one's error."
    if "accepted" in sweep and not sweep["accepted"].eq(True).any():
        return f"None of the {len(sweep)} candidates fits the active memory budget."
    if len(sweep) == 1:
        return "There is only one candidate, so nothing to choose between."
    if "latency_kind" in sweep and sweep["latency_kind"].eq("estimated").any():
        return "All latencies are estimates: what was measured here, times latency_multiplier."
    return ""


def write_run_index(run: RunFolder, facts: Mapping[str, Any]) -> Path:
    """Write a run's ``index.html``: decision, candidates, figures, notebooks, provenance.

    ``facts`` are those of :func:`edgeopt.reports.provenance`.
    """
    decision, no_decision = read_summary(run)
    sweep, no_sweep = read_sweep(run)
    if decision and sweep is not None:
        decision = with_late_columns(decision, sweep)
    busy = decision.get("busy", "") if decision else ""
    warning = facts["data"].get("test_warning", "")
    failures = sweep_problem(sweep) if sweep is not None else ""
    problems = [warning, busy, no_decision, no_sweep, failures]
    return write_page(
        run.path(INDEX),
        "index.html.j2",
        run=run.name,
        facts=facts,
        finished=finished(facts["notebooks"]),
        problems=[problem for problem in problems if problem],
        decision=decision,
        **(card(decision) if decision else {}),
        artifact=shipped_file(run, decision["pick"]) if decision and decision["pick"] else "",
        rules=rules_of(decision, sweep, facts["parameters"]) if decision else [],
        images=images_as_seen((decision["pick"] or {}).get("model"), facts["data"])
        if decision
        else "",
        explorer=None if sweep is None else _explorer(sweep, decision),
        plotly=packed_plotly() if sweep is not None else "",
        sweep_file=SWEEP,
        figures=figure_groups(run, facts["notebooks"]),
    )


def shipped_file(run: RunFolder, pick: Mapping[str, Any]) -> str:
    """Path, seen from the index, of the very file that was measured; empty when it is not there."""
    paths = run.path("artifacts").glob(f"*/{pick['artifact']}") if pick.get("artifact") else []
    same = [path for path in paths if file_sha256(path) == pick["artifact_sha256"]]
    return same[0].relative_to(run.root).as_posix() if same else ""


def rules_of(
    decision: Mapping[str, Any], sweep: pd.DataFrame | None, parameters: Mapping[str, Any]
) -> list[tuple[str, str]]:
    """List the rules that the candidates were judged by, then how many met them."""
    names = {field.name for field in (*fields(Gates), *fields(Constraints))}
    if sweep is None or not names | {"active_memory_budget_mb"} <= set(parameters):
        return []
    judged = rules(
        Gates(**{field.name: parameters[field.name] for field in fields(Gates)}),
        constraints=Constraints(**{f.name: parameters[f.name] for f in fields(Constraints)}),
        active_memory_budget_mb=parameters["active_memory_budget_mb"],
    )
    count, fit = len(sweep), int(sweep["accepted"].eq(True).sum())
    met = f"{fit} of {count} fit the weights' budget, {count - len(decision['rejected'])} of these"
    return [*judged, ("candidates", f"{met} are refused by no rule")]


def packed_plotly() -> Markup:
    """Pack Plotly's script as gzip in base64, 2 of its 4.8 MB; ``explorer.js`` unpacks it."""
    packed = gzip.compress(get_plotlyjs().encode(), mtime=0)
    return Markup(base64.b64encode(packed).decode())


def figure_groups(
    run: RunFolder, notebooks: Mapping[str, Mapping[str, Any]]
) -> list[tuple[str, list[FigurePart]]]:
    """Figures of a run, first those of the argument, then by the title of their notebook.

    The group of the argument has no title; figures that no notebook claims come last, as others.
    """
    left = {f"figures/{figure.name}.png": figure for figure in read_figures(run)}
    names = [path for stem in LEADING for path in left if _is_of(path, stem)]
    groups = [("", [left.pop(name) for name in names])]
    for name, state in notebooks.items():
        record = read_record(run.path(f"{name}.ipynb"))
        own = [path for path in left if record and path in record.outputs]
        groups.append((state["title"], [left.pop(path) for path in own]))
    groups.append(("Others", list(left.values())))
    return [(title, figures) for title, figures in groups if figures]


def _is_of(path: str, stem: str) -> bool:
    """Whether a figure is this one, or this one of a network of the run."""
    return path == f"figures/{stem}.png" or path.startswith(f"figures/{stem}-")


def images_as_seen(model: str | None, data: Mapping[str, Any]) -> str:
    """Say how a network takes its images, which a program that serves it has to do alike."""
    how = data.get("preprocessing", {}).get(model)
    if not how:
        return ""
    side, channels = how["image_size"], how["channels"]
    size = f"{side}x{side} by {how['resize']}, {how['interpolation']}" if side else "their own size"
    kind = {1: "grey", 3: "colour"}.get(channels, "their own channels")
    scaled = [f"{name} {_numbers(how[name])}" for name in ("mean", "std") if how[name] is not None]
    return ", ".join([size, kind, "values from 0 to 1", *scaled])


def _numbers(values: Any) -> str:
    return ", ".join(f"{v:g}" for v in values) if isinstance(values, list) else f"{values:g}"


def _explorer(sweep: pd.DataFrame, decision: Mapping[str, Any] | None) -> dict[str, Any]:
    decision = decision or {}
    roles = {word: decision[key]["candidate"] for key, word in ROLES.items() if decision.get(key)}
    rejected = decision.get("rejected", [])
    reasons = {row["candidate"]: row["reason"] for row in rejected}
    return explorer_data(sweep, roles=roles, reasons=reasons)


def finished(notebooks: Mapping[str, Mapping[str, Any]]) -> str:
    """Day and minute (UTC) when the last notebook of a run ended; empty when none has."""
    ends = [state["finished"] for state in notebooks.values() if state.get("finished")]
    return max(ends)[:16].replace("T", " ") + " UTC" if ends else ""


def write_runs_index(folder: Path) -> Path:
    """Write the index of all runs that have a manifest, with each one's pick."""
    rows, problems = [], []
    for path in sorted(folder.glob("*/manifest.json")):
        try:
            rows.append(_run_row(RunFolder(path.parent)))
        except ValueError as error:
            problems.append(f"Run {path.parent.name} is not listed: {error}")
    pages = sorted(page.name for page in folder.glob("compare-*.html"))
    return write_page(
        folder / INDEX, "runs.html.j2", runs=rows, problems=problems, comparisons=pages
    )


def _run_row(run: RunFolder) -> dict[str, Any]:
    manifest = read_manifest(run)
    summary, _ = read_summary(run)
    states = {state["status"] for state in manifest["notebooks"].values()}
    return {
        "name": run.name,
        "data": manifest["data"].get("name", DASH),
        "pick": summary and summary["pick"],
        "no_pick": "nothing fits" if summary else "no decision",
        "state": "failed"
        if "failed" in states
        else "complete"
        if states == {"done"}
        else "partial",
        "finished": finished(manifest["notebooks"]),
    }


def write_comparison(first: RunFolder, second: RunFolder) -> Path:
    """Write ``compare-<first>-<second>.html`` beside the two runs."""
    path = first.root.parent / f"compare-{first.name}-{second.name}.html"
    write_page(path, "compare.html.j2", **compare_runs(first, second))
    write_runs_index(path.parent)
    return path
