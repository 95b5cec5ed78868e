"""A parameter file -> executed notebooks -> pages and manifest; skips what is up to date."""

import fcntl
import logging
import os
import platform
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Any

import nbformat
import papermill
from nbclient.exceptions import DeadKernelError
from papermill.exceptions import PapermillExecutionError

from edgeopt.config import DEVICES_NOTEBOOK, ExperimentConfig
from edgeopt.reports.kernels import ThisPythonKernel, end_kernels
from edgeopt.reports.offline import take_results, write_run_bundle
from edgeopt.reports.records import stamps
from edgeopt.reports.records.manifest import (
    MANIFEST,
    config_of,
    provenance,
    read_manifest,
    verify,
    write_manifest,
)
from edgeopt.reports.site import build_run_site, build_runs_index
from edgeopt.study import RunFolder, check_parameters, check_run, needed_by, open_run
from edgeopt.system import (
    environment_facts,
    file_sha256,
    project_root,
    write_atomically,
)

log = logging.getLogger(__name__)


def find_notebooks(names: Sequence[str]) -> list[Path]:
    """Find the notebooks of a run, in the order of their numbers."""
    folder = project_root() / "notebooks"
    known = {path.stem: path for path in sorted(folder.glob("[0-9]*.ipynb"))}
    for name in names:
        if name not in known:
            there = ", ".join(known) or "none"
            raise FileNotFoundError(f"no notebook {name!r} in {folder}; there are: {there}")
    return [known[name] for name in sorted(names)]


@dataclass(frozen=True)
class Step:
    """One notebook of a run, its parameters, and the stamp of all that it is made from."""

    notebook: Path
    parameters: Mapping[str, Any]
    stamp: str


def step_of(
    notebook: Path, *, parameters: Mapping[str, Any], left: Mapping[str, Mapping[str, str]]
) -> Step:
    """Make the step of a notebook, which gets those parameters that its first code cell declares.

    ``left`` is the SHA-256 of each file by the notebook that left it; those of the notebooks that
    this one needs are in its stamp.
    """
    names = papermill.inspect_notebook(str(notebook))
    own = {name: value for name, value in parameters.items() if name in names}
    stamp = stamps.stamp_of(
        notebook,
        parameters=own,
        environment={"code": stamps.package_digest(), **environment_facts()},
        inputs={name: left[name] for name in needed_by(notebook.stem) if name in left},
        root=project_root(),
    )
    return Step(notebook, own, stamp)


def execute_notebooks(
    run: RunFolder,
    notebooks: Sequence[Path],
    *,
    parameters: Mapping[str, Any],
    check: Callable[[], str] = str,
) -> bool:
    """Execute, in order, the notebooks that are not up to date; stop at the first that fails.

    One is up to date as long as its cells, its parameters, the code, and what the notebooks that it
    needs have left are the same, and its files are there as it left them. Where the first is not,
    ``check`` is called before, and what it says is logged. What other chapters in the folder have
    made of one that is executed again is removed. An executed notebook appears in the
    run's folder whole, with the record that lets the next call skip it. Returns whether all of them
    ended well.
    """
    for path in [*run.root.rglob(".*.tmp"), *run.root.rglob(".*.running.ipynb")]:
        path.unlink()  # left by a run that was killed
    records = {path.stem: stamps.read_record(run.path(path.name)) for path in notebooks}
    others = _other_records(run, notebooks)
    left: dict[str, Mapping[str, str]] = {name: own.outputs for name, own in others.items()}
    for place, notebook in enumerate(notebooks):
        name, step = notebook.stem, step_of(notebook, parameters=parameters, left=left)
        expected = stamps.last_written(records.values())
        if stamps.is_current(run, records[name], stamp=step.stamp, expected=expected):
            log.info("%s: up to date", name)
        else:
            if not place and (found := check()):
                log.info("%s: %s", run.name, found)
            earlier = stamps.last_written(records[path.stem] for path in notebooks[:place])
            stale = [other for other in others if name in needed_by(other)]
            stamps.clear(run, [name, *stale], keep=earlier)
            if not execute(run, step):
                stamps.clear(run, [path.stem for path in notebooks[place + 1 :]], keep=earlier)
                return False
            records[name] = stamps.read_record(run.path(notebook.name))
        left[name] = records[name].outputs
    return True


def _other_records(run: RunFolder, notebooks: Sequence[Path]) -> dict[str, stamps.Record]:
    """Read the records of chapters that the run's folder holds beside the given ones."""
    names = {path.name for path in notebooks}
    others = [path for path in sorted(run.root.glob("[0-9]*.ipynb")) if path.name not in names]
    records = {path.stem: stamps.read_record(path) for path in others}
    return {name: record for name, record in records.items() if record}


def execute(run: RunFolder, step: Step) -> bool:
    """Execute one notebook; failed or not, its last state lands in the run's folder."""
    name = step.notebook.stem
    log.info("%s: running", name)
    before = stamps.file_times(run)
    temporary = run.path(f".{name}.running.ipynb")
    error = ""
    try:
        papermill.execute_notebook(
            step.notebook,
            temporary,
            parameters=dict(step.parameters),
            kernel_name="python3",
            kernel_manager_class=ThisPythonKernel,
            shutdown_kernel="immediate",  # a busy one that is asked to end tells a traceback
            progress_bar=sys.stderr.isatty(),
            cwd=project_root(),
        )
    except PapermillExecutionError as failure:
        error = f"{failure.ename}: {failure.evalue}"
    except DeadKernelError as failure:
        error = f"the kernel died, perhaps out of memory: {failure}"
    finally:
        end_kernels()
    status = "failed" if error else "done"
    record = stamps.Record(status, step.stamp, error, stamps.outputs_since(run, before))
    stamps.publish(temporary, record, to=run.path(step.notebook.name))
    if error:
        log.error("%s: failed: %s", name, error)
    else:
        log.info("%s: done", name)
    return not error


