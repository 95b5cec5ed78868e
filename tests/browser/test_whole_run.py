"""All eight notebooks on a user's own network: what they find, and their pages in a browser."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
import yaml

from edgeopt.config import NOTEBOOKS, SEARCH_NOTEBOOK, load_config
from edgeopt.devices import ResultsError
from edgeopt.experiments.sweep import run_sweep
from edgeopt.experiments.trainings.recipes import pruned_recipes
from edgeopt.reports.commands import main
from edgeopt.reports.offline import take_results, write_run_bundle
from edgeopt.schema import file_stem
from edgeopt.study.folder import RunFolder
from edgeopt.study.study import Study, open_study
from tests.browser.visits import faults
from tests.devices.servers import SSHD, AsyncSsh, OpenSsh
from tests.own_network import CLASSES, COLOUR

# Classes in the order of the network's answers: mathematics, a script, a formula, a name written
# from right to left, and one that is longer than a page is wide.
HOSTILE = (
    "$5 to $10 \\alpha_",
    "<img src=x onerror=alert('class')>",
    "=cmd|' C'!A0 \"><svg onload=alert('class')>\n\u202e" + 150 * "n",
)
HOSTILE_FILE = "<img src=x onerror=alert('file')>.png"


@pytest.fixture(scope="module")
def hostile(pictures, tmp_path_factory) -> Path:
    """Pictures whose folders and files have names that would do something."""
    root = tmp_path_factory.mktemp("hostile") / "pictures"
    shutil.copytree(pictures, root)
    for role in root.iterdir():
        for name, worse in zip(CLASSES, HOSTILE, strict=True):
            folder = (role / name).rename(role / worse)
            next(folder.iterdir()).rename(folder / HOSTILE_FILE)
        (role / HOSTILE[0] / "=1+1.gif").touch()
    return root


@pytest.fixture(scope="module")
def whole_run(hostile, weights, tmp_path_factory) -> Study:
    """All eight notebooks on a user's network with weights trained elsewhere, taken as they are."""
    root = tmp_path_factory.mktemp("report")
    kind = OpenSsh if Path(SSHD).exists() else AsyncSsh
    server = kind(tmp_path_factory.mktemp("ssh") / "server")
    values = {
        "devices": ["host", server.name],
        "decide_on": server.name,
        "device_python": sys.executable,
        "dataset": f"folder:{hostile}",
        "data_dir": str(root / "data"),
        "models": [COLOUR],
        "weights": str(weights),
        "epochs": 0,
        "finetune_epochs": 1,
        "mean": "imagenet",
        "std": "imagenet",
        "channel_multiple": 1,
        "train_subset": None,
        "val_subset": None,
        "test_subset": None,
        "pruning_levels": [0.0, 0.25],
        "pruning_criteria": ["l1"],
        "precisions": ["fp32", "int8"],
        "runtimes": ["onnxruntime", "openvino"],
        "rounds": 5,
        "calls_per_round": 6,
        "all_remedies": False,
        "active_memory_budget_mb": 1.0,
        "notebooks": [*NOTEBOOKS, SEARCH_NOTEBOOK],
        "search": {"trials": 40, "one_epoch": 3, "finalists": 2},
    }
    (root / "mine.yaml").write_text(yaml.safe_dump(values))
    with pytest.MonkeyPatch.context() as patch, server.running():
        patch.setenv("EDGEOPT_REPORTS", str(root / "reports"))
        patch.setenv("HOME", str(root))
        server.accept(root)
        server.trust(root)
        assert main(["report", "--params", str(root / "mine.yaml")]) == 0
        yield open_study(load_config(root / "mine.yaml"))


def test_a_users_network_gets_the_whole_study(whole_run):
    folder: RunFolder = whole_run.folder
    sweep = folder.read_sweep()
    grid = {
        (level, runtime, precision)
        for level in (0.0, 0.25)
        for runtime in ("onnxruntime", "openvino")
        for precision in ("fp32", "int8")
    }
    rows = sweep[["pruning_level", "runtime", "precision"]].itertuples(index=False, name=None)
    assert grid <= {*rows}
    assert sweep["status"].eq("ok").all()
    assert sweep.loc[sweep["pruning_level"] == 0, "accuracy"].min() > 0.9
    decision = folder.read_json("summary.json")
    assert decision["pick"]["model"] == COLOUR
    layers = folder.read_table("layerwise_breakdown.csv")
    assert layers["macs"].sum() == sweep.loc[sweep["pruning_level"] == 0, "macs"].iloc[0]
    names = {path.name for path in folder.root.rglob("*")}
    assert {
        "results.csv",
        "pareto.md",
        "06_backbone_sweep.html",
        "pick_operators.csv",
        "gallery.png",
        "predict.py",
        "MODEL_CARD.md",
        "ship.zip",
    } <= names
    index = folder.path("index.html").read_text()
    assert "mean 0.485, 0.456, 0.406, std 0.229, 0.224, 0.225" in index
    assert "may have been trained" not in index


