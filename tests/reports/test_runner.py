import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import nbformat
import pytest
import yaml
from bs4 import BeautifulSoup

from edgeopt.reports import runner as reports
from edgeopt.reports.commands import main
from edgeopt.reports.records import stamps
from edgeopt.reports.records.manifest import read_manifest, verify
from edgeopt.reports.runner import find_notebooks, only_one
from edgeopt.study.folder import RunFolder, open_run
from edgeopt.system import project_root

ROOT = Path(__file__).parents[2]
FIRST, SECOND, THIRD = "01_baseline_training", "02_pruning", "03_quantization"
CHAPTERS = (FIRST, SECOND, THIRD, "04_sweep")
LOG = "open('executed.log', 'a').write('{name}\\n')"


class Project:
    """A project of tiny notebooks, each of which logs that it ran and writes one file."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.run = RunFolder(root / "reports" / "tiny")
        (root / "pyproject.toml").touch()
        (root / "notebooks").mkdir()
        (root / "params").mkdir()
        self.front_page()

    def notebook(self, name, parameters, *code):
        v4 = nbformat.v4
        lines = ["from edgeopt.study.folder import open_run", "folder = open_run(run)"]
        cells = [
            v4.new_markdown_cell(f"# About {name}"),
            v4.new_code_cell(parameters, metadata={"tags": ["parameters"]}),
            v4.new_code_cell("\n".join([*lines, LOG.format(name=name), *code])),
            v4.new_code_cell(f"folder.write_bytes('{name}.txt', b'x').name"),
        ]
        kernel = {"name": "python3", "display_name": "Python 3", "language": "python"}
        notebook = v4.new_notebook(cells=cells, metadata={"kernelspec": kernel})
        nbformat.write(notebook, self.root / "notebooks" / f"{name}.ipynb")

    def front_page(self):
        """A front page that needs no study: it names the notebooks that failed."""
        v4 = nbformat.v4
        code = (
            "from edgeopt.reports.records.results import read_results\n"
            "from edgeopt.study.folder import open_run\n"
            "print(*read_results(open_run(run)).problems)"
        )
        cells = [
            v4.new_markdown_cell("# Front page"),
            v4.new_code_cell("run = ''", metadata={"tags": ["parameters"]}),
            v4.new_code_cell(code),
        ]
        kernel = {"name": "python3", "display_name": "Python 3", "language": "python"}
        notebook = v4.new_notebook(cells=cells, metadata={"kernelspec": kernel})
        nbformat.write(notebook, self.root / "notebooks/index.ipynb")

    def params(self, *names, **values):
        text = yaml.safe_dump({"notebooks": list(names), **values})
        (self.root / "params/tiny.yaml").write_text(text)

    def report(self, *options):
        return main(["report", "--params", str(self.root / "params/tiny.yaml"), *options])

    def executed(self):
        """Names of the notebooks that ran since the last call."""
        log = self.root / "executed.log"
        names = log.read_text().split() if log.exists() else []
        log.unlink(missing_ok=True)
        return names

    def page(self, name):
        return self.run.path(name).read_text()


@pytest.fixture
def project(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("EDGEOPT_REPORTS", raising=False)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setattr(reports, "build_runs_index", lambda folder: folder)  # see test_site
    monkeypatch.setattr(reports.stamps, "package_digest", lambda **_: "as it is")
    return Project(tmp_path)


def test_a_run_is_published_and_only_what_changed_runs_again(project):
    project.notebook(FIRST, "run = ''\nbatch_size = 1")
    project.notebook(SECOND, "run = ''\nepochs = 1", "print('epochs', epochs)")
    project.params(FIRST, SECOND, epochs=3, batch_size=2)
    assert project.report("--write-back") == 0
    assert project.executed() == [FIRST, SECOND]
    assert "epochs 3" in project.page(f"{SECOND}.html")
    assert "learning_rate" not in project.page(f"{SECOND}.ipynb")
    assert 'href="02_pruning.html"' in project.page("index.html")
    manifest = read_manifest(project.run)
    assert manifest["parameters"]["epochs"] == 3
    assert f"{FIRST}.txt" in manifest["artifacts"]
    assert verify(project.run).empty
    written = nbformat.read(project.root / "notebooks" / f"{SECOND}.ipynb", 4)
    assert [cell.cell_type for cell in written.cells] == ["markdown", "code", "code", "code"]
    assert written.cells[2].outputs[0].text == "epochs 3\n"
    assert written.cells[3].outputs[0].execution_count == 3

    assert project.report() == 0
    assert project.executed() == []

    project.params(FIRST, SECOND, epochs=4, batch_size=2)
    assert project.report() == 0
    assert project.executed() == [SECOND]
    assert "epochs 4" in project.page(f"{SECOND}.html")

    project.run.path(f"{FIRST}.txt").write_text("tampered with")
    assert project.report() == 0
    assert project.executed() == [FIRST]
    assert project.run.path(f"{FIRST}.txt").read_text() == "x"
    assert [p.name for p in project.run.root.glob(".*")] == [".lock"]


@pytest.fixture
def executed(project, monkeypatch):
    """Names of the notebooks that are executed, by something quick: no kernel is started.

    Each leaves half of its batch size, whole; chapter 2 fails with a batch size of 9.
    """
    names = []
    for name in CHAPTERS:
        project.notebook(
            name, "run = ''\nbatch_size = 1" if name in (FIRST, SECOND) else "run = ''"
        )

    def execute(run, step):
        name, size = step.notebook.stem, step.parameters.get("batch_size", 0)
        names.append(name)
        before = stamps.file_times(run)
        run.write_json(f"{name}.json", size // 2)
        failed = (name, size) == (SECOND, 9)
        temporary = run.path(f".{name}.running.ipynb")
        nbformat.write(nbformat.v4.new_notebook(), temporary)
        outputs = stamps.outputs_since(run, before)
        record = stamps.Record("failed" if failed else "done", step.stamp, outputs=outputs)
        stamps.publish(temporary, record, to=run.path(step.notebook.name))
        return not failed

    monkeypatch.setattr(reports, "execute", execute)
    return names


def executed_with(project, executed, names=CHAPTERS, **parameters):
    executed.clear()
    run = open_run("tiny", root=project.root / "reports")
    values = {"run": "tiny", **parameters}
    reports.execute_notebooks(run, find_notebooks(names), parameters=values)
    return executed


def test_another_content_runs_on_to_the_notebooks_that_read_it_and_no_further(project, executed):
    assert executed_with(project, executed, batch_size=2) == [*CHAPTERS]
    assert executed_with(project, executed, batch_size=2) == []
    # Both that read the parameter run, and leave the same.
    assert executed_with(project, executed, batch_size=3) == [FIRST, SECOND]
    assert executed_with(project, executed, batch_size=4) == [*CHAPTERS]
    project.run.path(f"{THIRD}.json").unlink()  # chapter 4 reads nothing of chapter 3
    assert executed_with(project, executed, batch_size=4) == [THIRD]
    project.run.path("04_sweep.ipynb").write_text("{}")
    assert executed_with(project, executed, batch_size=4) == ["04_sweep"]


def test_what_other_chapters_made_of_a_changed_one_is_not_kept(project, executed):
    executed_with(project, executed, batch_size=2)
    assert executed_with(project, executed, [FIRST], batch_size=4) == [FIRST]
    assert [path.name for path in project.run.root.glob("*.ipynb")] == [f"{FIRST}.ipynb"]
    assert not project.run.path("04_sweep.json").exists()


def test_chapters_that_are_not_asked_for_any_more_count_as_inputs_still(project, executed):
    executed_with(project, executed, batch_size=2)
    assert executed_with(project, executed, ["04_sweep"], batch_size=2) == []
    assert executed_with(project, executed, [FIRST, SECOND], batch_size=4) == [FIRST, SECOND]
    assert executed_with(project, executed, ["04_sweep"], batch_size=4) == ["04_sweep"]


def test_what_comes_after_a_failed_notebook_is_not_kept(project, executed):
    executed_with(project, executed, batch_size=8)
    assert executed_with(project, executed, batch_size=9) == [FIRST, SECOND]
    left = {path.name for path in project.run.root.iterdir()}
    assert left == {f"{name}{end}" for name in (FIRST, SECOND) for end in (".ipynb", ".json")}


def test_a_failed_notebook_leaves_its_traceback_and_stops_the_run(project):
    project.notebook(FIRST, "run = ''")
    project.notebook(SECOND, "run = ''", "raise ValueError('no <b>channel</b> left')")
    project.notebook(THIRD, "run = ''")
    project.params(FIRST, SECOND, THIRD)
    assert project.report() == 1
    assert project.executed() == [FIRST, SECOND]
    page = project.page(f"{SECOND}.html")
    words = BeautifulSoup(page, "html.parser").text
    assert "ValueError: no <b>channel</b> left" in words
    assert "Traceback (most recent call last)" in words
    assert f"Notebook {SECOND} failed" in project.page("index.html")
    states = read_manifest(project.run)["notebooks"]
    assert [state["status"] for state in states.values()] == ["done", "failed", "not run"]

    project.notebook(SECOND, "run = ''")
    assert project.report() == 0
    assert project.executed() == [SECOND, THIRD]
    assert "failed" not in project.page(f"{SECOND}.html")


@pytest.mark.parametrize(
    ("last_words", "code"), [("pass", 0), ("os.kill(os.getpid(), signal.SIGKILL)", 1)]
)
def test_a_kernel_leaves_no_temporary_files_however_it_ends(project, last_words, code):
    make = "import os, signal, tempfile; open('where', 'w').write(tempfile.mkdtemp())"
    project.notebook(FIRST, "run = ''", make, last_words)
    project.params(FIRST)
    assert project.report() == code
    made = Path((project.root / "where").read_text())
    assert made.parent.name.startswith("edgeopt-")
    assert not made.parent.exists()
    assert ("the kernel died" in project.page("index.html")) == bool(code)


def test_a_killed_run_resumes_after_its_last_finished_notebook(project):
    tell = "import os, pathlib, time\npathlib.Path('kernel').write_text(str(os.getpid()))"
    slow = f"{tell}\nwhile pathlib.Path('slow').exists(): time.sleep(0.1)"
    project.notebook(FIRST, "run = ''")
    project.notebook(SECOND, "run = ''", slow)
    project.params(FIRST, SECOND)
    (project.root / "slow").touch()
    command = [sys.executable, "-m", "edgeopt", "report", "--params", "params/tiny.yaml"]
    with subprocess.Popen(command, cwd=project.root, stderr=subprocess.DEVNULL) as process:
        try:
            wait_for(lambda: (project.root / "kernel").read_text())
        finally:
            process.kill()
    kernel = Path("/proc") / (project.root / "kernel").read_text()
    wait_for(lambda: not kernel.exists() or "State:\tZ" in (kernel / "status").read_text())
    names = {path.name for path in project.run.root.iterdir() if not path.name.startswith(".")}
    assert names == {f"{FIRST}.ipynb", f"{FIRST}.txt"}
    nbformat.validate(nbformat.read(project.run.path(f"{FIRST}.ipynb"), 4))
    (project.root / "slow").unlink()
    assert project.executed() == [FIRST, SECOND]
    subprocess.run(command, cwd=project.root, check=True, capture_output=True)
    assert project.executed() == [SECOND]
    assert read_manifest(project.run)["notebooks"][SECOND]["status"] == "done"


def wait_for(condition):
    for _ in range(1800):
        try:
            if condition():
                return
        except FileNotFoundError:
            pass
        time.sleep(0.1)
    raise TimeoutError("the run did not get there in 3 minutes")


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"epoch": 3}, "unknown parameter 'epoch'"),
        ({"epochs": "three"}, "parameter epochs is 'three'"),
        ({"pruning_levels": [1.0]}, "pruning_levels"),
        ({"dataset": "cifar"}, "unknown dataset 'cifar'"),
    ],
)
def test_bad_parameters_stop_before_anything_is_made(project, caplog, values, message):
    project.notebook(FIRST, "run = ''")
    project.params(FIRST, **values)
    assert project.report() == 2
    assert message in caplog.text
    assert not (project.root / "reports").exists()


def test_a_notebook_that_is_not_there_is_named_with_those_that_are(project, caplog):
    project.notebook(FIRST, "run = ''")
    project.params(FIRST, SECOND)
    assert project.report() == 2
    assert f"no notebook '{SECOND}'" in caplog.text
    assert f"there are: {FIRST}" in caplog.text


def test_an_unwritable_report_folder_is_one_clear_error(project, caplog):
    project.notebook(FIRST, "run = ''")
    project.params(FIRST)
    (project.root / "reports").write_text("a file in the way")
    assert project.report() == 2
    assert "cannot make the report folder" in caplog.text


def test_two_processes_cannot_make_the_same_report(project, caplog):
    project.notebook(FIRST, "run = ''")
    project.params(FIRST)
    with only_one(open_run("tiny")):
        assert project.report() == 2
    assert f"process {os.getpid()} on" in caplog.text
    assert "is making the report in" in caplog.text


def test_notebooks_run_in_the_order_of_their_numbers(project):
    for name in (SECOND, FIRST):
        project.notebook(name, "run = ''")
    found = find_notebooks([SECOND, FIRST])
    assert [path.stem for path in found] == [FIRST, SECOND]


def test_a_report_interrupted_while_it_imports_is_one_line(tmp_path):
    command = [sys.executable, "-m", "edgeopt", "report", "--params", str(tmp_path / "none.yaml")]
    with subprocess.Popen(
        command, stderr=subprocess.PIPE, text=True, start_new_session=True
    ) as process:
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
        while len(children.read_text().split()) < 2:  # the fork server is the second
            time.sleep(0.01)
        os.killpg(process.pid, signal.SIGINT)
        assert process.communicate()[1] == "interrupted; nothing has begun\n"
        assert process.returncode == 130


def test_an_interrupted_report_is_one_line_that_says_what_is_kept(monkeypatch, caplog):
    def interrupted(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr("edgeopt.reports.runner.make_report", interrupted)
    assert main(["report", "--params", str(project_root() / "params/quick.yaml")]) == 130
    assert "what is finished is kept" in caplog.text