@contextmanager
def only_one(run: RunFolder) -> Iterator[None]:
    """Hold the run's lock, which the system frees when the process ends, however it ends."""
    with run.path(".lock").open("a+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            file.seek(0)
            holder = file.read().strip() or "another process"
            raise BlockingIOError(f"{holder} is making the report in {run.root}") from error
        file.truncate(0)
        now = datetime.now().astimezone()
        file.write(f"process {os.getpid()} on {platform.node()}, since {now:%Y-%m-%d %H:%M:%S %Z},")
        file.flush()
        yield


def publish_run(run: RunFolder, facts: Mapping[str, Any]) -> bool:
    """Execute the front page, build the site, and write the manifest and the index of all runs.

    ``facts`` are :func:`edgeopt.reports.records.manifest.provenance`. Nothing is done where the
    site was built from the same facts by the same code and no file differs from the manifest.
    Returns whether the front page ended well.
    """
    front = _front_page("index", run=run.name, facts=facts)
    record = stamps.read_record(run.path(front.notebook.name))
    expected = stamps.last_written([record])
    current = stamps.is_current(run, record, stamp=front.stamp, expected=expected)
    if current and run.path(MANIFEST).is_file() and verify(run).empty:
        log.info("report: up to date: %s", run.path(stamps.INDEX))
        return True
    write_manifest(run, facts)
    succeeded = execute(run, front)
    names = ["index", *facts["notebooks"]]
    with ThreadPoolExecutor() as pool:
        runs = pool.submit(build_runs_index, run.root.parent)
        log.info("report: %s", build_run_site(run, names, title=f"edgeopt: run {run.name}"))
        write_manifest(run, facts)
        runs.result()
    return succeeded


def _front_page(name: str, *, facts: Mapping[str, Any], **parameters: str) -> Step:
    """Make a step of a notebook outside of the order, stamped with all that its site shows."""
    path = project_root() / "notebooks" / f"{name}.ipynb"
    code = {"notebook": file_sha256(path), "pages": stamps.package_digest(pages=True)}
    return Step(path, parameters, stamp=stamps.digest({**code, "facts": facts}))


def make_report(config: ExperimentConfig, *, write_back: bool = False) -> bool:
    """Bring a run's folder up to date; returns whether every notebook ended well.

    With ``write_back`` the outputs are put into the project's own notebooks too, when all did.

    Raises
    ------
    FileNotFoundError
        Naming a notebook that is not there and those that are.
    BlockingIOError
        When another process is making this report.
    ConfigError
        And what else :func:`edgeopt.study.check_run` raises, before the first notebook begins.
    """
    notebooks, run = find_notebooks(config.notebooks), open_run(config.run)
    check_parameters(config)
    parameters = config.model_dump(mode="json")
    with only_one(run):
        check = partial(check_run, config)
        succeeded = execute_notebooks(run, notebooks, parameters=parameters, check=check)
        states = {path.stem: stamps.notebook_state(run.path(path.name)) for path in notebooks}
        facts = provenance(run, parameters=parameters, notebooks=states, root=project_root())
        succeeded = publish_run(run, facts) and succeeded
        for path in notebooks if succeeded and write_back else ():
            _write_back(run.path(path.name), to=path)
    return succeeded


def make_bundle(run: RunFolder) -> Path:
    """Write ``bundle.pyz`` of a finished run, and put it into its manifest."""
    with only_one(run):
        facts = {name: own for name, own in read_manifest(run).items() if name != "artifacts"}
        path = write_run_bundle(run)
        write_manifest(run, facts)
    return path


def take_in(run: RunFolder, path: Path) -> bool:
    """Take in what a run's bundle measured, and execute the chapter on devices again."""
    config = config_of(run)
    with only_one(run):
        log.info("results of %s", take_results(run, path))
        run.path(f"{DEVICES_NOTEBOOK}.ipynb").unlink(missing_ok=True)
    return make_report(config)


def make_comparison(first: RunFolder, second: RunFolder) -> bool:
    """Execute the notebook that compares two runs, as a site beside them."""
    folder = open_run(f"compare-{first.name}-{second.name}", root=first.root.parent)
    succeeded = execute(
        folder, _front_page("compare", run_a=first.name, run_b=second.name, facts={})
    )
    title = f"edgeopt: {second.name} against {first.name}"
    log.info("comparison: %s", build_run_site(folder, ["compare"], title=title))
    build_runs_index(first.root.parent)
    return succeeded


def _write_back(executed: Path, *, to: Path) -> None:
    """Put the outputs of an executed notebook into the one that it was made from."""
    notebook = nbformat.read(to, 4)
    pairs = zip(_code_cells(notebook), _code_cells(nbformat.read(executed, 4)), strict=True)
    for number, (cell, result) in enumerate(pairs, start=1):
        cell.outputs, cell.execution_count = result.outputs, number
        for output in cell.outputs:
            if output.output_type == "execute_result":
                output.execution_count = number
    write_atomically(to, nbformat.writes(notebook).encode())


def _code_cells(notebook: nbformat.NotebookNode) -> list[nbformat.NotebookNode]:
    """Code cells but for the one that papermill puts in."""
    cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    return [c for c in cells if "injected-parameters" not in c.metadata.get("tags", [])]
