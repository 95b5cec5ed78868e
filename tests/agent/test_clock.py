"""The wall clock of a device may jump: nothing in the program that measures there reads it."""

import ast
from pathlib import Path

import pytest

import edgeopt

PACKAGE = Path(edgeopt.__file__).parent
SENT = [*(PACKAGE / "agent").glob("*.py"), *(PACKAGE / "runtimes/sessions").glob("*.py")]
WALL = {"time", "time_ns", "gmtime", "localtime", "now", "utcnow", "today"}


def test_what_is_looked_for_is_found() -> None:
    assert names_called("import time\nstart = time.time()\nlater = time.monotonic()") & WALL
    assert not names_called("import time\nlater = time.perf_counter_ns()") & WALL


def names_called(source: str) -> set[str]:
    """Attributes that code calls, such as ``perf_counter`` of ``time.perf_counter()``."""
    calls = (node.func for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Call))
    return {own.attr for own in calls if isinstance(own, ast.Attribute)}


@pytest.mark.parametrize("path", SENT, ids=lambda path: path.name)
def test_durations_come_from_clocks_that_only_go_forward(path) -> None:
    assert not names_called(path.read_text()) & WALL
