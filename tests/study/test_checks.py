"""What is known before anything is trained: one error each, and what a run would make."""

import os
import re

import pytest

from edgeopt.config import NOTEBOOKS, ConfigError, ExperimentConfig
from edgeopt.study.checks import check_parameters, check_run
from edgeopt.study.folder import open_run
from edgeopt.study.layout import NEEDS
from edgeopt.system import SchedulerError
from edgeopt.system.parallel import cluster


@pytest.fixture(autouse=True)
def reports(tmp_path, monkeypatch):
    monkeypatch.setenv("EDGEOPT_REPORTS", str(tmp_path / "reports"))


def test_a_sound_run_is_told_in_one_line(tmp_path) -> None:
    config = ExperimentConfig(
        data_dir=str(tmp_path / "data"), runtimes=["torch"], precisions=["fp32", "int8"]
    )
    text = check_run(config)
    known = "7 notebooks, 1 network(s), 1 seed(s), 6 candidates, measured on host; estimated: "
    assert text.startswith(known)
    assert re.search(r"hours|minutes of training, .* of timing, .* of memory, .* of disk", text)
    assert not (tmp_path / "data").exists()


def test_a_notebook_without_its_input_is_named(tmp_path) -> None:
    config = ExperimentConfig(data_dir=str(tmp_path), notebooks=["02_pruning", "04_sweep"])
    with pytest.raises(ConfigError, match="02_pruning, which reads what 01_baseline_training"):
        check_parameters(config)
    open_run(config.run).path("01_baseline_training.ipynb").touch()
    assert check_parameters(config) == 33


def test_a_grid_without_a_candidate_is_refused(tmp_path) -> None:
    own = {"data_dir": str(tmp_path), "runtimes": ["executorch"], "precisions": ["fp32", "bf16"]}
    assert check_parameters(ExperimentConfig(**own)) == 3


@pytest.mark.skipif(os.geteuid() == 0, reason="root can write everywhere")
def test_a_data_folder_that_cannot_be_written_is_named(tmp_path) -> None:
    tmp_path.chmod(0o500)
    with pytest.raises(ConfigError, match=f"{tmp_path} cannot be written"):
        check_parameters(ExperimentConfig(data_dir=str(tmp_path / "data")))


@pytest.mark.parametrize(
    ("channels", "told"),
    [
        ({"conv1": [8]}, r"widths are given for \['conv1'\]; allowed: conv1, conv2"),
        ({"conv1": [8], "conv2": [32]}, "unpruned network's 16 among them"),
    ],
)
def test_widths_that_a_search_cannot_choose_are_told_before_anything_is_trained(
    tmp_path, channels, told
) -> None:
    own = {"data_dir": str(tmp_path), "search": {"channels": channels}}
    with pytest.raises(ConfigError, match=f"small_cnn cannot be searched: .*{told}"):
        check_run(ExperimentConfig(**own))


def test_fewer_weights_than_the_smallest_network_has_are_told_at_once(tmp_path) -> None:
    search = {"channels": {"conv1": [4, 16], "conv2": [8, 32]}, "max_weights_mb": 0.01}
    config = ExperimentConfig(data_dir=str(tmp_path), search=search)
    # 4 x 9 weights, 8 x 4 x 9, and 10 x 8 x 49 of the classifier, four bytes each
    least = (36 + 288 + 3920) * 4 / 2**20
    with pytest.raises(ConfigError, match=f"max_weights_mb is 0.01; allowed: {least:.3g} or more"):
        check_run(config)


def test_a_network_that_cannot_be_pruned_is_named(tmp_path) -> None:
    own = {"data_dir": str(tmp_path), "models": ["tests.networks:Loose"], "channels": 1}
    told = (
        r"tests.networks:Loose cannot be pruned to level 0.7: .* scale; .* pruning_levels: \[0.0\]"
    )
    with pytest.raises(ConfigError, match=told):
        check_run(ExperimentConfig(**own))
    assert "1 network(s)" in check_run(ExperimentConfig(**own, pruning_levels=[0.0]))


def test_a_scheduler_that_does_not_answer_is_named(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(cluster, "SECONDS", 1)
    config = ExperimentConfig(data_dir=str(tmp_path), scheduler="tcp://127.0.0.1:9")
    with pytest.raises(SchedulerError, match=r"scheduler tcp://127.0.0.1:9 cannot be used"):
        check_run(config)


def test_a_data_folder_that_is_a_file_is_named(tmp_path) -> None:
    (tmp_path / "data").touch()
    with pytest.raises(ConfigError, match="data cannot be written"):
        check_parameters(ExperimentConfig(data_dir=str(tmp_path / "data")))


def test_what_is_needed_is_made_by_notebooks_that_come_before() -> None:
    for notebook, needed in NEEDS.items():
        assert all(other < notebook for other in needed)
        assert {*needed} <= {*NOTEBOOKS}
