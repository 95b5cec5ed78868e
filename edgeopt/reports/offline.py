"""A run's candidates measured on a device without a network: the bundle out, its results in."""

import re
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pandas as pd

from edgeopt.agent.plan import Plan
from edgeopt.decision import Answers, Constraints, Gates, decide
from edgeopt.devices import Task, read_results, results_of, write_archive, write_bundle
from edgeopt.experiments import (
    Target,
    artifact_of,
    compare_devices,
    device_sweep,
    floor_images,
)
from edgeopt.reports.records.manifest import config_of
from edgeopt.study import RunFolder, Study, open_study
from edgeopt.study.layout import (
    BUNDLE,
    CALL_FLOORS,
    COMPARISON,
    DECIDED,
    FACTS,
    HOST_ANSWERS,
    RECALLS,
    RIGHT_ANSWERS,
    ROWS,
    SAMPLES,
    STORE,
)

# Columns of the sweep that its own measurement or decision made.
OF_THE_HOST = [
    "int8_recovery",
    "standing",
    "decided_by",
    "energy_measured_j",
    "frontier_probability",
]


def write_run_bundle(run: RunFolder) -> Path:
    """Write ``bundle.pyz``: every candidate of a run, the validation images, and the agent."""
    study = open_study(config_of(run))
    with TemporaryDirectory(prefix="edgeopt-") as folder:
        return write_archive(run.path(BUNDLE), plan=_plan(study, Path(folder)))


def take_results(run: RunFolder, path: Path) -> str:
    """Take in the ``results.json`` of a run's bundle; return the name of the device.

    Writes ``devices/<name>/``: rows as those of the sweep, the device's own pick, and its facts.
    Raises ``ResultsError`` when the file was changed or is of another plan.
    """
    study = open_study(config_of(run))
    records = read_results(path)
    with TemporaryDirectory(prefix="edgeopt-") as folder:
        plan = _plan(study, Path(folder))
        facts = next((r["facts"] for r in records if r.get("kind") == "begin"), {})
        name = re.sub(r"[^A-Za-z0-9_-]+", "-", str(facts.get("node") or "device"))
        results = results_of(records, plan=plan, device=f"offline:{name}")
    config = study.config
    sweep = run.read_sweep().drop(columns=OF_THE_HOST, errors="ignore")
    table = device_sweep(
        results,
        sweep,
        answers=run.read_table(HOST_ANSWERS),
        floors=run.read_table(CALL_FLOORS),
        images=study.role("validation"),
        target=config.part(Target),
        batch_size=config.benchmark_batch_size,
    )
    folder = f"devices/{name}"
    run.write_table(f"{folder}/{ROWS}", table)
    samples = {config.decides: run.read_table(SAMPLES), results.device: results.measured.samples}
    rules = _rules(study)
    tables = {config.decides: sweep, results.device: table}
    decisions = {
        device: decide(own, samples=samples[device], **rules) for device, own in tables.items()
    }
    run.write_table(f"{folder}/{COMPARISON}", compare_devices(decisions, samples))
    run.write_json(f"{folder}/{FACTS}", {results.device: results.facts_around})
    run.write_json(f"{folder}/{DECIDED}", run.decision_digests)
    return results.device


def _rules(study: Study) -> dict[str, Any]:
    """Collect what the run itself was decided by: gates, limits, recalls and right answers."""
    run, config = study.folder, study.config
    answers = Answers.from_table(
        run.read_table(RIGHT_ANSWERS),
        labels=study.validation_labels,
        class_names=study.class_names,
    )
    specs = {"gates": config.part(Gates), "constraints": config.part(Constraints)}
    return {**specs, "answers": answers, "recalls": run.read_table(RECALLS)}


def _plan(study: Study, folder: Path) -> Plan:
    """Make the plan of a run's candidates that did not fail; the same for the same run."""
    config, run, images = study.config, study.folder, study.role("validation")
    everything = images | floor_images(images)
    rows = pd.concat([run.read_sweep(), run.read_table(CALL_FLOORS)])
    tasks = []
    for row in rows[rows["status"] == "ok"].itertuples():
        shape = (config.benchmark_batch_size, *everything[row.model].shape)
        artifact = artifact_of(row, run.path(STORE), input_shape=shape)
        tasks.append(Task(row.candidate, artifact, row.model, config.threads, score=True))
    counts = {"rounds": config.rounds, "calls_per_round": config.calls_per_round}
    return write_bundle(folder, tasks, images=everything, **counts)
