"""Kernels: forked ready from one server, in surroundings of their own."""

import asyncio
import json
import os
import signal
import sys
from pathlib import Path

import nbformat
from nbclient import NotebookClient

from edgeopt.reports.kernels import ThisPythonKernel, end_kernels

FACTS = """
import os, sys, tempfile
from edgeopt.system import process_pool
import pandas
loaded = "edgeopt.study.study" in sys.modules
wide = pandas.get_option("display.max_columns")
facts = [os.getpid(), os.getppid(), os.getsid(0), os.getcwd(), tempfile.gettempdir(), loaded, wide]
"""
FIGURE = "from matplotlib import pyplot; pyplot.plot([1, 2]);"
WORKERS = "with process_pool(1) as pool: facts.append(pool.submit(os.getppid).result())"
TOLD = "import json; print(json.dumps([*facts, sys.executable, os.environ.get('EDGEOPT_TOLD')]))"


def told(folder: Path) -> list:
    cells = [nbformat.v4.new_code_cell(code) for code in (FACTS, WORKERS, FIGURE, TOLD)]
    notebook = nbformat.v4.new_notebook(cells=cells)
    place = {"metadata": {"path": str(folder)}}
    client = NotebookClient(notebook, kernel_manager_class=ThisPythonKernel, resources=place)
    client.execute()
    assert "image/png" in notebook.cells[-2].outputs[0].data
    return json.loads(notebook.cells[-1].outputs[0].text)


def test_kernels_and_their_workers_are_forked_from_one_server(tmp_path, monkeypatch):
    first = told(tmp_path)
    monkeypatch.setenv("EDGEOPT_TOLD", "later")
    process, server, session, folder, temporary, loaded, wide, *rest = first
    workers_server, python, _ = rest
    assert session == process
    assert workers_server == server not in (process, os.getpid())
    assert folder == str(tmp_path)
    assert Path(temporary).name.startswith("edgeopt-")
    assert loaded
    assert wide == 20  # pandas' own in a notebook; in a terminal it is 0
    assert python == sys.executable

    second = told(tmp_path)
    assert second[0] != process
    assert second[1] == server
    assert second[4] != temporary
    assert second[-1] == "later"


def test_the_kernel_is_this_interpreter_whatever_is_registered(tmp_path, monkeypatch):
    fake = tmp_path / "kernels/python3"
    fake.mkdir(parents=True)
    spec = {"argv": ["/no/such/python"], "display_name": "fake", "language": "python"}
    (fake / "kernel.json").write_text(json.dumps(spec))
    monkeypatch.setenv("JUPYTER_PATH", str(tmp_path))
    manager = ThisPythonKernel(kernel_name="python3")
    assert manager.kernel_spec.argv[0] == sys.executable


def test_a_kernel_that_nobody_manages_is_ended(tmp_path):
    manager = ThisPythonKernel()
    asyncio.run(manager.start_kernel(cwd=str(tmp_path)))
    kernel = manager.provisioner.process
    assert kernel.is_alive()
    end_kernels()
    kernel.join(30)
    assert kernel.exitcode == -signal.SIGKILL
    asyncio.run(manager.cleanup_resources())
