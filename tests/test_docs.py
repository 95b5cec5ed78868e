"""The documentation builds without a warning and knows every column and parameter."""

import subprocess
import sys
from pathlib import Path

import pytest
from bs4 import BeautifulSoup

from edgeopt.config import ExperimentConfig
from edgeopt.schema import COLUMNS

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def site(tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("docs")
    command = [sys.executable, "-m", "sphinx", "-q", "-W", "--keep-going", "-b", "html"]
    done = subprocess.run(
        [*command, "-d", str(out / "trees"), "docs", str(out / "site")],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return out / "site"


def test_columns_and_parameters_are_those_of_the_code(site):
    columns = (site / "generated/columns.html").read_text()
    assert [name for name in COLUMNS if f">{name}<" not in columns] == []
    parameters = (site / "generated/parameters.html").read_text()
    assert [name for name in ExperimentConfig.model_fields if name not in parameters] == []
    text = BeautifulSoup(parameters, "html.parser").find("table").get_text(" ", strip=True)
    assert "seeds [0] a list of 1 or more: integer, from 0, below 4294967296" in text
    assert "image_size null integer, from 1, up to 4096 or null" in text
    assert "class" not in text.replace("class_names", "")


def test_the_api_has_a_page_a_room(site):
    assert "paired" in (site / "generated/decision.html").read_text()
    assert "recover_int8" in (site / "generated/experiments.html").read_text()
