"""The stages of a search: which networks are trained to the end."""

import pandas as pd
import pytest

from edgeopt.config import ExperimentConfig
from edgeopt.search import LatencyMap, maps
from edgeopt.search.bits import FloatLayers
from edgeopt.search.maps import _nearest_half
from edgeopt.search.stages import finalists
from edgeopt.study import open_study


@pytest.fixture
def study(pictures, tmp_path, monkeypatch):
    monkeypatch.setenv("EDGEOPT_REPORTS", str(tmp_path / "reports"))
    given = {"dataset": f"folder:{pictures}", "data_dir": str(tmp_path / "data"), "search": {}}
    subsets = {f"{role}_subset": None for role in ("train", "val", "test")}
    return open_study(ExperimentConfig(**given, **subsets, pruning_levels=[0.0, 0.5]))


def test_finalists_are_none_of_the_networks_that_the_run_has_anyway(study):
    tried = pd.DataFrame(
        [
            ("16x32", "", 4.0, 0.9),  # unpruned
            ("8x16", "", 2.0, 0.8),  # half of every layer
            ("8x16", "conv1", 1.8, 0.8),  # no pruning level leaves a layer in float
            ("8x32", "", 3.0, 0.9),
        ],
        columns=["network", "float_layers", "map_ms", "accuracy"],
    )
    assert [*finalists(study, tried).index] == [2, 3]


def known(latencies: dict[str, float]) -> LatencyMap:
    rows = [(*map(int, name.split("x")), name, ms, "") for name, ms in latencies.items()]
    columns = ["conv1", "conv2", "network", "latency_p10_ms", "error"]
    return LatencyMap(pd.DataFrame(rows, columns=columns), ("conv1", "conv2"))


def test_layers_in_float_are_found_once_and_their_map_is_brought_to_the_other_s_clock(
    study, monkeypatch
):
    asked = []

    def faster_in_float(models, *_, **__):
        asked.append([model.conv1.out_channels for model in models])
        return FloatLayers(("conv1",), 0.8)

    later = known({"8x16": 3.0, "16x32": 4.0})  # when the machine was slower
    monkeypatch.setattr(maps, "faster_in_float", faster_in_float)
    monkeypatch.setattr(maps, "map_networks", lambda *_, **__: later)
    plain = known({"8x16": 1.5, "16x32": 2.0})
    for _ in range(2):
        how = {"runtime": "onnxruntime", "precision": "int8"}
        found = maps.map_in_float(study, "small_cnn", plain, **how)
    assert asked == [[16, 8]]
    [(names, scaled)] = found.items()
    assert names == ("conv1",)
    assert scaled.ms({"conv1": 16, "conv2": 32}) == pytest.approx(0.8 * 2.0)
    assert scaled.ms({"conv1": 8, "conv2": 16}) == pytest.approx(0.8 * 2.0 * 3 / 4)


def test_a_map_with_a_gap_that_a_worker_s_death_left_is_not_kept(study, monkeypatch):
    gap = known({"16x32": 2.0})
    gap.table["error"] = "WorkerDied: its exporter ended the process"
    made = iter([gap, known({"16x32": 1.0})])
    monkeypatch.setattr(maps, "latency_map", lambda *_, **__: next(made))
    for ms in (2.0, 1.0, 1.0):
        found = maps.map_networks(study, "small_cnn", runtime="onnxruntime", precision="fp32")
        assert found.ms({"conv1": 16, "conv2": 32}) == ms


def test_finer_widths_are_those_that_parts_of_groups_leave(study, monkeypatch):
    grids = []

    def latency_map(*_, grid, **__):
        grids.append(grid)
        return known({"16x32": 1.0})

    monkeypatch.setattr(maps, "latency_map", latency_map)
    monkeypatch.setattr(maps, "width_steps", lambda *_, **__: {"conv1": 2, "conv2": 4})
    maps.map_networks(study, "small_cnn", runtime="onnxruntime", precision="fp32")
    assert grids == [4]


def test_half_of_a_width_is_not_the_middle_of_its_choices():
    assert _nearest_half([4, 8, 9, 10, 11, 12, 16]) == 8
    assert _nearest_half([3, 5]) == 3
