"""The agent as one file, alone or with the bundle that it measures."""

import importlib.util
import zipfile
from collections.abc import Iterable, Iterator, Mapping
from itertools import chain
from pathlib import Path, PurePosixPath
from typing import BinaryIO

from edgeopt.agent.plan import FILES, PLAN, Plan

# Whole folders and files of the package; a device's Python finds no other of its modules.
PACKED = ("agent", "runtimes/sessions", "system/files.py", "system/host.py", "system/upstream.py")
ROOT = Path(importlib.util.find_spec("edgeopt").origin).parent
WHEN = (2000, 1, 1, 0, 0, 0)  # every entry's time: the same content is the same bytes
READABLE = 0o644 << 16  # where zip keeps Unix permissions
INTERPRETER = b"#!/usr/bin/env python3\n"


def write_archive(path: Path, *, plan: Plan | None = None) -> Path:
    """Write the agent as a zipapp; with a ``plan`` its bundle too, which it measures when started.

    Source: https://docs.python.org/3/library/zipapp.html
    """
    files = importable(packed(*PACKED))
    files["__main__.py"] = (ROOT / "agent" / "__main__.py").read_bytes()
    with path.open("wb") as file:
        file.write(INTERPRETER)
        write_zip(file, chain(files.items(), _bundle(plan) if plan else ()))
    path.chmod(0o755)
    return path


def packed(*names: str) -> dict[str, bytes]:
    """Contents of files and whole folders of the package, by the paths they are imported by."""
    places = [ROOT / name for name in names]
    sources = chain.from_iterable(
        sorted(place.glob("*.py")) if place.is_dir() else [place] for place in places
    )
    return {f"edgeopt/{p.relative_to(ROOT).as_posix()}": p.read_bytes() for p in sources}


def importable(files: Mapping[str, bytes]) -> dict[str, bytes]:
    """Add the empty packages that modules need around them."""
    folders = {folder for name in files for folder in PurePosixPath(name).parents[:-1]}
    return {f"{folder}/__init__.py": b"" for folder in sorted(folders)} | dict(files)


def write_zip(file: BinaryIO, files: Iterable[tuple[str, bytes]]) -> None:
    """Append files to a zip archive, the same ones as the same bytes."""
    with zipfile.ZipFile(file, "a", zipfile.ZIP_DEFLATED) as archive:
        for name, content in files:
            entry = zipfile.ZipInfo(name, WHEN)
            entry.compress_type, entry.external_attr = zipfile.ZIP_DEFLATED, READABLE
            archive.writestr(entry, content)


def _bundle(plan: Plan) -> Iterator[tuple[str, bytes]]:
    yield PLAN, (plan.folder / PLAN).read_bytes()
    for source in plan.files():
        yield f"{FILES}/{source.name}", source.read_bytes()
