import base64
import io
import json
import os

import numpy as np
import pandas as pd
import pytest
from matplotlib import pyplot as plt
from PIL import Image

from edgeopt.study.folder import RunFolder, open_run, reports_folder, to_json


@pytest.fixture
def run(tmp_path):
    return open_run("quick", root=tmp_path)


@pytest.fixture
def project(tmp_path, monkeypatch):
    monkeypatch.delenv("EDGEOPT_REPORTS", raising=False)
    (tmp_path / "pyproject.toml").touch()
    (tmp_path / "notebooks").mkdir()
    return tmp_path


@pytest.mark.parametrize("folder", [".", "notebooks"])
def test_a_run_is_found_from_the_root_and_from_the_notebooks(project, monkeypatch, folder):
    monkeypatch.chdir(project / folder)
    assert open_run("quick").root == project / "reports" / "quick"


def test_the_environment_moves_the_reports(project, monkeypatch):
    monkeypatch.setenv("EDGEOPT_REPORTS", str(project / "elsewhere"))
    assert reports_folder() == project / "elsewhere"


def test_a_relative_place_for_the_reports_is_seen_from_the_project(project, monkeypatch):
    monkeypatch.setenv("EDGEOPT_REPORTS", "elsewhere")
    monkeypatch.chdir(project / "notebooks")
    assert reports_folder() == project / "elsewhere"


@pytest.mark.parametrize("name", ["", ".", "..", "a/b", "/tmp"])
def test_a_run_name_is_a_plain_folder_name(tmp_path, name):
    with pytest.raises(ValueError, match=r"run name is .* allowed: a folder name"):
        open_run(name, root=tmp_path)


def test_a_report_folder_that_cannot_be_made_is_named(tmp_path):
    (tmp_path / "reports").write_text("a file in the way")
    with pytest.raises(PermissionError, match=r"cannot make the report folder .*/reports/quick"):
        open_run("quick", root=tmp_path / "reports")


def test_a_report_folder_that_cannot_be_written_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "access", lambda *_: False)
    with pytest.raises(PermissionError, match=r"cannot write in the report folder .*/quick"):
        open_run("quick", root=tmp_path)


@pytest.mark.parametrize("name", ["", "../other/x.csv", "/etc/passwd", "a/../../x"])
def test_paths_stay_inside_the_run(run, name):
    with pytest.raises(ValueError, match="allowed: a relative path inside"):
        run.path(name)


def test_a_missing_file_names_the_notebook_and_the_commands(run):
    with pytest.raises(FileNotFoundError) as caught:
        run.require("weights/net-scratch-p50-seed0.pt")
    message = str(caught.value)
    assert "weights/net-scratch-p50-seed0.pt is missing: notebook 02_pruning makes it" in message
    assert "make report RUN=quick" in message
    assert "papermill --log-level ERROR notebooks/02_pruning.ipynb" in message


def test_a_file_that_is_there_is_returned(run):
    written = run.write_bytes("weights/net-baseline-p0-seed0.pt", b"123")
    assert run.require("weights/net-baseline-p0-seed0.pt") == written
    assert written.read_bytes() == b"123"


def test_a_failed_write_leaves_the_old_file_and_nothing_else(run, monkeypatch):
    run.write_bytes("data.bin", b"old")

    def full_disk(self, target):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("pathlib.Path.replace", full_disk)
    with pytest.raises(OSError, match="No space left"):
        run.write_bytes("data.bin", b"new")
    assert [path.name for path in run.root.iterdir()] == ["data.bin"]
    assert run.path("data.bin").read_bytes() == b"old"


def test_tables_come_back_as_they_went(run):
    df = pd.DataFrame({"candidate": ["a", "b"], "accuracy": [0.125, np.nan]}, index=[7, 9])
    run.write_table("sweep.csv", df)
    assert run.path("sweep.csv").read_bytes() == b"candidate,accuracy\na,0.125\nb,\n"
    pd.testing.assert_frame_equal(run.read_table("sweep.csv"), df.reset_index(drop=True))


