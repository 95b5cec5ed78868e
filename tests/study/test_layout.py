"""The files that notebooks hand over: whoever reads one, needs who makes it."""

import re
from pathlib import Path

import pytest

from edgeopt.study.layout import MADE_BY, NEEDS, SWEEP, maker, needed_by

NOTEBOOKS = sorted((Path(__file__).parents[2] / "notebooks").glob("0*.py"))
READS = r"""read_(?:json|table)\("([^"]+)"\)"""


def test_what_a_needed_notebook_needs_is_needed() -> None:
    assert needed_by("01_baseline_training") == []
    assert needed_by("03_quantization") == ["01_baseline_training"]
    assert needed_by("07_devices") == ["01_baseline_training", "02_pruning", "04_sweep"]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_needs_those_whose_files_it_reads(path: Path) -> None:
    source = path.read_text()
    read = {maker(name) for name in re.findall(READS, source)} - {path.stem}
    if "read_sweep(" in source:
        read.add(maker(SWEEP))
    if "study.kept(" in source:
        read.add("01_baseline_training")
    assert read <= {*needed_by(path.stem)}


def test_every_notebook_that_hands_over_is_needed_by_some() -> None:
    needed = {name for notebook in NEEDS for name in needed_by(notebook)}
    assert {*MADE_BY.values()} <= needed | {"05_hardware_analysis", "index"}
