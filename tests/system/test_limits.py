"""Limits of a process, told before libraries end in a traceback."""

import resource
import subprocess
import sys
from pathlib import Path

import pytest

from edgeopt.system import require_limits


@pytest.mark.parametrize(
    ("kind", "given", "said"),
    [
        (resource.RLIMIT_NOFILE, 24, r"may have 24 open files \(ulimit -n\); allowed: 128 or more"),
        (resource.RLIMIT_AS, 2**30, r"may have 1,024 MiB of address space \(ulimit -v\)"),
    ],
)
def test_limits_under_which_nothing_starts_are_told(kind, given, said, monkeypatch):
    real = resource.getrlimit
    low = {kind: (given, given)}
    monkeypatch.setattr(resource, "getrlimit", lambda asked: low.get(asked) or real(asked))
    with pytest.raises(ValueError, match=said):
        require_limits()
    low[kind] = (resource.RLIM_INFINITY, resource.RLIM_INFINITY)
    require_limits()


@pytest.mark.parametrize("limit", ["ulimit -v 400000", "ulimit -n 24"])
def test_a_command_tells_them_in_one_line(limit):
    command = f"{limit}; exec {sys.executable} -m edgeopt check --params params/quick.yaml"
    root = Path(__file__).parents[2]
    done = subprocess.run(["bash", "-c", command], cwd=root, capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr.startswith("a process may have ")
    assert done.stderr.count("\n") == 1
