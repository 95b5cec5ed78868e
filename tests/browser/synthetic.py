"""A run folder with invented numbers: what the pages are tried on where nothing was trained."""

from pathlib import Path

import nbformat
import numpy as np
import pandas as pd
import pytest
from matplotlib import pyplot as plt

from edgeopt.config import ExperimentConfig
from edgeopt.decision.budgets import apply_budgets
from edgeopt.decision.choice import decide
from edgeopt.decision.gates import Gates
from edgeopt.reports import runner
from edgeopt.reports.records.manifest import provenance
from edgeopt.study.folder import RunFolder, open_run
from edgeopt.study.tables import table_html
from tests.artifacts import PRECISIONS_OF_RUNTIME

SPEED = {"torch": 5.0, "onnxruntime": 1.4, "executorch": 1.0, "openvino": 4.2}
COST = {"fp32": 1.0, "fp16": 4.0, "bf16": 0.9, "int8": 0.8, "int8-dynamic": 1.1}
BYTES = {"fp32": 4, "fp16": 2, "bf16": 4, "int8": 1, "int8-dynamic": 1}
LOSS = {"fp32": 0, "fp16": 0, "bf16": 0.001, "int8": 0.003, "int8-dynamic": 0.002}


def synthetic_sweep(levels=(0.0, 0.25, 0.5, 0.7), *, copies=1, seed=0) -> pd.DataFrame:
    """Ten candidates per level and copy; the torch fp16 ones of the highest level fail."""
    rng = np.random.default_rng(seed)
    rows = []
    for copy in range(copies):
        for level in levels:
            for runtime, precisions in PRECISIONS_OF_RUNTIME.items():
                rows += [_row(level, runtime, name, copy=copy, rng=rng) for name in precisions]
    sweep = pd.DataFrame(rows)
    return apply_budgets(sweep, memory_budgets_mb=[0.02, 0.05], active_memory_budget_mb=0.05)


def _row(level, runtime, precision, *, copy, rng):
    name = f"small_cnn-p{100 * level:g}-{runtime}-{precision}" + (f"-{copy}" if copy else "")
    row = {
        "candidate": name,
        "pruning_level": level,
        "recipe": "fine-tuned" if level else "baseline",
        "precision": precision,
        "runtime": runtime,
        "status": "ok",
        "error": "",
    }
    if runtime == "torch" and precision == "fp16" and level >= 0.7:
        return row | {"status": "failed", "error": "RuntimeError: no kernel for <Half> & co"}
    accuracy = 0.885 - 0.03 * level**2 - LOSS[precision] + rng.normal(0, 0.001)
    latency = 0.027 * SPEED[runtime] * COST[precision] * (1 - 0.6 * level)
    weights = int(20_490 * (1 - level) * BYTES[precision] * (1 - 0.3 * level))
    return row | {
        "accuracy": accuracy,
        "accuracy_low": accuracy - 0.0115,
        "accuracy_high": accuracy + 0.011,
        "macro_f1": accuracy - 0.002,
        "agreement": 0.99 - LOSS[precision],
        "int8_mac_share": 1.0 if precision.startswith("int8") else 0.0,
        "latency_ms": latency * 1.06,
        "latency_std_ms": latency * 0.04,
        "latency_p50_ms": latency,
        "latency_p50_low_ms": latency * 0.97,
        "latency_p50_high_ms": latency * 1.03,
        "latency_p95_ms": latency * 1.2,
        "throughput_sps": 1000 / latency,
        "memory_mb": weights / 2**20,
        "weight_bytes": weights,
        "artifact_bytes": weights + 3100,
        "peak_activation_bytes": 62_720,
        "peak_rss_bytes": 48_000_000 + 9_000_000 * SPEED[runtime],
        "energy_proxy_j": latency / 1000 * 5,
        "energy_model_j": 4e-6 * BYTES[precision],
        "macs": int(1_030_000 * (1 - level)),
    }


