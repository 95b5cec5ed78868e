import numpy as np
import pandas as pd
import pytest

from edgeopt.experiments.comparison import answer_sections, int8_cost


@pytest.fixture
def sweep() -> pd.DataFrame:
    rows = [
        ("a", 0.0, "torch", "fp32", 0.90, 0.88, 400, 2.0),
        ("a", 0.0, "torch", "int8", 0.85, 0.80, 100, 4.0),
        ("a", 0.5, "torch", "fp32", 0.80, 0.78, 200, 1.0),
        ("a", 0.5, "torch", "int8", 0.79, 0.78, 50, 0.5),
        ("a", 0.0, "onnxruntime", "fp32", 0.90, 0.88, 440, 1.0),
        ("a", 0.0, "onnxruntime", "int8-dynamic", 0.91, 0.89, 110, 0.5),
        ("b", 0.0, "onnxruntime", "int8", 0.70, 0.60, 50, 0.1),
        ("b", 0.0, "torch", "fp32", np.nan, np.nan, np.nan, np.nan),
    ]
    names = ["model", "pruning_level", "runtime", "precision", "accuracy", "macro_f1"]
    table = pd.DataFrame(rows, columns=[*names, "artifact_bytes", "latency_p50_ms"])
    level = table["pruning_level"].map("{:g}".format)
    named = table["model"] + level + "-" + table["runtime"] + "-" + table["precision"]
    return table.assign(candidate=named)


def test_int8_cost_sets_int8_beside_fp32_of_its_own_network_level_and_runtime(sweep):
    cost = int8_cost(sweep).set_index("candidate")
    assert list(cost.index) == ["a0-torch-int8", "a0.5-torch-int8", "a0-onnxruntime-int8-dynamic"]
    plain = cost.loc["a0-torch-int8"]
    assert plain["parent"] == "a0-torch-fp32"
    assert plain["accuracy_change"] == pytest.approx(-0.05)
    assert plain["macro_f1_change"] == pytest.approx(-0.08)
    assert (plain["file_ratio"], plain["speedup"]) == (4.0, 0.5)
    pruned = cost.loc["a0.5-torch-int8"]
    assert pruned["accuracy_change"] == pytest.approx(-0.01)
    assert (pruned["file_ratio"], pruned["speedup"]) == (4.0, 2.0)


def test_answer_sections_say_the_numbers_of_their_tables(sweep):
    frontier = sweep[sweep["candidate"] == "a0.5-torch-int8"].assign(memory_mb=0.25)
    held = int8_cost(sweep).iloc[:1]
    paid = pd.DataFrame({"a": [-0.2, 0.05]}, index=["x", "y"])
    decision = {"reason": "R.", "what_it_would_take": "W."}
    first, second, *rest = answer_sections(frontier, held=held, paid=paid, decision=decision)
    assert "a0.5-torch-int8 (79.0%, 0.5 ms, 256 KiB of weights)" in first
    second = second.replace("\N{MINUS SIGN}", "-")
    assert "changes by -5.00 points of accuracy and -8.00 of macro-F1" in second
    assert "4.00 times smaller, at 0.50 times the speed; x pays most, with -20.00 points" in second
    assert rest == ["R.", "Runner-up: W."]


def test_answer_sections_of_an_empty_frontier_say_so(sweep):
    empty = sweep.iloc[:0].assign(memory_mb=[])
    decision = {"reason": "R.", "what_it_would_take": "W."}
    held = int8_cost(sweep.iloc[:0])
    words = answer_sections(empty, held=held, paid=pd.DataFrame(), decision=decision)
    assert words[0].endswith("nothing fits the budget.")
