"""When is an executed notebook up to date? A stamp of all that it was made from decides."""

import hashlib
import json
import logging
import os
import re
from collections.abc import Container, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import nbformat

from edgeopt.data import FOLDER_PREFIX
from edgeopt.reports.records.manifest import MANIFEST, artifact_paths
from edgeopt.study import RunFolder
from edgeopt.study.layout import MEASURED
from edgeopt.system import file_sha256, source_digest, write_atomically

log = logging.getLogger(__name__)

INDEX = "index.html"
PACKAGE = Path(__file__).parents[2]
# Neither changes what a notebook computes.
PAGE_PARTS = {"reports", "__main__.py"}
# What reading a broken notebook raises.
BROKEN = (ValueError, LookupError, TypeError, AttributeError, RecursionError)
BROKEN += (nbformat.ValidationError,)
PLACES = ("scheduler", "data_dir")  # parameters: who computes, and where what is fetched lies


@dataclass(frozen=True)
class Record:
    """How one notebook ended, and the SHA-256 of each file that it left; kept in its metadata.

    ``content`` is the digest of the executed notebook itself: of its cells and its other metadata.
    """

    status: str
    stamp: str
    error: str = ""
    outputs: Mapping[str, str] = field(default_factory=dict)
    content: str = ""


def digest(value: Any) -> str:
    """SHA-256 of a JSON value, in hex."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def package_digest(package: Path = PACKAGE, *, pages: bool = False) -> str:
    """SHA-256 over the package's files but for those that only lay out pages, or over these."""
    files = [path.relative_to(package) for path in sorted(package.rglob("*")) if path.is_file()]
    own = [f for f in files if not _stray(f) and (f.parts[0] in PAGE_PARTS) == pages]
    return digest({file.as_posix(): file_sha256(package / file) for file in own})


def _stray(file: Path) -> bool:
    """Whether an editor, Jupyter or Python left it there."""
    hidden = any(part.startswith(".") or part == "__pycache__" for part in file.parts)
    return hidden or file.name.endswith("~")


def stamp_of(
    notebook: Path,
    *,
    parameters: Mapping[str, Any],
    environment: Mapping[str, Any],
    inputs: Mapping[str, Any],
    root: Path,
) -> str:
    """Stamp of a notebook: its cells, parameters, files they name, code, machine and inputs.

    The files are the user's images, weights and the code of the networks' factories.
    ``inputs`` are the digests of what other notebooks left for it.
    """
    cells = nbformat.read(notebook, as_version=4).cells
    decides = {name: value for name, value in parameters.items() if name not in PLACES}
    weights = parameters.get("weights")
    named = [value for value in (parameters.get("dataset"), weights) if value]
    factories = [name for name in parameters.get("models", ()) if ":" in name]
    return digest(
        {
            "cells": [(cell.cell_type, cell.source) for cell in cells],
            "parameters": decides,
            "files": {value: _listing(value, root, whole=value == weights) for value in named},
            "factories": {name: source_digest(name.partition(":")[0]) for name in factories},
            "environment": dict(environment),
            "inputs": dict(inputs),
        }
    )


def _listing(value: str, root: Path, *, whole: bool) -> list[tuple[str, int, int]]:
    """Names, sizes and times of the user's files that a parameter names; most name none.

    Of a folder they count where it is one of images, or ``whole``.
    """
    path = root / value.removeprefix(FOLDER_PREFIX)
    inside = path.is_dir() and (whole or value.startswith(FOLDER_PREFIX))
    files = sorted(_all_files(path)) if inside else [path]
    states = [(file.as_posix(), file.stat()) for file in files if file.is_file()]
    return [(name, state.st_size, state.st_mtime_ns) for name, state in states]


def _all_files(folder: Path) -> Iterator[Path]:
    """Every file below a folder, of folders that are links too, each of these once."""
    seen = set()
    for parent, folders, names in os.walk(folder, followlinks=True):
        if (real := os.path.realpath(parent)) in seen:
            folders.clear()
            continue
        seen.add(real)
        yield from (Path(parent, name) for name in names)


