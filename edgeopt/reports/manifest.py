"""What a run was made from and what it left: ``manifest.json``, and the check against it."""

import json
import logging
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from edgeopt import __version__
from edgeopt.study import RunFolder, check_schema, reports_folder
from edgeopt.study.layout import DATA, maker
from edgeopt.system import file_sha256, host_facts, int8_scheme, package_versions

MANIFEST = "manifest.json"
log = logging.getLogger(__name__)


def artifact_paths(run: RunFolder) -> dict[str, Path]:
    """Every file of a run by its relative name; the manifest and hidden files are left out."""
    found = {}
    for path in sorted(run.root.rglob("*")):
        name = path.relative_to(run.root)
        hidden = any(part.startswith(".") for part in name.parts)
        if path.is_file() and not hidden and name.as_posix() != MANIFEST:
            found[name.as_posix()] = path
    return found


def git_facts(root: Path) -> dict[str, Any]:
    """Commit of the project and whether files beside the reports differ from it."""
    try:
        commit = _git(root, "rev-parse", "HEAD")
        changes = _git(root, "status", "--porcelain", "--", ".", ":(exclude)reports")
    except FileNotFoundError:
        return {"commit": "unavailable: git is not installed", "dirty": None}
    except subprocess.CalledProcessError as error:
        reason = (error.stderr.strip().splitlines() or ["git failed"])[0]
        return {"commit": f"unavailable: {reason}", "dirty": None}
    return {"commit": commit, "dirty": bool(changes)}


def _git(root: Path, *arguments: str) -> str:
    command = ["git", "-C", str(root), *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


def data_facts(run: RunFolder) -> dict[str, Any]:
    """Read name, checksum and image counts of the data that notebook 01 wrote."""
    path = run.path(DATA)
    if not path.is_file():
        return {"unavailable": f"{DATA} is missing: notebook {maker(DATA)} has not run"}
    return json.loads(path.read_text(encoding="utf-8"))


def provenance(
    run: RunFolder,
    *,
    parameters: Mapping[str, Any],
    notebooks: Mapping[str, Mapping[str, Any]],
    root: Path,
) -> dict[str, Any]:
    """Everything that a run was made from: data, parameters, code, versions, machine."""
    host = host_facts()
    scheme = int8_scheme(host["isa"])
    return {
        "schema": 1,
        "run": run.name,
        "edgeopt": __version__,
        "notebooks": dict(notebooks),
        "data": data_facts(run),
        "parameters": dict(parameters),
        "git": git_facts(root),
        "packages": package_versions(),
        "host": host,
        "int8_scheme": {"name": scheme.name, "reason": scheme.reason, "note": scheme.note},
        "threads": parameters.get("threads"),
    }


def write_manifest(run: RunFolder, facts: Mapping[str, Any]) -> Path:
    """Write ``facts`` with the size and SHA-256 of every file in the run's folder."""
    artifacts = {
        name: {"bytes": path.stat().st_size, "sha256": file_sha256(path)}
        for name, path in artifact_paths(run).items()
    }
    return run.write_json(MANIFEST, {**facts, "artifacts": artifacts})


def read_manifest(run: RunFolder) -> dict[str, Any]:
    """Read and check ``manifest.json``.

    Raises
    ------
    FileNotFoundError
        When the run has none, which says that it did not finish.
    ValueError
        When it is not JSON, or not a manifest.
    """
    path = run.path(MANIFEST)
    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing: run `make report RUN={run.name}` to its end")
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is not JSON: {error}") from error
    check_schema(manifest, name=MANIFEST)
    return manifest


def verify(run: RunFolder) -> pd.DataFrame:
    """Compare a run's files with its manifest.

    Columns: ``file, problem`` (``missing``, ``extra`` or ``differs``), ``expected, found``
    (SHA-256, or empty). No rows: every file is what the manifest says.
    """
    recorded = read_manifest(run)["artifacts"]
    present = artifact_paths(run)
    rows = []
    for name in sorted(recorded.keys() | present.keys()):
        expected = recorded.get(name, {}).get("sha256", "")
        found = file_sha256(present[name]) if name in present else ""
        if expected != found:
            problem = "missing" if not found else "differs" if expected else "extra"
            rows.append((name, problem, expected, found))
    return pd.DataFrame(rows, columns=["file", "problem", "expected", "found"])


def find_run(name: str) -> RunFolder:
    """Folder of a run that exists already.

    Raises
    ------
    FileNotFoundError
        Naming the runs that there are.
    """
    folder = reports_folder() / name
    if not folder.is_dir():
        known = [path.parent.name for path in sorted(reports_folder().glob(f"*/{MANIFEST}"))]
        raise FileNotFoundError(f"no run {name!r} in {folder.parent}; there are: {known or 'none'}")
    return RunFolder(folder)
