"""A Python as a device has it: with some packages and what they require, and no others."""

import os
import subprocess
import venv
from importlib import metadata
from pathlib import Path

from packaging.requirements import Requirement


def bare_python(folder: Path, *packages: str) -> Path:
    """Make a virtual environment with links to installed packages, and return its Python."""
    venv.create(folder, symlinks=True)
    [site] = folder.glob("lib/python*/site-packages")
    for name in required(packages):
        found = metadata.distribution(name)
        for top in {file.parts[0] for file in found.files} - {"..", "__pycache__"}:
            (site / top).symlink_to(found.locate_file(top))
    return folder / "bin/python"


def required(packages) -> set[str]:
    """Names of packages and of all that they require."""
    found: set[str] = set()
    waiting = [*packages]
    while waiting:
        name = waiting.pop().lower()
        if name not in found:
            found.add(name)
            needs = map(Requirement, metadata.requires(name) or [])
            waiting += [n.name for n in needs if not n.marker or n.marker.evaluate({"extra": ""})]
    return found


def run(python: Path, *words: str | Path, cwd: Path) -> subprocess.CompletedProcess[str]:
    """Run a Python that is told nothing of this one's packages."""
    env = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    command = [str(python), *map(str, words)]
    return subprocess.run(command, cwd=cwd, env=env, capture_output=True, text=True)
