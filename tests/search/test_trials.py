"""Trials: the same ones again, those that meet the constraint, and the fronts that go on."""

import math

import numpy as np
import optuna
import pandas as pd
import pytest

from edgeopt.config import SearchSpec
from edgeopt.decision.frontier import REFERENCE, hypervolume
from edgeopt.search.trials import Space, explore, promoted, record


class Table:
    """Latency of 1 a channel of ``a`` and 2 a channel of ``b``; one network cannot be timed."""

    def __init__(self, factor: float = 1.0) -> None:
        self.choices = {"a": [1, 2, 4], "b": [1, 3]}
        self.factor = factor

    def ms(self, widths) -> float:
        if (widths["a"], widths["b"]) == (2, 3):
            return math.nan
        return self.factor * (widths["a"] + 2 * widths["b"])


SCORES = {"a": np.array([4.0, 3.0, 2.0, 1.0]), "b": np.array([5.0, 3.0, 2.0])}


@pytest.fixture
def space() -> Space:
    return Space({(): Table()}, SCORES, lambda widths: {"net": 2**20 * widths["a"] * widths["b"]})


def test_every_network_of_a_small_space_is_found_with_its_numbers(space) -> None:
    table = explore(space, SearchSpec(trials=100)).set_index("network")
    assert {*table.index} == {"1x1", "1x3", "2x1", "4x1", "4x3"}
    row = table.loc["4x1"]
    assert row["kept"] == pytest.approx(math.sqrt(1 * 5 / 10))  # the groups weigh the same
    assert (row["map_ms"], row["weights_mb"]) == (6, 16)


def test_the_same_latencies_give_the_same_trials(space) -> None:
    spec = SearchSpec(trials=20, seed=3)
    pd.testing.assert_frame_equal(explore(space, spec), explore(space, spec))


def test_layers_in_float_are_a_choice_where_they_were_timed() -> None:
    both = {(): Table(), ("conv1", "conv2"): Table(0.5)}
    own = Space(both, SCORES, lambda widths: {"net": 1})
    table = explore(own, SearchSpec(trials=200, precision="int8"))
    assert {*table["float_layers"]} == {"", "conv1+conv2"}
    pair = table[table["network"] == "4x3"].set_index("float_layers")["map_ms"]
    assert pair["conv1+conv2"] == pair[""] / 2


def test_weights_of_layers_in_float_take_four_bytes_each(space) -> None:
    own = Space({(): Table()}, SCORES, lambda widths: {"conv1": 2**20, "conv2": 2**21})
    sizes = [own.weights_mb({"float_layers": layers}, "int8") for layers in ("", "conv1")]
    assert sizes == [3, 4 + 2]


def test_a_map_that_knows_no_latency_is_named() -> None:
    own = Space({(): Table(math.nan)}, SCORES, lambda widths: {"net": 1})
    with pytest.raises(ValueError, match="the latency of none of 30 trials is known"):
        explore(own, SearchSpec(trials=30))


def test_only_networks_within_the_constraint_are_left(space) -> None:
    spec = SearchSpec(trials=100, max_weights_mb=12)
    assert {*explore(space, spec)["network"]} == {"1x1", "1x3", "2x1"}
    with pytest.raises(ValueError, match=r"meets max_weights_mb 0.5; the smallest holds 4 MiB"):
        explore(space, SearchSpec(trials=50, max_weights_mb=0.5))


def trials(**columns) -> pd.DataFrame:
    return pd.DataFrame(columns)


def test_a_group_counts_by_the_square_root_of_its_importance() -> None:
    scores = {"a": np.array([4.5, 4.5]), "b": np.array([0.75, 0.25]), "dead": np.zeros(2)}
    own = Space({(): Table()}, scores, lambda widths: {"net": 1})
    assert own.kept({"a": 1, "b": 1, "dead": 1}) == pytest.approx(0.5 ** (3 / 4) * 0.75 ** (1 / 4))
    assert own.kept({"a": 2, "b": 2, "dead": 1}) == 1


@pytest.mark.parametrize(
    "scores",
    [{"a": np.zeros(4), "b": np.zeros(3)}, {"a": np.ones(4), "b": np.full(3, np.nan)}],
)
def test_importance_that_is_no_number_or_0_of_all_channels_is_refused(scores) -> None:
    with pytest.raises(
        ValueError, match=r"importance of the channels is \{'a': .*; allowed: finite"
    ):
        Space({(): Table()}, scores, lambda widths: {"net": 1})


def test_whole_fronts_go_on_and_then_what_enlarges_the_hypervolume() -> None:
    table = trials(map_ms=[1, 2, 3, 4, 5], kept=[0.1, 0.3, 0.2, 0.25, 0.6])
    assert [*promoted(table, 3, score="kept").index] == [0, 1, 4]
    # 2 and 3 are the second front; up to 5.5 ms they add 2.5 * 0.2 and 1.5 * 0.25.
    assert [*promoted(table, 4, score="kept").index] == [0, 1, 2, 4]
    # 1 holds the largest area; beside it 0 adds 1 * 0.1, and 4 adds 0.5 * 0.3.
    assert [*promoted(table, 2, score="kept").index] == [1, 4]
    assert [*promoted(table, 9, score="kept").index] == [0, 1, 2, 3, 4]


def test_the_networks_of_a_front_are_those_that_enlarge_its_hypervolume_most() -> None:
    rng = np.random.default_rng(3)
    front = trials(map_ms=np.sort(rng.uniform(1, 9, 12)), accuracy=np.sort(rng.uniform(0, 1, 12)))
    worst = (REFERENCE * front["map_ms"].max(), 0.0)
    chosen: list[int] = []
    for count in range(1, 12):
        rest = front.index.difference(chosen)
        areas = {
            row: hypervolume(front.loc[[*chosen, row]], x_col="map_ms", reference=worst)
            for row in rest
        }
        chosen.append(max(areas, key=areas.get))
        assert [*promoted(front, count, score="accuracy").index] == sorted(chosen)


def test_trials_lie_in_an_optuna_study_that_is_replaced(space, tmp_path) -> None:
    table, path = explore(space, SearchSpec(trials=50)), tmp_path / "search.db"
    for _ in range(2):
        record(table, path, name="importance", space=space, score="kept")
    study = optuna.load_study(study_name="importance", storage=f"sqlite:///{path}")
    assert len(study.trials) == len(table)
    best = {tuple(t.values) for t in study.best_trials}
    assert (1.0, 10.0) in best  # the whole network keeps all
    assert study.user_attrs["objectives"] == ["kept", "map_ms"]
