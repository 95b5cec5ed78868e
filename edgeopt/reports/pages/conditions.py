"""What two runs were made from and where: what differs, and what may therefore not be judged."""

from collections.abc import Mapping
from typing import Any

import pandas as pd

from edgeopt.reports.records.results import Results, in_words
from edgeopt.schema import DASH
from edgeopt.study import RunFolder
from edgeopt.study.layout import CEILINGS, CONDITIONS
from edgeopt.system import HOST_IDENTITY

SECTIONS = ("data", "parameters", "git", "packages", "host", "threads")
# Parameters that two runs must share for their latencies to be comparable.
TIMED_ALIKE = ("threads", "benchmark_batch_size", "latency_multiplier")
# Facts of the data that decide what accuracy on validation means.
DECIDING = ("name", "checksum", "roles", "class_names", "unavailable")
# Ceilings of one machine, measured twice, lie closer together than this.
SAME_SPEED = 0.25


def obstacles(first: Results, second: Results) -> dict[str, list[str]]:
    """Say what keeps ``accuracy`` and ``latency`` of two runs from being judged, if anything."""
    manifests = first.manifest, second.manifest
    accuracy, latency = [], []
    if not _same_images(*(manifest["data"] for manifest in manifests)):
        names = [manifest["data"].get("name", "unrecorded data") for manifest in manifests]
        same_name = " (same name, other images or taken otherwise)" if names[0] == names[1] else ""
        accuracy.append(
            f"The two runs used different data: {names[0]} and {names[1]}{same_name}. "
            "Their accuracies are shown but not judged."
        )
    if host := host_difference(first, second):
        latency.append(
            f"The two runs were measured on different hosts: {host}. Their latencies are shown, "
            "where known relative to the reference kernel, but not judged."
        )
    for name in TIMED_ALIKE:
        one, other = (manifest["parameters"].get(name) for manifest in manifests)
        if one != other:
            latency.append(
                f"The two runs differ in {name}: {one} and {other}. "
                "Their latencies are shown but not judged."
            )
    return {"accuracy": accuracy, "latency": latency}


def _same_images(first: Mapping[str, Any], second: Mapping[str, Any]) -> bool:
    """Whether two runs' networks were validated on the same images, seen alike.

    Other networks, or another number of images to train or test on, change nothing of that.
    """
    kept = [{name: data.get(name) for name in DECIDING} for data in (first, second)]
    validated = [data.get("counts", {}).get("validation") for data in (first, second)]
    seen = [data.get("preprocessing", {}) for data in (first, second)]
    alike = all(seen[0][model] == seen[1][model] for model in {*seen[0]} & {*seen[1]})
    return kept[0] == kept[1] and validated[0] == validated[1] and alike


def host_difference(first: Results, second: Results) -> str:
    """Say in what the hosts of two runs differ; empty when they are the same.

    A host is its CPU's family, model and stepping, its instruction sets, its caches, and the
    ceilings that its own run measured.
    """
    hosts = first.manifest["host"], second.manifest["host"]
    for fact in HOST_IDENTITY:
        values = [in_words(host.get(fact, "not recorded")) for host in hosts]
        if values[0] != values[1]:
            return f"{fact.replace('_', ' ')} {values[0]} and {values[1]}"
    one, other = _measured_speeds(first.run), _measured_speeds(second.run)
    apart = {n: max(one[n], other[n]) / min(one[n], other[n]) for n in one if n in other}
    if not apart:
        return "speed, which one of the runs has not measured"
    name = max(apart, key=apart.get)
    if apart[name] <= 1 + SAME_SPEED:
        return ""
    return f"{name}, as the runs measured it, {one[name]:.3g} and {other[name]:.3g}"


def _measured_speeds(run: RunFolder) -> dict[str, float]:
    """Ceilings and reference kernel that a run measured, by name."""
    speeds = {}
    if run.path(CEILINGS).is_file():
        table = run.read_table(CEILINGS)
        for row in table[table["kind"] == "measured"].fillna("").itertuples():
            words = f"{row.name} ceiling {row.precision}".strip()
            speeds[f"{words} ({row.unit})"] = row.value
    if run.path(CONDITIONS).is_file():
        speeds["reference kernel (ms)"] = run.read_table(CONDITIONS)["reference_ms"].median()
    return speeds


def changed_facts(first: Mapping[str, Any], second: Mapping[str, Any]) -> pd.DataFrame:
    """List what differs between two manifests: data, parameters, code, versions and machine."""
    rows = []
    for section in SECTIONS:
        one, other = (_facts(section, manifest[section]) for manifest in (first, second))
        rows += [(fact, one.get(fact, DASH), other.get(fact, DASH)) for fact in one | other]
    facts = pd.DataFrame(rows, columns=["fact", "first", "second"])
    changed = facts["first"].ne(facts["second"]) & facts["fact"].ne("parameters: run")
    return facts[changed].reset_index(drop=True)


def _facts(section: str, value: Any) -> dict[str, str]:
    if not isinstance(value, Mapping):
        return {section: in_words(value)}
    return {f"{section}: {key}": in_words(item) for key, item in value.items()}
