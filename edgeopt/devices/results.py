"""What a device sent back, checked and in tables."""

import json
import logging
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from edgeopt.agent.journal import key_of
from edgeopt.agent.offline import records_digest, sealed
from edgeopt.agent.plan import Plan
from edgeopt.metrics import Measurement
from edgeopt.metrics.conditions import with_clock_falls
from edgeopt.metrics.rounds import visit_samples
from edgeopt.schema import DASH, label, quantity
from edgeopt.system import environment_facts, package_sha256, write_atomically

logger = logging.getLogger(__name__)

EMULATED = "unavailable: emulated"
SHOWN_FACTS = (
    *("cpu", "architecture", "emulated", "isa", "usable_cores"),
    *("governor", "system", "python"),
)
NAMED_FACTS = {"cpu": "CPU", "isa": "Instruction sets"}
STATES = ("before", "after")
MEMORY_COLUMNS = ["peak_rss_bytes", "idle_rss_bytes", "added_rss_bytes", "rss_unavailable"]
FIELDS = {
    "begin": {"plan": str, "facts": dict, "state": dict},
    "failed": {"at": int, "error": str},
    "scored": {"classes": list, "digest": str},
    "visit": {"position": int, "times": list},
    "lap": {"reference_ms": float},
    "memory": {},
    "done": {"state": dict},
}


class ResultsError(ValueError):
    """Results are damaged, or are not those of the plan."""


@dataclass(frozen=True, eq=False)
class DeviceResults:
    """What was measured on one device.

    Attributes
    ----------
    facts : dict
        What the device is. Where it is ``emulated``, its clock and memory are the emulator's:
        there are no times, and ``EMULATED`` stands for the error of its samples.
    before, after : dict
        Clock, temperature and throttling around the measurement.
    measured : Measurement
        Samples and conditions, of tasks that failed too.
    starts : DataFrame
        candidate, round, load_ms, first_call_ms: of the loading at every visit, by which a runtime
        may have kept what it compiled (``keep_compiled`` of the plan).
    memory : DataFrame
        candidate and :data:`MEMORY_COLUMNS`.
    classes : dict
        By candidate, the class [N] that it answered for every image, where it was scored.
    digests : dict
        By candidate, the SHA-256 of its float32 logits.
    errors : dict
        By candidate, why it failed.
    """

    device: str
    facts: dict[str, Any]
    before: dict[str, Any]
    after: dict[str, Any]
    measured: Measurement
    starts: pd.DataFrame
    memory: pd.DataFrame
    classes: dict[str, np.ndarray]
    digests: dict[str, str]
    errors: dict[str, str]

    @property
    def facts_around(self) -> dict[str, Any]:
        """What the device is, and its state before and after the measurement."""
        return {**self.facts, "before": self.before, "after": self.after}


def results_of(records: Iterable[Mapping[str, Any]], *, plan: Plan, device: str) -> DeviceResults:
    """Check the records of a journal against their plan, and put them into tables.

    Raises ``ResultsError`` when they are of another plan, or hold more or less than it asked for.
    """
    names = {job.name for job in plan.jobs}
    kinds: dict[str, list[Mapping[str, Any]]] = {kind: [] for kind in FIELDS}
    for record in {key_of(r): r for r in map(_checked, records)}.values():
        if record["name"] and record["name"] not in names:
            raise ResultsError(f"results of {device} name {record['name']!r}, not in the plan")
        kinds[record["kind"]].append(record)
    if not kinds["begin"] or kinds["begin"][0]["plan"] != plan.digest:
        raise ResultsError(f"results of {device} are not of plan {plan.digest[:12]}")
    if not kinds["done"]:
        raise ResultsError(f"results of {device} are not complete: the measurement did not end")
    [begin], [done] = kinds["begin"], kinds["done"]
    errors = {record["name"]: record["error"] for record in kinds["failed"]}
    _require_all_samples(kinds["visit"], plan=plan, failed=errors, device=device)
    untold = {job.name: EMULATED for job in plan.jobs if begin["facts"].get("emulated")}
    if untold:
        kinds["visit"] = []
        kinds["memory"] = [{"name": name, "unavailable": why} for name, why in untold.items()]
    return DeviceResults(
        device=device,
        facts=begin["facts"],
        before=begin["state"],
        after=done["state"],
        measured=Measurement(_samples(kinds["visit"], untold | errors), _laps(kinds["lap"])),
        starts=_starts(kinds["visit"]),
        memory=_memory(kinds["memory"]),
        classes={r["name"]: np.array(r["classes"], np.int64) for r in kinds["scored"]},
        digests={r["name"]: r["digest"] for r in kinds["scored"]},
        errors=errors,
    )


def _require_all_samples(
    visits: list[Mapping[str, Any]], *, plan: Plan, failed: Mapping[str, str], device: str
) -> None:
    """Raise ``ResultsError`` where calls of a job that has not failed are missing."""
    counts = plan.values  # noqa: PD011 - no DataFrame's
    wanted = counts["rounds"] * counts["calls_per_round"]
    found = Counter({job.name: 0 for job in plan.jobs})
    for visit in visits:
        found[visit["name"]] += len(visit["times"])
    for name, count in found.items():
        if name not in failed and count != wanted:
            raise ResultsError(f"results of {device} hold {count} calls of {name}, not {wanted}")


def read_results(path: Path) -> list[dict[str, Any]]:
    """Read the records of a ``results.json``; ``ResultsError`` when it was changed or cut."""
    return _read_sealed(path)["records"]


