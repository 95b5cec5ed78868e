"""The model card of a pick: what it is, from what, how good, how fast, and where that ends."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import chain
from typing import Any

import numpy as np
import pandas as pd

from edgeopt.data import Split
from edgeopt.experiments.candidates.candidate import split_logits
from edgeopt.metrics import wilson_interval
from edgeopt.reports.pages.card import MEMORY, filled, interval, made_of
from edgeopt.reports.records.results import Results, images_as_seen
from edgeopt.runtimes import Artifact, load_session, runtime_named
from edgeopt.schema import COLUMNS, STATIC_INT8, known, quantity
from edgeopt.study.layout import DEVICES, FACTS, ROWS, SWEEP


def class_accuracies(
    artifact: Artifact, test: Split, *, class_names: Sequence[str]
) -> pd.DataFrame:
    """Accuracy of an artifact on all test images, then on those of every class that has some.

    Columns: ``class_name, images, accuracy, low, high``, with Wilson's 95% interval.
    """
    labels = test.labels.numpy()
    right = split_logits(load_session(artifact), test).argmax(1) == labels
    groups = [("all classes", right)]
    groups += [(class_names[label], right[labels == label]) for label in np.unique(labels)]
    rows = [
        (name, len(own), own.mean(), *wilson_interval(int(own.sum()), len(own)))
        for name, own in groups
    ]
    return pd.DataFrame(rows, columns=["class_name", "images", "accuracy", "low", "high"])


def model_card(results: Results, accuracies: pd.DataFrame, *, checksums: str) -> str:
    """Write the card of a run's pick in Markdown; accuracies are :func:`class_accuracies`."""
    facts, pick = results.manifest, results.rows["pick"]
    worst = accuracies.iloc[1:].nsmallest(1, "accuracy").iloc[0]
    return filled(
        "model_card.md.j2",
        run=results.run.name,
        facts=facts,
        pick=pick,
        made_of=made_of(pick),
        versions=_versions(pick["runtime"], facts["packages"]),
        reason=results.decision["reason"],
        seen=images_as_seen(pick["model"], facts["data"]),
        accuracies=_table(_accuracy_rows(accuracies)),
        chosen_by=f"{quantity('accuracy', pick['accuracy'])} ({interval(pick, 'accuracy')})",
        latencies=_table(_latency_rows(results)),
        memory=[(COLUMNS[n], quantity(n, pick[n])) for n in MEMORY if known(pick.get(n))],
        worst=f"{worst['class_name']}, {quantity('accuracy', worst['accuracy'])}",
        limits=[*_scheme(pick, facts), *results.problems],
        checksums=checksums,
    )


def _versions(runtime: str, packages: Mapping[str, str]) -> str:
    """Name the packages of a runtime with the versions that the run had."""
    names = runtime_named(runtime).packages
    return ", ".join(f"{name} {packages.get(name, '')}".strip() for name in names)


def _scheme(pick: Mapping[str, Any], facts: Mapping[str, Any]) -> list[str]:
    """Say where the integers of the file are not safe, if they are of a scheme."""
    own = runtime_named(pick["runtime"]).takes_scheme and pick["precision"] in STATIC_INT8
    return [facts["int8_scheme"]["note"]] if own else []


def _table(rows: Iterable[dict[str, Any]]) -> str:
    return pd.DataFrame(rows).to_markdown(index=False, disable_numparse=True)


def _accuracy_rows(accuracies: pd.DataFrame) -> Iterator[dict[str, Any]]:
    for name, images, *numbers in accuracies.itertuples(index=False):
        share, low, high = (quantity("accuracy", number) for number in numbers)
        ends = f"{low} to {high}"
        yield {"Class": name, "Images": images, "Accuracy": share, "95% interval": ends}


def _latency_rows(results: Results) -> Iterator[dict[str, str]]:
    """One row per device that the pick was timed on, the one that decided first."""
    run, name = results.run, results.rows["pick"]["candidate"]
    facts = run.read_json(DEVICES)
    for folder in run.taken_in:
        facts |= run.read_json(f"devices/{folder}/{FACTS}")
    tables = [run.read_table(SWEEP), *run.read_taken_in(ROWS)]
    for row in chain.from_iterable(t[t["candidate"] == name].to_dict("records") for t in tables):
        yield {
            "Device": row["device"],
            "CPU": facts[row["device"]]["cpu"],
            "Median": quantity("latency_p50_ms", row["latency_p50_ms"]),
            "95% interval": interval(row, "latency_p50_ms").removeprefix("95% interval "),
            "95th percentile": quantity("latency_p95_ms", row["latency_p95_ms"]),
            "Kind": row["latency_kind"],
        }
