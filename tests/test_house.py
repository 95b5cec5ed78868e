"""The house as a whole: imports point upward, environments agree, notebooks keep their form."""

import ast
import importlib.util
import re
import statistics
import subprocess
import sys
import tomllib
from dataclasses import fields
from pathlib import Path

import jupytext
import nbformat
import pytest
import yaml

from benchmarks.__main__ import BENCHMARKS, ON_REQUEST
from edgeopt.config import NOTEBOOKS, SEARCH_NOTEBOOK, ExperimentConfig, load_config
from edgeopt.data.preprocessing import Preprocessing
from edgeopt.decision.gates import Constraints, Gates
from edgeopt.experiments.sweep import Target
from edgeopt.experiments.trainings.plan import Schedule
from edgeopt.system.parallel.fork_server import PRELOADED

ROOT = Path(__file__).parent.parent
ROOMS = sorted(path.parent.name for path in (ROOT / "edgeopt").glob("*/__init__.py"))
PARTS = {p.__name__: p for p in (Constraints, Gates, Preprocessing, Schedule, Target)}
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
PAIRS = [ROOT / "notebooks" / f"{name}.ipynb" for name in (*NOTEBOOKS, SEARCH_NOTEBOOK)]


def tags_of(source: str, cells: list) -> list[str]:
    return next(c.metadata.get("tags", []) for c in cells if c.source == source)


def may_be_long(source: str, cells: list) -> bool:
    """Whether a cell holds parameters or imports, which no length is worth cutting."""
    imports = all(isinstance(n, ast.Import | ast.ImportFrom) for n in ast.parse(source).body)
    return imports or "parameters" in tags_of(source, cells)


def test_a_room_imports_only_from_the_rooms_above_it():
    # In a process of its own, because it sets up logging.
    code = "from importlinter.cli import lint_imports_command; lint_imports_command()"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


def test_every_room_is_in_the_contract():
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]
    contract = settings["contracts"][0]
    inside = [p for p in (ROOT / "edgeopt").iterdir() if p.suffix == ".py" or p.is_dir()]
    rooms = {p.stem for p in inside if p.stem not in ("__init__", "__pycache__", "assets")}
    assert {layer.removeprefix("edgeopt.") for layer in contract["layers"]} == rooms


@pytest.mark.parametrize("room", ROOMS)
def test_every_public_name_of_a_room_is_there(room):
    module = importlib.import_module(f"edgeopt.{room}")
    assert [name for name in module.__all__ if not hasattr(module, name)] == []


DOCUMENTED = {
    "data": ["build_loaders", "load_splits"],
    "model": ["SmallCNN", "set_deterministic", "train_model"],
    "pruning": ["structured_channel_prune"],
    "quantization": ["precision_variant", "to_fp16", "to_int8"],
    "hardware": ["precision_tradeoff_table"],
    "decision": ["pareto_frontier"],
    "experiments": ["pareto_frontier", "precision_variant", "run_sweep", "train_model"],
}


@pytest.mark.parametrize("room", DOCUMENTED)
def test_documented_calls_are_in_their_places(room):
    public = importlib.import_module(f"edgeopt.{room}").__all__
    assert set(DOCUMENTED[room]) <= set(public)


def test_workers_start_with_modules_that_exist():
    assert all(importlib.util.find_spec(name) for name in PRELOADED)


def test_environment_agrees_with_pyproject():
    environment = yaml.safe_load((ROOT / "environment.yml").read_text())["dependencies"]
    python = next(str(d) for d in environment if str(d).startswith("python="))
    assert PROJECT["requires-python"] == ">=3.11,<3.13"
    assert python == "python=3.11"
    *pins, editable = next(d["pip"] for d in environment if isinstance(d, dict))
    assert {re.split("=", pin)[0] for pin in pins} == {"torch", "torchvision"}
    assert set(pins) <= set(PROJECT["dependencies"])
    extras = re.search(r"\[(.*)\]", editable).group(1).split(",")
    assert set(extras) == set(PROJECT["optional-dependencies"])
    assert editable.split()[-1] in (ROOT / "Makefile").read_text()


def test_every_dependency_is_pinned():
    groups = [PROJECT["dependencies"], *PROJECT["optional-dependencies"].values()]
    assert [d for group in groups for d in group if "==" not in d] == []


def test_the_lock_has_every_pin_but_those_of_torch_s_builds():
    pins = {pin for group in PROJECT["optional-dependencies"].values() for pin in group}
    pins |= {*PROJECT["dependencies"]}
    locked = re.findall(r"^(\S+==\S+) ", (ROOT / "requirements.lock").read_text(), re.M)
    missing = pins - {*locked}
    assert {re.split("=", pin)[0] for pin in missing} == {"torch", "torchvision"}
    content = (ROOT / "requirements.lock").read_text()
    assert len(re.findall(r"^\S+==", content, re.M)) == len(locked)
    assert "://" not in content


