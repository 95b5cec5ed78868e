"""What a run was made from and what it left: ``manifest.json``, and the check against it."""

import json
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from edgeopt import __version__
from edgeopt.config import ExperimentConfig
from edgeopt.study import RunFolder, check_schema, reports_folder
from edgeopt.study.layout import DATA, DEVICES, maker
from edgeopt.system import environment_facts, file_sha256, host_facts, int8_scheme

MANIFEST = "manifest.json"


def artifact_paths(run: RunFolder) -> dict[str, Path]:
    """Every file of a run by its relative name; the manifest and hidden files are left out."""
    files = [path for path in sorted(run.root.rglob("*")) if path.is_file()]
    named = {path.relative_to(run.root).as_posix(): path for path in files}
    return {n: path for n, path in named.items() if n != MANIFEST and "/." not in f"/{n}"}


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
    if not run.path(DATA).is_file():
        return {"unavailable": f"{DATA} is missing: notebook {maker(DATA)} has not run"}
    return run.read_json(DATA)


def deciding_facts(run: RunFolder, *, parameters: Mapping[str, Any]) -> dict[str, Any]:
    """Describe the device whose numbers decided; this machine where it was not measured yet."""
    if not run.path(DEVICES).is_file():
        return host_facts()
    decides = parameters.get("decide_on") or parameters["devices"][0]
    return run.read_json(DEVICES).get(decides) or host_facts()


def provenance(
    run: RunFolder,
    *,
    parameters: Mapping[str, Any],
    notebooks: Mapping[str, Mapping[str, Any]],
    root: Path,
) -> dict[str, Any]:
    """Everything that a run was made from: data, parameters, code, versions, machine."""
    host = deciding_facts(run, parameters=parameters)
    scheme = int8_scheme(host["isa"])
    return {
        "schema": 1,
        "run": run.name,
        "edgeopt": __version__,
        "notebooks": dict(notebooks),
        "data": data_facts(run),
        "parameters": dict(parameters),
        "git": git_facts(root),
        "packages": environment_facts()["packages"],
        "host": host,
        "int8_scheme": {"name": scheme.name, "reason": scheme.reason, "note": scheme.note},
        "threads": parameters.get("threads"),
    }


def file_facts(run: RunFolder) -> dict[str, dict[str, Any]]:
    """Size and SHA-256 of every file in the run's folder, by its relative name."""
    return {
        name: {"bytes": path.stat().st_size, "sha256": file_sha256(path)}
        for name, path in artifact_paths(run).items()
    }


def write_manifest(run: RunFolder, facts: Mapping[str, Any]) -> Path:
    """Write ``facts`` and :func:`file_facts`."""
    return run.write_json(MANIFEST, {**facts, "artifacts": file_facts(run)})


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


def config_of(run: RunFolder) -> ExperimentConfig:
    """Parameters of a finished run, under the name that its folder has now: it may be a copy."""
    return ExperimentConfig(**read_manifest(run)["parameters"] | {"run": run.name})


def verify(run: RunFolder) -> pd.DataFrame:
    """Compare a run's files with its manifest by size and SHA-256.

    Columns: ``file, problem`` (``missing``, ``extra`` or ``differs``). No rows: every file is what
    the manifest says.
    """
    recorded, found = read_manifest(run)["artifacts"], file_facts(run)
    rows = [
        (name, "missing" if name not in found else "differs" if name in recorded else "extra")
        for name in sorted(recorded | found)
        if recorded.get(name) != found.get(name)
    ]
    return pd.DataFrame(rows, columns=["file", "problem"])


def find_run(name: str) -> RunFolder:
    """Folder of a run that exists already.

    Raises
    ------
    FileNotFoundError
        Naming the runs that there are.
    """
    there = reports_folder()
    folder = there / name
    if not folder.is_dir() or folder.parent != there or name == "..":
        known = [path.parent.name for path in sorted(there.glob(f"*/{MANIFEST}"))]
        raise FileNotFoundError(f"no run {name!r} in {there}; there are: {known or 'none'}")
    return RunFolder(folder)
