import hashlib
import math

import pandas as pd
import pytest

from edgeopt.decision.gates import Constraints, Gates
from edgeopt.reports.records.results import (
    Results,
    finished,
    images_as_seen,
    provenance_table,
    read_summary,
    read_sweep,
    sweep_problems,
)
from edgeopt.study.folder import open_run
from tests.browser.synthetic import synthetic_sweep
from tests.reports.made_up import FACTS, results_of


def test_roles_have_what_was_measured_after_the_choice(tmp_path):
    sweep = synthetic_sweep().assign(test_accuracy=0.8123)
    results = results_of(tmp_path, sweep)
    assert {row["test_accuracy"] for row in results.rows.values()} == {0.8123}
    # made up: ExecuTorch is the fastest in fp32, PyTorch the baseline
    assert results.rows["fastest_uncompressed"]["candidate"] == "small_cnn-p0-executorch-fp32"


def test_what_is_wrong_is_said_first(tmp_path):
    failed = {"notebooks": {"02_pruning": {"status": "failed", "error": "ValueError: no"}}}
    results = results_of(tmp_path, facts=failed, busy="The machine was busy.")
    assert results.problems == [
        "Notebook 02_pruning failed: ValueError: no. What comes after it was not run.",
        "The machine was busy.",
    ]
    warned = FACTS["data"] | {"test_warning": "images may have been seen"}
    assert results_of(tmp_path, facts={"data": warned}).problems == ["images may have been seen"]
    nothing = Results(open_run("none", root=tmp_path), FACTS, None, None, ("No decision: x",))
    assert nothing.problems == ["No decision: x"]
    assert (nothing.rows, nothing.artifact, nothing.what_would_change()) == ({}, "", [])
    assert nothing.funnel().empty


@pytest.mark.parametrize(
    ("sweep", "words"),
    [
        (synthetic_sweep().assign(status="failed"), "All 44 candidates failed"),
        (synthetic_sweep().assign(accepted=False), "None of the 44 candidates fits"),
        (synthetic_sweep().head(1).assign(accepted=True), "only one candidate"),
        (synthetic_sweep().assign(latency_kind="estimated"), "All latencies are estimates"),
    ],
)
def test_a_sweep_with_a_problem_says_which(sweep, words):
    assert words in " ".join(sweep_problems(sweep))
    assert sweep_problems(synthetic_sweep()) == []


def test_estimates_are_told_beside_what_else_is_wrong():
    sweep = synthetic_sweep().assign(accepted=False, latency_kind="estimated")
    assert len(sweep_problems(sweep)) == 2


def test_the_file_to_ship_is_the_very_one_that_was_measured(tmp_path):
    results = results_of(tmp_path)
    for folder, content in (("quantization", b"other"), ("sweep", b"measured")):
        results.run.write_bytes(f"artifacts/{folder}/seed0/net.pte", content)
    sha = hashlib.sha256(b"measured").hexdigest()
    results.rows["pick"] |= {"artifact": "seed0/net.pte", "artifact_sha256": sha}
    assert results.artifact == "artifacts/sweep/seed0/net.pte"
    results.rows["pick"]["artifact_sha256"] = "0" * 64
    assert results.artifact == ""


def test_the_funnel_counts_every_candidate_once(tmp_path):
    funnel = results_of(tmp_path).funnel().set_index("standing")["candidates"]
    assert funnel["pick"] == funnel["runner-up"] == 1
    assert funnel.sum() == 44
    sweep = synthetic_sweep()
    assert funnel["over budget"] == (sweep["memory_mb"] > 0.05).sum()
    assert funnel["failed"] == 1


def test_what_would_change_it_names_the_faster_that_were_refused(tmp_path):
    sweep = synthetic_sweep()
    fast = sweep["candidate"] == "small_cnn-p70-torch-int8"
    sweep.loc[fast, ["latency_p50_ms", "accuracy"]] = 0.001, 0.5
    results = results_of(tmp_path, sweep)
    lines = results.what_would_change()
    assert lines[0] == results.decision["what_it_would_take"]
    ratio = results.rows["pick"]["latency_p50_ms"] / 0.001
    assert lines[-1].startswith(f"small_cnn-p70-torch-int8 is {ratio:.2f} times as fast and was")
    assert "accuracy drop" in lines[-1]


def test_rules_are_those_of_the_run(tmp_path):
    given = {**vars(Gates()), **vars(Constraints(max_latency_p95_ms=0.5))}
    given["active_memory_budget_mb"] = 0.05
    rules = results_of(tmp_path, facts={"parameters": given}).rules()
    told = dict(rules.itertuples(index=False))
    assert told["weights"] == "refused above 51.2 KiB"
    assert told["accuracy drop"] == "good up to 2.00 points, refused above 5.00 points"
    assert told["latency, 95th percentile"] == "refused above 0.5 ms"


@pytest.mark.parametrize("content", ["", "candidate,accuracy\n", 'a,b\n1,2,3\n"'])
def test_a_broken_sweep_is_said(tmp_path, content):
    run = open_run("broken", root=tmp_path)
    run.write_bytes("sweep_results.csv", content.encode())
    sweep, reason = read_sweep(run)
    assert sweep is None
    assert reason.startswith("No candidates: sweep_results.csv")


@pytest.mark.parametrize("content", ["{", '{"pick": 3}'])
def test_a_broken_summary_is_said(tmp_path, content):
    run = open_run("broken", root=tmp_path)
    run.write_bytes("summary.json", content.encode())
    summary, reason = read_summary(run)
    assert summary is None
    assert reason.startswith("No decision: summary.json cannot be read: ")


def test_provenance_names_data_code_and_machine(tmp_path):
    dirty = {"git": {"commit": "c0ffee", "dirty": True}}
    table = provenance_table(results_of(tmp_path, facts=dirty)).set_index("fact")["of this run"]
    assert table["commit"] == "c0ffee, with uncommitted changes"
    assert table["data"] == f"invented: test 5,000; SHA-256 {'0' * 64}"
    assert table["CPU"] == "Z80; 1 of 2 cores used"


def test_a_run_ended_when_its_last_notebook_did():
    states = {"a": {"finished": "2026-01-02T03:04:05.6"}, "b": {"finished": "2026-01-02T03:09:00"}}
    assert finished(states | {"c": {}}) == "2026-01-02 03:09 UTC"
    assert finished({"c": {}}) == ""


def test_images_as_seen_says_how_the_pick_takes_its_images():
    how = {"image_size": 96, "resize": "crop", "interpolation": "bicubic", "channels": 3}
    data = {"preprocessing": {"net": {**how, "mean": [0.5, 0.4, 0.3], "std": 0.25}}}
    assert images_as_seen("net", data) == (
        "96x96 by crop, bicubic, colour, values from 0 to 1, mean 0.5, 0.4, 0.3, std 0.25"
    )
    own = {**how, "image_size": None, "channels": 1, "mean": None, "std": None}
    assert images_as_seen("net", {"preprocessing": {"net": own}}) == (
        "their own size, grey, values from 0 to 1"
    )
    assert images_as_seen("other", data) == images_as_seen(None, {}) == ""


def test_operators_are_those_that_chapter_5_wrote(tmp_path):
    results = results_of(tmp_path)
    assert results.operators().empty
    results.run.write_table("pick_operators.csv", pd.DataFrame({"operator": ["Conv"], "share": 1}))
    assert results.operators()["operator"].tolist() == ["Conv"]
    assert math.isclose(results.operators()["share"].sum(), 1)