def test_texts_are_no_formulas_in_a_spreadsheet_and_come_back_as_they_were(run):
    names = ["=cmd|' /C calc'!A0", "+1", "-1+1", "@SUM(A1)", "nan", "None", "'=", "plain", "\t="]
    df = pd.DataFrame({"class_name": names, "change": [-0.5, *range(8)], "=heading": "NULL"})
    run.write_table("names.csv", df)
    head, *lines = run.path("names.csv").read_text().splitlines()
    assert head == "class_name,change,'=heading"
    assert not [line for line in lines if line.lstrip('"').startswith(("=", "+", "-", "@", "\t"))]
    assert lines[0].split(",")[1] == "-0.5"
    pd.testing.assert_frame_equal(run.read_table("names.csv"), df)


def test_json_has_no_nan_and_no_numpy(run):
    value = {
        "a": np.float32(0.5),
        "b": float("nan"),
        "c": (np.int64(3), [np.inf]),
        "d": np.arange(2),
    }
    assert to_json(value) == {"a": 0.5, "b": None, "c": [3, [None]], "d": [0, 1]}
    run.write_json("facts.json", value)
    assert json.loads(run.path("facts.json").read_text())["d"] == [0, 1]


def test_a_summary_against_its_schema_is_refused_and_not_written(run):
    with pytest.raises(ValueError, match=r"summary.json at \$: 'pick' is a required property"):
        run.write_json(
            "summary.json",
            {"runner_up": None, "baseline": None, "reason": "x", "what_it_would_take": ""},
        )
    assert list(run.root.iterdir()) == []


def drawn():
    _, ax = plt.subplots(figsize=(4, 3))
    ax.plot([0, 1])
    return ax


def test_a_figure_keeps_its_words_and_its_numbers(run):
    numbers = pd.DataFrame({"x": [0, 1]})
    alt = "A line that rises by 5 \N{MICRO SIGN}s \N{EM DASH} no more."
    ax = drawn()
    shown = run.save_figure("rise", ax, alt=alt, numbers=numbers)
    with Image.open(run.path("figures/rise.png")) as picture:
        assert picture.info["Description"] == alt
        assert picture.size == (4 * 192, 3 * 192)
    assert run.read_table("figures/rise.csv").equals(numbers)
    assert not plt.fignum_exists(ax.figure.number)
    data, metadata = shown._repr_mimebundle_()
    assert base64.b64decode(data["image/png"]) == run.path("figures/rise.png").read_bytes()
    assert metadata["image/png"] == {"width": 4 * 96, "alt": alt, "figure": "rise"}


def test_a_figure_without_words_is_refused(run):
    with pytest.raises(ValueError, match="figure 'rise' has no alt text"):
        run.save_figure("rise", drawn(), alt=" ")
    plt.close("all")
    assert list(run.root.iterdir()) == []


def test_a_run_is_named_after_its_folder(tmp_path):
    assert RunFolder(tmp_path / "mnist").name == "mnist"


@pytest.mark.parametrize("file", ["summary.json", "right_answers.csv", "sweep_results.csv"])
def test_results_taken_in_count_as_long_as_the_run_has_decided_as_it_did(tmp_path, file):
    run = RunFolder(tmp_path)
    assert run.taken_in == []
    for name in ("summary.json", "right_answers.csv", "sweep_results.csv"):
        run.write_bytes(name, b"before")
    run.write_table("devices/board/rows.csv", pd.DataFrame({"artifact_sha256": ["a"]}))
    run.write_json("devices/board/decided.json", run.decision_digests)
    run.write_table("devices/old/rows.csv", pd.DataFrame({"artifact_sha256": ["a"]}))
    assert run.taken_in == ["board"]
    [rows] = run.read_taken_in("rows.csv")
    assert rows["artifact_sha256"].tolist() == ["a"]
    run.write_bytes(file, b"decided anew")
    assert run.taken_in == []


def test_a_text_beside_the_axes_is_not_cut(tmp_path):
    _, ax = plt.subplots(figsize=(6.4, 3), layout="constrained")
    ax.set_yticks([0.5], ["ESP32-S3-WROOM-1-N16R8"])
    ax.annotate("6.1 to 110, 50% pruned", (0.7, 0.5), (7, 0), textcoords="offset points")
    image = open_run("tidy", root=tmp_path).save_figure("estimates", ax, alt="Estimates.")
    drawn = np.asarray(Image.open(io.BytesIO(image.data)).convert("RGBA"))
    assert drawn[:, -1, 3].max() == 0  # nothing reaches the right edge
    assert drawn[:, -40:, 3].max() > 0  # and the text comes near it
