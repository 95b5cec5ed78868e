import importlib
import json
from dataclasses import replace

import nbformat
import pytest

from edgeopt.reports.records.stamps import (
    Record,
    clear,
    file_times,
    is_current,
    last_written,
    outputs_since,
    package_digest,
    publish,
    read_record,
    stamp_of,
)
from edgeopt.study.folder import open_run

X, Y = "2d711642b726b04401627ca9fbac32f5c8530fb1903cc4db02258717921a4881", "of another content"


@pytest.fixture
def run(tmp_path):
    return open_run("quick", root=tmp_path)


def write_notebook(path, *sources):
    cells = [nbformat.v4.new_code_cell(source) for source in sources]
    nbformat.write(nbformat.v4.new_notebook(cells=cells), path)
    return path


def stamp(path, **changes):
    made_from = {
        "parameters": {"epochs": 3},
        "environment": {"cpu": "A"},
        "inputs": {"01": {"a.csv": "u"}},
    }
    return stamp_of(path, root=path.parent, **made_from | changes)


@pytest.mark.parametrize(
    "changes",
    [
        {"parameters": {"epochs": 4}},
        {"environment": {"cpu": "B"}},
        {"inputs": {"01": {"a.csv": "v"}}},
    ],
)
def test_a_stamp_depends_on_all_that_goes_in(tmp_path, changes):
    path = write_notebook(tmp_path / "a.ipynb", "1 + 1")
    assert stamp(path) != stamp(path, **changes)


def test_a_stamp_depends_on_the_cells_but_not_on_their_outputs(tmp_path):
    path = write_notebook(tmp_path / "a.ipynb", "1 + 1")
    before = stamp(path)
    notebook = nbformat.read(path, 4)
    notebook.cells[0].outputs = [nbformat.v4.new_output("stream", text="2")]
    nbformat.write(notebook, path)
    assert stamp(path) == before
    assert stamp(write_notebook(path, "1 + 2")) != before


def test_a_stamp_depends_on_the_users_images(tmp_path):
    path = write_notebook(tmp_path / "a.ipynb", "1 + 1")
    (tmp_path / "mine/cats").mkdir(parents=True)
    parameters = {"dataset": "folder:mine"}
    before = stamp(path, parameters=parameters)
    (tmp_path / "mine/cats/one.png").write_bytes(b"x")
    assert stamp(path, parameters=parameters) != before


def test_a_stamp_depends_on_the_users_weights_and_network(tmp_path, monkeypatch):
    path = write_notebook(tmp_path / "a.ipynb", "1 + 1")
    monkeypatch.syspath_prepend(tmp_path)
    weights, module = tmp_path / "weights" / "net.pt", tmp_path / "my_networks_of_the_test.py"
    weights.parent.mkdir()
    own = {"weights": "weights", "models": [f"{module.stem}:make", "resnet18", "no:x"]}
    stamps = [stamp(path, parameters=own)]
    for file in (weights, module):
        file.write_text("1")
        importlib.invalidate_caches()
        stamps.append(stamp(path, parameters=own))
    assert len(set(stamps)) == 3


def test_a_stamp_depends_on_pictures_behind_links(tmp_path):
    path = write_notebook(tmp_path / "a.ipynb", "1 + 1")
    (tmp_path / "elsewhere/cats").mkdir(parents=True)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/cats").symlink_to(tmp_path / "elsewhere/cats")
    (tmp_path / "elsewhere/cats/again").symlink_to(tmp_path / "mine")  # a loop
    before = stamp(path, parameters={"dataset": "folder:mine"})
    (tmp_path / "elsewhere/cats/one.png").write_bytes(b"x")
    assert stamp(path, parameters={"dataset": "folder:mine"}) != before


def test_a_stamp_ignores_a_folder_that_a_run_fills_itself(tmp_path):
    path = write_notebook(tmp_path / "a.ipynb", "1 + 1")
    before = stamp(path, parameters={"data_dir": "data"})
    (tmp_path / "data").mkdir()
    (tmp_path / "data/fetched.gz").write_bytes(b"x")
    assert stamp(path, parameters={"data_dir": "data"}) == before


def test_the_code_counts_but_the_layout_of_pages_does_not(tmp_path):
    (tmp_path / "assets").mkdir()
    (tmp_path / "training.py").write_text("1")
    before = package_digest(tmp_path)
    for stray in (".training.py.swp", "training.py~", "__pycache__/training.pyc"):
        (tmp_path / stray).parent.mkdir(exist_ok=True)
        (tmp_path / stray).touch()
    assert package_digest(tmp_path) == before
    (tmp_path / "reports").mkdir()
    (tmp_path / "reports/pages.py").write_text("1")
    assert package_digest(tmp_path) == before
    pages = package_digest(tmp_path, pages=True)
    (tmp_path / "training.py").write_text("2")
    assert package_digest(tmp_path) != before
    assert package_digest(tmp_path, pages=True) == pages
    (tmp_path / "reports/pages.py").write_text("2")
    assert package_digest(tmp_path, pages=True) != pages


