"""What a module of the user's own is made of: its source, and that of what it imports beside it."""

import ast
import hashlib
import importlib.util
from pathlib import Path

from edgeopt.system.files import file_sha256


def source_digest(module: str) -> str:
    """SHA-256 of a module's source and of what may be behind it; empty when it is not found.

    Of a package that is all of its modules, else the module and those beside it that it imports.
    """
    try:
        top = importlib.util.find_spec(module.partition(".")[0])
    except (ModuleNotFoundError, ValueError):
        return ""
    if top is None:
        return ""
    if top.submodule_search_locations:
        folders = map(Path, top.submodule_search_locations)
        files = {path for folder in folders for path in folder.rglob("*.py")}
    else:
        files = _with_imported(Path(top.origin)) if top.origin else set()
    if not files:
        return ""
    return hashlib.sha256(repr([file_sha256(path) for path in sorted(files)]).encode()).hexdigest()


def _with_imported(path: Path) -> set[Path]:
    """Return a module's file and those in its folder that it imports, and what these import."""
    found, rest = set(), [path]
    while rest:
        file = rest.pop()
        if file in found or not file.is_file():
            continue
        found.add(file)
        names = _imported(file)
        rest += [path.parent / f"{name.partition('.')[0]}.py" for name in names]
    return found


def _imported(file: Path) -> list[str]:
    """Names of the modules that a file imports; none where it is not Python, which others tell."""
    try:
        nodes = [*ast.walk(ast.parse(file.read_bytes()))]
    except (SyntaxError, ValueError):
        return []
    plain = [node for node in nodes if isinstance(node, ast.Import)]
    own = [node.module or "" for node in nodes if isinstance(node, ast.ImportFrom)]
    return own + [alias.name for node in plain for alias in node.names]
