"""Every block of code in README.md, as it is printed."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from edgeopt.config import load_config
from edgeopt.model.weights import dump_weights
from edgeopt.study.study import open_study
from tests.own_network import CLASSES, colour

ROOT = Path(__file__).parents[1]
BLOCKS = re.findall(r"^```(\w+)\n(.*?)^```", (ROOT / "README.md").read_text(), re.M | re.S)


def blocks(language):
    return [text for name, text in BLOCKS if name == language]


def test_the_kinds_of_blocks_are_those_that_are_run_here():
    assert {name for name, _ in BLOCKS} == {"console", "python", "yaml"}


def test_the_library_block_prints_a_frontier(capsys):
    [code] = blocks("python")
    exec(compile(code, "README.md", "exec"), {})
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["candidate", "accuracy", "latency_ms", "memory_mb"]
    assert "int8" in lines[1]


def test_the_parameter_file_opens_a_study(tmp_path, monkeypatch, pictures):
    [text, *_] = blocks("yaml")
    (tmp_path / "pyproject.toml").touch()
    (tmp_path / "path/to").mkdir(parents=True)
    (tmp_path / "path/to/pictures").symlink_to(pictures)
    (tmp_path / "my_module.py").write_text("from tests.own_network import colour as make_network\n")
    (tmp_path / "path/to/weights.pt").write_bytes(dump_weights(colour(num_classes=len(CLASSES))))
    (tmp_path / "mine.yaml").write_text(text)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("EDGEOPT_REPORTS", str(tmp_path / "reports"))
    study = open_study(load_config(Path("mine.yaml")))
    assert study.config.models == ("my_module:make_network",)
    assert (
        yaml.safe_load(text)["image_size"] == study.splits["my_module:make_network"].train.shape[1]
    )


@pytest.mark.parametrize("text", blocks("yaml"), ids=lambda text: text.splitlines()[0])
def test_every_parameter_file_is_read(text, tmp_path):
    path = tmp_path / Path(text.splitlines()[0]).name
    path.write_text(text)
    values = load_config(path).model_dump(exclude_unset=True)
    assert {*yaml.safe_load(text)} <= {*values}


def test_every_make_target_of_the_console_blocks_and_the_table_is_there():
    readme = (ROOT / "README.md").read_text()
    named = set(re.findall(r"^make ([a-z-]+)", "\n".join(blocks("console")), re.M))
    named |= set(re.findall(r"`make ([a-z-]+)", readme))
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.M))
    assert named <= targets


@pytest.mark.slow
def test_the_papermill_block_runs_quietly(tmp_path, monkeypatch):
    [line] = [b.strip() for b in blocks("console") if b.startswith("papermill")]
    command = line.replace(" out.ipynb ", f" {tmp_path / 'out.ipynb'} ").split()
    monkeypatch.setenv("EDGEOPT_REPORTS", str(tmp_path))
    done = subprocess.run(
        [sys.executable, "-m", *command], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert "unknown parameter" not in done.stderr


def test_the_parameters_of_a_device_are_accepted(tmp_path):
    [text] = [own for own in blocks("yaml") if "decide_on" in own]
    (tmp_path / "board.yaml").write_text(text)
    config = load_config(tmp_path / "board.yaml")
    assert config.devices == ("host", config.decides)
    assert config.decides.startswith("ssh://")