def test_a_notebook_gets_its_record_and_its_name_in_one_step(run):
    temporary = write_notebook(run.path(".a.running.ipynb"), "1 + 1")
    record = Record("done", "s", outputs={"table.csv": X})
    publish(temporary, record, to=run.path("a.ipynb"))
    found = read_record(run.path("a.ipynb"))
    assert replace(found, content="") == record
    assert not temporary.exists()


def test_a_notebook_executed_by_hand_has_no_record(run):
    assert read_record(write_notebook(run.path("a.ipynb"), "1 + 1")) is None
    assert read_record(run.path("missing.ipynb")) is None


def test_outputs_are_the_files_that_are_new_or_rewritten(run):
    for name in ("kept", "rewritten"):
        run.write_bytes(name, b"x")
    before = file_times(run) | {"rewritten": 0}
    run.write_bytes("new", b"x")
    assert outputs_since(run, before) == {"new": X, "rewritten": X}


def test_current_means_done_same_stamp_and_all_files_there(run):
    run.write_bytes("table.csv", b"x")
    done = Record("done", "s", outputs={"table.csv": X})
    as_it_is, otherwise = {"table.csv": X}, {"table.csv": Y}
    assert is_current(run, done, stamp="s", expected=as_it_is)
    assert not is_current(run, done, stamp="t", expected=as_it_is)
    assert not is_current(run, Record("failed", "s"), stamp="s", expected=as_it_is)
    assert not is_current(run, None, stamp="s", expected=as_it_is)
    assert not is_current(run, done, stamp="s", expected=otherwise)
    rewritten_later = Record("done", "s", outputs=otherwise)
    assert is_current(run, rewritten_later, stamp="s", expected=as_it_is)
    run.path("table.csv").unlink()
    assert not is_current(run, done, stamp="s", expected=as_it_is)


def test_of_two_notebooks_that_write_a_file_the_last_decides():
    records = [Record("done", "a", outputs={"f": Y, "g": X}), None]
    assert last_written([*records, Record("done", "b", outputs={"f": X})]) == {"f": X, "g": X}


def test_clearing_removes_what_a_notebook_left_and_the_pages_of_the_run(run):
    for name in ("table.csv", "mine.txt", "a.html", "index.html", "manifest.json"):
        run.write_bytes(name, b"x")
    temporary = write_notebook(run.path(".a.running.ipynb"), "1 + 1")
    publish(temporary, Record("done", "s", outputs={"table.csv": X}), to=run.path("a.ipynb"))
    clear(run, ["a"])
    assert [path.name for path in run.root.iterdir()] == ["mine.txt"]


def test_clearing_keeps_what_an_earlier_notebook_wrote_too(run):
    run.write_bytes("shared.csv", b"x")
    temporary = write_notebook(run.path(".a.running.ipynb"), "1 + 1")
    publish(temporary, Record("done", "s", outputs={"shared.csv": X}), to=run.path("a.ipynb"))
    clear(run, ["a"], keep={"shared.csv"})
    assert [path.name for path in run.root.iterdir()] == ["shared.csv"]


def executed(run):
    temporary = write_notebook(run.path(".a.running.ipynb"), "1 + 1")
    publish(temporary, Record("done", "s"), to=run.path("a.ipynb"))
    return run.path("a.ipynb")


def with_another_output(path):
    notebook = nbformat.read(path, 4)
    notebook.cells[0].outputs = [nbformat.v4.new_output("stream", text="99.9%<script>")]
    nbformat.write(notebook, path)


def without_a_key(path):
    notebook = json.loads(path.read_text())
    del notebook["metadata"]["edgeopt"]["stamp"]
    path.write_text(json.dumps(notebook))


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (with_another_output, "was changed since"),
        (without_a_key, "is broken"),
        (lambda path: path.write_text(path.read_text()[:100]), "is broken"),
        (lambda path: path.write_text(""), "is broken"),
        (lambda path: path.write_text("[" * 100_000), "is broken"),
    ],
)
def test_a_notebook_that_was_changed_does_not_count_as_executed(run, caplog, change, problem):
    path = executed(run)
    assert read_record(path) is not None
    change(path)
    assert read_record(path) is None
    assert f"{path} {problem}" in caplog.text
