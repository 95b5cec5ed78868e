from pathlib import Path

import pytest

from edgeopt.config import ConfigError, ExperimentConfig, load_config


def test_from_namespace_takes_what_is_a_parameter_and_leaves_the_rest():
    config = ExperimentConfig.from_namespace({"epochs": 7, "np": object(), "seeds": [4, 2]})
    assert config.epochs == 7
    assert config.seeds == (4, 2)
    assert config.batch_size == ExperimentConfig().batch_size


def test_overrides_replace_the_file(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text("epochs: 4\nbatch_size: 32\n")
    config = load_config(path, epochs=9)
    assert (config.run, config.epochs, config.batch_size) == ("mine", 9, 32)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"epoch": 3}, r"unknown parameter 'epoch'; allowed: epochs, .*run"),
        ({"epochs": "3"}, r"parameter epochs is '3': .*valid integer"),
        ({"epochs": True}, r"parameter epochs is True: .*valid integer"),
        ({"epochs": -1}, r"parameter epochs is -1: .*greater than or equal to 0"),
        ({"search": {"trial": 3}}, r"unknown parameter 'search.trial'; allowed: runtime, .*trials"),
        ({"search": {"trials": 0}}, r"parameter search.trials is 0: .*greater than or equal to 1"),
        ({"search": {"precision": "int4"}}, "parameter search.precision is 'int4'"),
        ({"search": {"channels": {"conv1": [0]}}}, "parameter search.channels.conv1.0 is 0"),
        ({"search": {"model": "resnet18"}}, "unknown model of the search 'resnet18'"),
        ({"search": {"runtime": "litert"}}, "unknown runtime of the search 'litert'"),
        ({"notebooks": ["08_search"]}, "notebooks hold 08_search, and search is null"),
        ({"models": []}, r"parameter models is \[\]|at least 1"),
        ({"models": ["small_cnn", "small_cnn"]}, "repeats a value"),
        ({"mean": "cifar"}, "parameter mean is 'cifar': allowed: null, one number"),
        ({"std": [0.2, "x"]}, "parameter std is .*allowed: null, one number"),
        ({"std": []}, r"parameter std is \[\]: allowed: null, one number"),
        ({"mean": float("inf")}, "parameter mean is inf: allowed: null, one number"),
        ({"channels": 2}, "parameter channels is 2"),
        ({"resize": "squash"}, "parameter resize is 'squash'"),
        ({"pruning_levels": [0.0, 1.0]}, r"parameter pruning_levels.1 is 1.0: .*less than 1"),
        ({"pruning_levels": []}, r"parameter pruning_levels is \(\): .*at least 1 item"),
        ({"pruning_levels": [0.5]}, r"pruning_levels is \[0.5\]; allowed: a list that holds 0.0"),
        ({"precisions": []}, r"parameter precisions is \(\): .*at least 1 item"),
        ({"precisions": ["int8"]}, r"precisions is \['int8'\]; allowed: a list that holds fp32"),
        ({"seeds": [2**32]}, r"parameter seeds.0 is 4294967296: .*less than"),
        ({"precisions": ["int4"]}, r"parameter precisions.0 is 'int4': .*'fp32', 'fp16'"),
        ({"runtimes": ["tflite"]}, r"unknown runtime 'tflite'; allowed: torch, onnxruntime"),
        ({"threads": 4096}, r"parameter threads is 4096: this machine .* allowed: 1 to \d+"),
        ({"dataset": "cifar"}, r"unknown dataset 'cifar'; allowed: .*mnist, folder:<path>"),
        ({"dataset": "folder:"}, r"unknown dataset 'folder:'"),
        ({"notebooks": ["07_magic"]}, r"parameter notebooks.0 is '07_magic': .*'01_baseline"),
        ({"seeds": [1, 1]}, r"repeats a value"),
        ({"learning_rate": float("nan")}, r"parameter learning_rate is nan"),
        ({"learning_rate": -0.1}, r"parameter learning_rate is -0.1: .*greater than 0"),
        (
            {"accuracy_drop_good": 0.9},
            r"accuracy_drop_good is 0.9; allowed: at most accuracy_",
        ),
        ({"pruning_criteria": ["luck"]}, r"parameter pruning_criteria.0 is 'luck': .*'l1'"),
    ],
)
def test_bad_values_are_named_with_what_is_allowed(values, message):
    with pytest.raises(ConfigError, match=message):
        ExperimentConfig(**values)


def test_every_bad_key_is_named_at_once():
    with pytest.raises(ConfigError, match=r"parameter epochs is -1.*unknown parameter 'oops'"):
        ExperimentConfig(epochs=-1, oops=2)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("epochs: [", "not valid YAML"),
        ("- epochs", "holds a list; allowed: key: value"),
        ("on: 1", "mine.yaml: unknown parameter 'on'"),
        ("run: other", "run is 'other'; allowed: the file's name 'mine'"),
        ("nope: 1", r"mine.yaml: unknown parameter 'nope'"),
    ],
)
def test_bad_files_are_named(tmp_path, text, message):
    path = tmp_path / "mine.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=message):
        load_config(path)


def test_missing_file_names_those_that_are_there(tmp_path):
    (tmp_path / "quick.yaml").write_text("")
    with pytest.raises(FileNotFoundError, match=r"no parameter file .*slow.yaml; there are: quick"):
        load_config(tmp_path / "slow.yaml")


def test_the_data_folder_is_seen_from_the_project_wherever_the_notebook_runs(tmp_path, monkeypatch):
    (tmp_path / "pyproject.toml").touch()
    (tmp_path / "notebooks").mkdir()
    monkeypatch.chdir(tmp_path / "notebooks")
    assert ExperimentConfig(data_dir="data").data_folder == tmp_path / "data"
    assert ExperimentConfig(data_dir="/mnt/images").data_folder == Path("/mnt/images")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"epochs: 3\nepochs: 4\n", "mine.yaml is not valid YAML: .*'epochs' twice"),
        (b"\xff\xfe", "mine.yaml is not valid YAML: .*utf-8"),
        (b"epochs: " + b"[" * 5000, "mine.yaml is not valid YAML: .*nested too deeply"),
        (b"[]", "mine.yaml holds a list; allowed: key: value lines"),
        (b"0", "mine.yaml holds a int; allowed: key: value lines"),
        (b"self: 1", "unknown parameter 'self'"),
        (b"epochs: 12:30:00", "parameter epochs is '12:30:00': .*valid integer"),
    ],
)
def test_a_file_that_says_something_else_is_one_error_with_its_name(content, message, tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_bytes(content)
    with pytest.raises(ConfigError, match=message):
        load_config(path)


def test_a_message_does_not_repeat_a_long_value(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text(f"dataset: {'x' * 100_000}\n")
    with pytest.raises(ConfigError) as error:
        load_config(path)
    assert len(str(error.value)) < 1000