def _read_sealed(path: Path) -> dict[str, Any]:
    try:
        held = json.loads(path.read_text(encoding="utf-8"))
        records, digest = held["records"], held["sha256"]
        found = records_digest(records)
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise ResultsError(f"{path} is not a results file: {type(error).__name__}") from error
    if found != digest:
        raise ResultsError(f"{path} was changed: its SHA-256 is {found}, not {digest}")
    return held


def keep_records(records: list[dict[str, Any]], *, plan: Plan, to: Path) -> Path:
    """Write records to a file that :func:`kept_records` reads."""
    held = {"measured_by": _measured_by(), **sealed(records, plan=plan.digest)}
    return write_atomically(to, json.dumps(held).encode())


def kept_records(
    path: Path, *, plan: Plan, facts: Mapping[str, Any]
) -> list[dict[str, Any]] | None:
    """Read records of a plan that this very code and packages kept, on a device of these facts.

    None where they are of another plan, code or device, or not there; that the file is broken is
    logged.
    """
    if not path.is_file():
        return None
    try:
        held = _read_sealed(path)
        records, measured_by = held["records"], held["measured_by"]
        begin = next(_checked(record) for record in records if record["kind"] == "begin")
    except (ResultsError, LookupError, TypeError, StopIteration) as error:
        logger.warning("%s will be measured again: %s", path, error)
        return None
    same_device = begin["facts"] | json.loads(json.dumps(facts)) == begin["facts"]
    same = (measured_by, begin["plan"]) == (_measured_by(), plan.digest)
    return records if same and same_device else None


def _measured_by() -> dict[str, Any]:
    return {"code": package_sha256(), **environment_facts()}


def _checked(record: Any) -> Mapping[str, Any]:
    """Refuse a record without the fields that its kind has."""
    fields = FIELDS.get(record.get("kind")) if isinstance(record, dict) else None
    known = fields is not None and isinstance(record.get("name"), str)
    if not known or not isinstance(record.get("round"), int):
        raise ResultsError(f"a result is {json.dumps(record)[:100]}; allowed: {', '.join(FIELDS)}")
    for name, kind in fields.items():
        if not isinstance(record.get(name), kind):
            raise ResultsError(f"a result of kind {record['kind']} has {name} {record.get(name)!r}")
    for name in ("times", "classes"):
        if not all(isinstance(n, int) and n >= 0 for n in record.get(name, [])):
            raise ResultsError(f"a result of {record['name']} has {name} that are no whole numbers")
    return record


def _samples(visits: list[Mapping[str, Any]], errors: Mapping[str, str]) -> pd.DataFrame:
    """One row per timed call; one of NaN for every candidate that failed."""
    frames = [
        visit_samples(v["times"], "", candidate=v["name"], round=v["round"], position=v["position"])
        for v in visits
    ]
    last = max((visit["round"] for visit in visits), default=0)
    frames += [
        visit_samples([], error, candidate=name, round=last, position=0)
        for name, error in errors.items()
    ]
    return pd.concat(frames, ignore_index=True)


def _laps(laps: list[Mapping[str, Any]]) -> pd.DataFrame:
    table = pd.DataFrame(laps).drop(columns=["kind", "name"], errors="ignore")
    if table.empty:
        return table
    return with_clock_falls(table.sort_values("round", ignore_index=True))


def _starts(visits: list[Mapping[str, Any]]) -> pd.DataFrame:
    rows = [
        (v["name"], v["round"], v["load_ns"] / 1e6, v["first_ns"] / 1e6)
        for v in visits
        if "first_ns" in v
    ]
    return pd.DataFrame(rows, columns=["candidate", "round", "load_ms", "first_call_ms"])


def _memory(records: list[Mapping[str, Any]]) -> pd.DataFrame:
    rows = [
        {
            "candidate": record["name"],
            **{name: record.get(name, np.nan) for name in MEMORY_COLUMNS[:-1]},
            "rss_unavailable": record.get("unavailable", ""),
        }
        for record in records
    ]
    return pd.DataFrame(rows, columns=["candidate", *MEMORY_COLUMNS])


def facts_table(devices: Mapping[str, Mapping[str, Any]]) -> pd.DataFrame:
    """Set devices side by side: a row a fact, a column a device; states before and after.

    ``devices`` are :attr:`DeviceResults.facts_around` by name.
    """
    table = pd.DataFrame({name: _shown(facts) for name, facts in devices.items()})
    table.index = table.index.map(lambda fact: NAMED_FACTS.get(fact) or label(fact))
    return table.rename_axis(index="fact", columns="device")


def _shown(facts: Mapping[str, Any]) -> dict[str, str]:
    states = {
        name: " \N{RIGHTWARDS ARROW} ".join(dict.fromkeys(_told(facts[t][name]) for t in STATES))
        for name in facts["before"]
    }
    packages = ", ".join(f"{name} {version}" for name, version in facts["packages"].items())
    shown = {name: _told(facts[name]) for name in SHOWN_FACTS}
    return {
        **shown,
        "memory": _memory_words(facts["memory_bytes"]),
        **states,
        "packages": packages,
    }


def _memory_words(size: int | str) -> str:
    return size if isinstance(size, str) else quantity("peak_rss_bytes", size)


def _told(value: Any) -> str:
    if isinstance(value, list | tuple):
        return ", ".join(map(str, value))
    if isinstance(value, bool):
        return "yes" if value else "no"
    return DASH if value is None else str(value)