def test_a_deep_network_is_searched_by_tables_of_its_layers(whole_run):
    folder: RunFolder = whole_run.folder
    found = folder.read_table("search_results.csv")
    assert found["status"].eq("ok").all()
    assert found["latency_p50_ms"].notna().all()
    assert found["test_accuracy"].notna().all()
    uniform = {f"{file_stem(COLOUR)}-p{level}-onnxruntime-fp32" for level in (0, 25)}
    assert uniform <= {*found["candidate"]}
    assert found.loc[~found["candidate"].isin(uniform), "found"].all()
    checked = pd.read_csv(folder.path("figures/search_map0.csv"))
    assert (~checked["fitted"]).sum() == 30
    trials = folder.read_table("search_trials.csv")
    assert trials["kept"].max() == pytest.approx(1)
    assert folder.path("search.db").stat().st_size > 0


def test_run_sweep_gives_the_numbers_of_the_notebooks(whole_run, tmp_path):
    """Networks, grid, files, accuracies and counts; only the clock may differ."""
    recipes = pruned_recipes([COLOUR], [0.25], [0], kinds=["fine-tuned"])
    [base] = whole_run.kept(whole_run.baselines()).values()
    [pruned] = whole_run.kept(recipes).values()
    config, splits = whole_run.config, whole_run.splits[COLOUR]
    table = run_sweep(
        base,
        splits.validation.loader(64),
        splits.calibration.loader(config.batch_size),
        "cpu",
        config.pruning_levels,
        config.precisions,
        config.power_watts,
        10,
        config.memory_budgets_mb,
        config.active_memory_budget_mb,
        config.latency_multiplier,
        1,
        runtimes=config.runtimes,
        pruned_models={0.25: pruned},
        recipe="fine-tuned",
        calls_per_round=1,
        model=COLOUR,
        scheme=whole_run.int8_scheme,
        directory=tmp_path,
    ).set_index("candidate")
    notebooks = whole_run.folder.read_sweep().set_index("candidate").loc[table.index]
    exact = ["accuracy", "macro_f1", "agreement", "macs", "parameters", "int8_mac_share"]
    exact += ["weight_bytes", "memory_mb", "peak_activation_bytes", "accepted", "recipe"]
    exact += [name for name in table if name.startswith("violates_")]
    pd.testing.assert_frame_equal(table[exact], notebooks[exact], check_exact=False, rtol=1e-9)


def test_every_page_of_a_whole_run_is_sound(visit, whole_run, screenshots):
    pages = sorted(whole_run.folder.root.glob("*.html"))
    assert len(pages) == 11  # front page, eight chapters, search and index of words
    for path in pages:
        opened = visit(path, size="phone", scheme="dark")
        assert faults(opened, screenshots / f"whole-{path.stem}.png") == []


def test_names_of_classes_come_back_as_they_were_and_start_no_formula(whole_run):
    assert whole_run.class_names == HOSTILE
    recalls = whole_run.folder.read_table("per_class.csv")
    assert (*recalls["class_name"].unique(),) == HOSTILE
    for path in whole_run.folder.root.rglob("*.csv"):
        cells = pd.read_csv(path, keep_default_na=False, dtype=str).to_numpy().ravel()
        assert not [cell for cell in cells if cell.startswith(("=", "@", "+"))], path


def test_a_device_reached_by_ssh_decides_and_answers_as_the_host(whole_run):
    folder, device = whole_run.folder, whole_run.config.decides
    everywhere = folder.read_table("sweep_results.csv")
    assert [*dict.fromkeys(everywhere["device"])] == [device, "host"]
    there = everywhere[everywhere["device"] == device]
    assert there["device_differs"].eq(0).all()
    assert there["device_logits"].eq("equal bit for bit").all()
    assert everywhere["latency_p50_ms"].gt(everywhere["call_floor_ms"]).mean() > 0.8
    [row] = folder.read_table("device_comparison.csv").to_dict("records")
    assert row["device"] == "host"
    assert row["pick"] in {*everywhere["candidate"]}
    assert folder.read_json("summary.json")["pick"]["device"] == device
    assert f"Speed was measured on {device}" in folder.path("index.html").read_text()


def test_a_bundle_measured_elsewhere_is_taken_in(whole_run, tmp_path):
    folder, board = whole_run.folder, tmp_path / "board"
    board.mkdir()
    archive = write_run_bundle(folder).rename(board / "bundle.pyz")
    command = [sys.executable, archive.name]
    environment = {**os.environ, "PYTHONPATH": ""}
    subprocess.run(command, cwd=board, env=environment, check=True, stdout=subprocess.DEVNULL)
    assert sorted(path.name for path in board.iterdir()) == ["bundle.pyz", "results.json"]
    device = take_results(folder, board / "results.json")
    [name] = folder.taken_in
    rows = pd.read_csv(folder.path(f"devices/{name}/rows.csv"))
    assert set(rows["device"]) == {device}
    assert rows["device_differs"].eq(0).all()
    assert rows["device_logits"].eq("equal bit for bit").all()
    assert rows["latency_p50_ms"].gt(0).all()
    compared = pd.read_csv(folder.path(f"devices/{name}/comparison.csv"))
    assert compared["pick"].isin(rows["candidate"]).all()
    assert compared["tau"].notna().all()
    text = (board / "results.json").read_text()
    (board / "results.json").write_text(text.replace('"round": 1', '"round": 2', 1))
    with pytest.raises(ResultsError, match="was changed"):
        take_results(folder, board / "results.json")
