"""The stages of a search: which networks are trained to the end."""

import pandas as pd

from edgeopt.config import ExperimentConfig
from edgeopt.search.stages import _nearest_half, finalists
from edgeopt.study import open_study


def test_finalists_are_none_of_the_networks_that_the_run_has_anyway(
    pictures, tmp_path, monkeypatch
):
    monkeypatch.setenv("EDGEOPT_REPORTS", str(tmp_path / "reports"))
    given = {"dataset": f"folder:{pictures}", "data_dir": str(tmp_path / "data"), "search": {}}
    subsets = {f"{role}_subset": None for role in ("train", "val", "test")}
    study = open_study(ExperimentConfig(**given, **subsets, pruning_levels=[0.0, 0.5]))
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


def test_half_of_a_width_is_not_the_middle_of_its_choices():
    assert _nearest_half([4, 8, 9, 10, 11, 12, 16]) == 8
    assert _nearest_half([3, 5]) == 3