def read_record(executed: Path) -> Record | None:
    """Read the record inside an executed notebook; None when this package did not execute it.

    One that is broken, or was changed since, counts as not executed, which is logged.
    """
    if not executed.is_file():
        return None
    try:
        notebook = nbformat.read(executed, as_version=4)
        record = Record(**notebook.metadata["edgeopt"])
        changed = "" if record.content == content_digest(notebook) else "was changed since"
    except BROKEN as error:
        changed = f"is broken ({type(error).__name__})"
    if changed:
        log.warning("%s %s: it does not count as executed", executed, changed)
        return None
    return record


def content_digest(notebook: nbformat.NotebookNode) -> str:
    """SHA-256 of a notebook's cells, outputs and metadata but for edgeopt's own."""
    metadata = {key: value for key, value in notebook.metadata.items() if key != "edgeopt"}
    return digest({"cells": notebook.cells, "metadata": metadata})


def notebook_state(executed: Path) -> dict[str, Any]:
    """Describe a notebook for the manifest: title, status, error, when it ended, seconds taken."""
    title = executed.stem.replace("_", " ")
    record = read_record(executed)
    if record is None:
        return {"status": "not run", "title": title, "error": ""}
    notebook = nbformat.read(executed, as_version=4)
    words = "\n".join(cell.source for cell in notebook.cells if cell.cell_type == "markdown")
    heading = re.search(r"^# (.+)", words, re.MULTILINE)
    timing = notebook.metadata["papermill"]
    return {
        "status": record.status,
        "title": heading[1].strip() if heading else title,
        "error": record.error,
        "finished": timing["end_time"],
        "seconds": timing["duration"],
    }


def publish(temporary: Path, record: Record, *, to: Path) -> None:
    """Give an executed notebook its record and its final name, in one step."""
    notebook = nbformat.read(temporary, as_version=4)
    record = replace(record, content=content_digest(notebook))
    notebook.metadata["edgeopt"] = asdict(record)
    write_atomically(to, nbformat.writes(notebook).encode())
    temporary.unlink()


def file_times(run: RunFolder) -> dict[str, int]:
    """When each file of a run was last written, in ns: taken before a notebook runs."""
    return {name: path.stat().st_mtime_ns for name, path in artifact_paths(run).items()}


def outputs_since(run: RunFolder, before: Mapping[str, int]) -> dict[str, str]:
    """SHA-256 of the files that are new or rewritten since ``before``."""
    now = file_times(run)
    changed = [name for name, time in now.items() if before.get(name) != time]
    return {name: file_sha256(run.path(name)) for name in changed}


def last_written(records: Iterable[Record | None]) -> dict[str, str]:
    """SHA-256 that each file should have: the last of the notebooks that wrote it decides."""
    left = [record.outputs for record in records if record]
    return {name: sha for outputs in left for name, sha in outputs.items()}


def is_current(
    run: RunFolder, record: Record | None, *, stamp: str, expected: Mapping[str, str]
) -> bool:
    """Whether a notebook ended well from this stamp, and its files are as they should be.

    ``expected`` is :func:`last_written` of all notebooks: a later one may have changed a file.
    """
    if record is None or (record.status, record.stamp) != ("done", stamp):
        return False
    paths = {name: run.path(name) for name in record.outputs}
    return all(p.is_file() and file_sha256(p) == expected[name] for name, p in paths.items())


def _measured(run: RunFolder, name: str, *, sha: str) -> bool:
    path = run.path(name)
    return name.startswith(f"{MEASURED}/") and path.is_file() and file_sha256(path) == sha


def clear(run: RunFolder, names: Sequence[str], *, keep: Container[str] = ()) -> None:
    """Remove what the named notebooks left but for ``keep``, and the pages made from it.

    Measurements stay where they are as they were written: they know what they are of.
    """
    for name in names:
        written = last_written([read_record(run.path(f"{name}.ipynb"))])
        outputs = [n for n in written if n not in keep and not _measured(run, n, sha=written[n])]
        for left in [*outputs, f"{name}.ipynb", f"{name}.html", INDEX, MANIFEST]:
            run.path(left).unlink(missing_ok=True)