def synthetic_run(folder: Path, name: str = "made-up", *, sweep: pd.DataFrame | None = None):
    """Fill the folder of a run, with two notebooks, one of them failed, and all its pages."""
    run = open_run(name, root=folder)
    sweep = synthetic_sweep() if sweep is None else sweep
    decision = decide(sweep, gates=Gates())
    run.write_table("sweep_results.csv", sweep.merge(decision.standings, "left", "candidate"))
    run.write_table("conditions.csv", pd.DataFrame({"reference_ms": [1.0]}))
    run.write_json("summary.json", decision.to_dict())
    counts = {"train": 12000, "calibration": 640, "validation": 3000, "test": 5000}
    run.write_json("data.json", {"name": "invented", "checksum": "0" * 64, "counts": counts})
    picture = _figure(run, sweep)
    states = {
        "01_baseline_training": _notebook(run, "01_baseline_training", picture, error=""),
        "02_pruning": _notebook(run, "02_pruning", picture, error="ValueError: <b>level</b> is 1"),
        "03_quantization": {"status": "not run", "title": "03 quantization", "error": ""},
    }
    config = ExperimentConfig(run=name, pruning_levels=[0.0, 0.25, 0.5, 0.7])
    parameters = config.model_dump(mode="json")
    facts = provenance(run, parameters=parameters, notebooks=states, root=Path.cwd())
    with pytest.MonkeyPatch.context() as patch:  # the front page is executed elsewhere
        patch.setenv("EDGEOPT_REPORTS", str(folder))
        patch.setattr(runner, "build_runs_index", lambda folder: folder)  # see test_site
        runner.publish_run(run, facts)
    return run


def _figure(run: RunFolder, sweep: pd.DataFrame):
    _, ax = plt.subplots(figsize=(6.4, 3.6), layout="constrained")
    numbers = sweep.groupby("pruning_level", as_index=False)["accuracy"].mean()
    ax.plot(numbers["pruning_level"], numbers["accuracy"], marker="o")
    ax.set(xlabel="Pruning level", ylabel="Validation accuracy")
    alt = "Mean validation accuracy falls from the unpruned model to the most pruned one."
    return run.save_figure("accuracy_by_level", ax, alt=alt, numbers=numbers)


def _notebook(run: RunFolder, name: str, picture, *, error: str):
    """Write an executed notebook as papermill leaves it: text, code, table, figure, traceback."""
    v4 = nbformat.v4
    data, metadata = picture._repr_mimebundle_()
    table = pd.DataFrame(
        {"class": ["<script>alert(1)</script>", "Ankle boot"], "recall": [0.81, 0.97]}
    )
    shown = v4.new_output("execute_result", {"text/html": table_html(table), "text/plain": "table"})
    wide = v4.new_output("stream", name="stdout", text="conv1 " + "0.123456 " * 40 + "\n")
    log = v4.new_output("stream", name="stderr", text="\x1b[31mepoch 1: 100%\x1b[0m\n")
    cells = [
        v4.new_markdown_cell(f"# {name[3:].replace('_', ' ').capitalize()}\n\nHow well, how fast?"),
        v4.new_code_cell("run = 'made-up'", metadata={"tags": ["injected-parameters"]}),
        v4.new_markdown_cell("## The data\n\nSome words, and `code`."),
        v4.new_code_cell(
            "import pandas as pd  # a remark\ntable.head(2)", outputs=[shown, wide, log]
        ),
        v4.new_markdown_cell("## What it looks like\n\n### In one picture"),
        v4.new_code_cell("fig", outputs=[v4.new_output("display_data", data, metadata=metadata)]),
    ]
    if error:
        kind, value = error.split(": ", 1)
        raised = v4.new_output("error", ename=kind, evalue=value, traceback=[f"\x1b[31m{error}"])
        cells.append(v4.new_code_cell("prune(1.0)", outputs=[raised]))
    notebook = v4.new_notebook(cells=cells, metadata={"language_info": {"name": "python"}})
    run.write_bytes(f"{name}.ipynb", nbformat.writes(notebook).encode())
    ended = "2026-01-02T03:04:05"
    status = "failed" if error else "done"
    title = cells[0].source.splitlines()[0].removeprefix("# ")
    return {"status": status, "title": title, "error": error, "finished": ended, "seconds": 12.3}