def test_nothing_is_unpickled_but_what_this_program_sends_itself():
    for path in sorted((ROOT / "edgeopt").rglob("*.py")):
        source = path.read_text()
        loads = re.findall(r"torch\.load\([^\n]*", source)
        assert all("weights_only=True" in call for call in loads), path
        if re.search(r"pickle\.loads?\(|pickle\.Unpickler|allow_pickle=True", source):
            # processes of this run, and workers that the run's scheduler names
            assert path.relative_to(ROOT / "edgeopt").as_posix() in (
                "system/parallel/workers.py",
                "system/parallel/delivery.py",
            )


def test_the_defaults_are_those_of_the_quick_run():
    assert load_config(ROOT / "params/quick.yaml") == ExperimentConfig()


@pytest.mark.parametrize("path", sorted((ROOT / "params").glob("*.yaml")), ids=lambda p: p.stem)
def test_every_parameter_file_is_valid(path):
    assert load_config(path).run == path.stem


def parameters_read(source: str) -> set[str]:
    """Names of the parameters that code reads of a ``config``, alone or as a part."""
    # properties that are made from parameters
    source = source.replace("config.data_folder", "config.data_dir")
    source = source.replace("config.decides", "config.decide_on, config.devices")
    source = source.replace("config.clocked", "config.search, config.runtimes")
    parts = [PARTS[name] for name in re.findall(r"config\.part\((\w+)\)", source)]
    return set(re.findall(r"\bconfig\.(\w+)", source)) | {f.name for p in parts for f in fields(p)}


@pytest.mark.parametrize("path", PAIRS, ids=lambda p: p.stem)
def test_notebook_parameters_are_the_quick_run(path):
    cells = nbformat.read(path, as_version=4).cells
    tagged = [c for c in cells if "parameters" in c.metadata.get("tags", [])]
    assert len(tagged) == 1
    names: dict = {}
    exec(tagged[0].source, names)
    names.pop("__builtins__")
    source = "\n".join(c.source for c in cells if c.cell_type == "code" and c not in tagged)
    quick = ExperimentConfig().model_dump(mode="json")
    assert names == {key: quick[key] for key in names}
    study = (ROOT / "edgeopt/study").glob("*.py")
    elsewhere = ("checks.py", "resources.py")
    used, of_study = (
        parameters_read(source),
        parameters_read("".join(p.read_text() for p in study if p.name not in elsewhere)),
    )
    if "study.preparation(" not in source:
        of_study -= {"benchmark_batch_size"}
    if "study.measure(" not in source:
        of_study -= {"rounds", "calls_per_round", "threads"}
    if "study.workers" not in source:
        of_study -= {"scheduler"}
    if "whole_maps(" in source or "search_space(" in source:
        search = (ROOT / "edgeopt/search").glob("*.py")
        of_study |= parameters_read("".join(p.read_text() for p in search))
    else:
        of_study -= {"search", "runtimes"}
    needed = used | of_study if "open_study(" in source else used
    assert set(names) == needed & set(quick)


@pytest.mark.parametrize("path", PAIRS, ids=lambda p: p.stem)
def test_notebook_is_paired_with_its_text(path):
    notebook = jupytext.read(path)
    text = jupytext.read(path.with_suffix(".py"))
    assert [(c.cell_type, c.source, c.metadata.get("tags")) for c in notebook.cells] == [
        (c.cell_type, c.source, c.metadata.get("tags")) for c in text.cells
    ]


@pytest.mark.parametrize("path", PAIRS, ids=lambda p: p.stem)
def test_notebook_keeps_the_form(path):
    cells = nbformat.read(path, as_version=4).cells
    code = [c.source for c in cells if c.cell_type == "code"]
    assert cells[0].cell_type == "markdown"
    assert "?" in cells[0].source
    assert [s for s in code if re.search(r"^(def|class) ", s, re.M)] == []
    assert len(code) <= 25
    lines = [s.count("\n") + 1 for s in code if not may_be_long(s, cells)]
    assert max(lines) <= 12
    assert statistics.median(lines) <= 4
    assert "print" in code[-1]
    assert not any("filterwarnings" in s for s in code)


@pytest.mark.parametrize("path", PAIRS[: len(NOTEBOOKS)], ids=lambda p: p.stem)
def test_notebook_is_committed_with_outputs_and_without_errors(path):
    code = [c for c in nbformat.read(path, as_version=4).cells if c.cell_type == "code"]
    assert any(c.outputs for c in code)
    assert [o.ename for c in code for o in c.outputs if o.output_type == "error"] == []


def test_every_benchmark_is_there():
    assert "usual-way" in BENCHMARKS
    assert set(BENCHMARKS) > ON_REQUEST
    assert all(callable(benchmark) for benchmark in BENCHMARKS.values())
