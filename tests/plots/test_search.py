"""Figures of the search: lines, bars and points are those of the tables."""

import numpy as np
import pandas as pd
import pytest

from edgeopt import plots
from edgeopt.plots import readings, search
from edgeopt.schema import TIMES
from edgeopt.search import LatencyMap


def steps() -> LatencyMap:
    rows = [(a, b, float(a + b / 8)) for a in (4, 8) for b in (8, 16, 32)]
    table = pd.DataFrame(rows, columns=["conv1", "conv2", "latency_p10_ms"])
    ratio = table["latency_p10_ms"] / table["latency_p10_ms"].iloc[-1]
    table = table.assign(network=[f"{a}x{b}" for a, b, _ in rows], latency_ratio=ratio)
    ends = {f"latency_ratio_{end}": ratio * by for end, by in (("low", 0.9), ("high", 1.1))}
    return LatencyMap(table.assign(**ends), ("conv1", "conv2"))


def test_latency_steps_have_a_line_per_width_of_the_other_group() -> None:
    ax = plots.latency_map(steps(), precision="fp32")
    assert [line.get_ydata().tolist() for line in ax.lines] == [[5, 9], [6, 10], [8, 12]]
    assert {text.get_text() for text in ax.texts} == {"8", "16", "32"}
    assert ax.get_xlabel() == "Channels of conv1"


def test_latency_steps_of_one_group_are_one_line() -> None:
    own = steps()
    table = own.table[own.table["conv2"] == 32]
    ax = search.latency_steps(table, ["conv1"], precision="int8")
    assert len(ax.lines) == 1


def test_the_reading_names_the_fastest_and_what_is_slower_than_the_whole() -> None:
    own = steps()
    text = readings.latency_map(own, model="small_cnn")
    assert f"4 {TIMES} 8 takes 42% of the unpruned network's (8 {TIMES} 32)" in text
    assert "smaller" not in text
    table = own.table.copy()
    table.loc[1, ["latency_ratio", "latency_ratio_low"]] = [1.3, 1.2]
    text = readings.latency_steps(table, own.groups, model="small_cnn")
    assert f"4 {TIMES} 16, which is smaller, 130%" in text


def test_layer_sums_show_the_networks_that_were_checked() -> None:
    checked = pd.DataFrame(
        {
            "latency_p10_ms": [1.0, 2.0, 4.0],
            "predicted_ms": [1.0, 2.2, 3.0],
            "fitted": [True, False, False],
            "relative_error": [0.0, 0.1, -0.25],
        }
    )
    ax = search.layer_sums(checked)
    drawn = np.concatenate([points.get_offsets() for points in ax.collections])
    assert sorted(map(tuple, drawn.tolist())) == [(1, 1), (2, 2.2), (4, 3)]
    assert "off by 17.5% (median of 2 whole networks), at most 25%" in readings.layer_sums(
        checked, model="net"
    )


def test_the_searched_frontier_names_every_candidate() -> None:
    sweep = pd.DataFrame(
        {
            "candidate": ["a", "b"],
            "precision": "fp32",
            "runtime": "onnxruntime",
            "accuracy": [0.9, 0.8],
            "accuracy_low": [0.88, 0.78],
            "accuracy_high": [0.92, 0.82],
            "latency_p50_ms": [2.0, 1.0],
            "latency_p50_low_ms": [1.9, 0.9],
            "latency_p50_high_ms": [2.1, 1.1],
        }
    )
    ax = plots.searched_frontier(sweep, searched=["b"], labels={"a": "0%", "b": "8x32"})
    assert {text.get_text() for text in ax.texts} == {"0%", "8x32"}
    text = readings.searched_frontier(sweep, searched=["b"], gain=0.25)
    assert "1 networks" not in text
    assert "enlarge the hypervolume by 25.0%" in text
    assert "1 ms at 80.0%" in text
    with pytest.raises(ValueError, match="needs the column"):
        plots.searched_frontier(sweep.drop(columns="runtime"), searched=[], labels={})
