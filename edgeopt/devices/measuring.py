"""Measures on a device until nothing is missing."""

import logging
import time
from pathlib import Path
from typing import Any

from tqdm import tqdm

from edgeopt.agent.journal import WAITING, key_of, parsed
from edgeopt.agent.plan import Plan
from edgeopt.devices.device import HOST, Device, DeviceError, DeviceLost, Host, check_device
from edgeopt.devices.results import DeviceResults, keep_records, kept_records, results_of

logger = logging.getLogger(__name__)

ATTEMPTS = 5  # in a row that bring nothing new

DONE = ("done", "", 0)  # key of the record that comes last
Records = dict[tuple[str, str, int], dict[str, Any]]


def device_named(name: str, **options: str) -> Device:
    """Make a device of its name; ``options`` are those of :class:`edgeopt.devices.ssh.SshDevice`.

    Raises ``ValueError`` unless it is ``host`` or ``ssh://[user@]name[:port]``.
    """
    if check_device(name) == HOST:
        return Host()
    from edgeopt.devices.ssh import SshDevice

    return SshDevice(name, **options)


def measure_on(device: Device, plan: Plan, *, kept: Path | None = None) -> DeviceResults:
    """Measure a bundle on a device; lost agents and connections are started again.

    Nothing that came is measured twice, and nothing beside another process's measurement there.
    What the device was given is removed; where the measurement ended in its middle, it stays, and
    the same measurement goes on from there. With ``kept``, a
    file, the records of this very plan, device and code that it holds are taken as they are;
    others are measured, and written there. Raises ``DeviceError`` after five starts in a row that
    brought nothing.
    """
    facts = device.facts(plan.values["packages"]) if kept else {}
    if kept and (found := kept_records(kept, plan=plan, facts=facts)):
        logger.info("%s was measured before: %s", device.name, kept)
        return results_of(found, plan=plan, device=device.name)
    records = _measured(device, plan)
    if kept:
        keep_records(records, plan=plan, to=kept)
    return results_of(records, plan=plan, device=device.name)


def _measured(device: Device, plan: Plan) -> list[dict[str, Any]]:
    records: Records = {}
    waited: list[str] = []  # for whom: then what lies there is another process's too
    with tqdm(total=plan.values["rounds"], desc=f"rounds on {device.name}", disable=None) as bar:
        try:
            _until_done(device, plan, records, waited, bar)
        finally:
            if DONE in records or not (records or waited):
                _clean(device, plan)
    return [*records.values()]


def _clean(device: Device, plan: Plan) -> None:
    """Remove what a device was given; where it is out of reach, say what is left there."""
    try:
        device.clean(plan)
    except DeviceError as error:
        logger.warning("%s; what was put there stays until the next measurement", error)


def _until_done(device: Device, plan: Plan, records: Records, waited: list[str], bar: tqdm) -> None:
    def take(line: str) -> None:
        record = parsed(line)
        if record and record["kind"] == WAITING:
            waited.append(record["name"])
            logger.warning("%s is measuring for %s; waiting", device.name, record["name"])
        elif record and key_of(record) not in records:
            records[key_of(record)] = record
            bar.update(record["kind"] == "lap")

    idle = 0
    while DONE not in records:
        before = len(records) + len(waited)
        try:
            device.run(plan, on_line=take)
            if DONE not in records:
                raise DeviceLost(f"{device.name}: the agent ended before the measurement did")
        except DeviceLost as error:
            logger.warning("%s; trying again", error)
            idle = 0 if len(records) + len(waited) > before else idle + 1
            if idle >= ATTEMPTS:
                raise DeviceError(f"{error}, {ATTEMPTS} times in a row") from error
            time.sleep(2**idle - 1)
