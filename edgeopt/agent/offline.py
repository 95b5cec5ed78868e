"""A bundle that is started by hand, on a device without a network, and leaves one results file."""

from __future__ import annotations

import hashlib
import json
import shutil
import sys
import zipfile
from pathlib import Path
from typing import Any

from edgeopt.agent.journal import JOURNAL, read_records
from edgeopt.agent.plan import FILES, PLAN
from edgeopt.agent.supervisor import run

RESULTS = "results.json"


def is_bundle(archive: Path) -> bool:
    """Whether a file is an archive that holds a plan."""
    if not archive.is_file():
        return False
    with zipfile.ZipFile(archive) as opened:
        return PLAN in opened.namelist()


def run_bundle(archive: Path, *, to: Path) -> Path:
    """Measure the plan inside an archive and write ``results.json`` into the folder ``to``.

    What was measured before a kill is kept beside it, and the next start goes on from there.
    """
    with zipfile.ZipFile(archive) as opened:
        digest = hashlib.sha256(opened.read(PLAN)).hexdigest()
        folder = to / f".edgeopt-{digest[:16]}"
        for name in opened.namelist():
            if name == PLAN or name.startswith(f"{FILES}/"):
                _extract(opened, name, folder)
    run(folder, show="progress")
    records = [*read_records(folder / JOURNAL).values()]
    content = json.dumps(sealed(records, plan=digest)) + "\n"
    temporary, results = to / f".{RESULTS}.tmp", to / RESULTS
    temporary.write_text(content, encoding="utf-8")
    temporary.replace(results)
    shutil.rmtree(folder)
    sys.stdout.write(f"written: {results}\n")
    return results


def _extract(opened: zipfile.ZipFile, name: str, folder: Path) -> None:
    """Write a file unless it is there: another process may be measuring it."""
    content, path = opened.read(name), folder / name
    if not path.is_file() or path.read_bytes() != content:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)


def sealed(records: list[dict[str, Any]], *, plan: str) -> dict[str, Any]:
    """Put records with the digest of their plan, and with their own, by which a change shows."""
    return {"plan": plan, "sha256": records_digest(records), "records": records}


def records_digest(records: list[dict[str, Any]]) -> str:
    """SHA-256 of records as JSON with sorted keys."""
    return hashlib.sha256(json.dumps(records, sort_keys=True).encode()).hexdigest()
