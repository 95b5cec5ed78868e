"""Weights files as people have them: plain, in checkpoints, wrapped, damaged, hostile."""

import argparse
import logging
import os
import pickle

import numpy as np
import pytest
import torch
from torch import nn

from edgeopt.model.weights import (
    dump_weights,
    fit_weights,
    load_weights,
    read_weights,
    weights_path,
)


def network(classes: int = 2) -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.Linear(4, classes))


def same(first: dict, second: dict) -> bool:
    return [*first] == [*second] and all(torch.equal(first[name], second[name]) for name in first)


class Masked(nn.Module):
    def __init__(self):
        super().__init__()
        self.register_buffer("mask", torch.tensor([0.0, -torch.inf]))


class RunsCode:
    def __reduce__(self):
        return os.system, ("touch code-was-run",)


@pytest.mark.parametrize(
    "wrap",
    [
        lambda state: state,
        lambda state: {"state_dict": state, "epoch": 3},
        lambda state: {"model_state_dict": state, "loss": 0.1},
        lambda state: {
            "model": state,
            "optimizer": {"state": {}, "param_groups": [{"lr": 0.1}]},
            "args": argparse.Namespace(lr=0.1, model="resnet18"),
            "best": np.float64(0.9),
        },
        lambda state: {f"module.{name}": value for name, value in state.items()},
        lambda state: {"state_dict": {f"module.{name}": v for name, v in state.items()}},
        lambda state: {f"_orig_mod.{name}": value for name, value in state.items()},
    ],
    ids=["plain", "state_dict", "model_state_dict", "model", "module.", "both", "compiled"],
)
def test_read_weights_finds_the_state_dict(tmp_path, wrap):
    state = network().state_dict()
    torch.save(wrap(state), tmp_path / "w.pt")
    assert same(read_weights(tmp_path / "w.pt"), state)


def test_load_weights_reads_what_dump_weights_wrote(tmp_path):
    given, other = network(), network()
    (tmp_path / "w.pt").write_bytes(dump_weights(given))
    assert not same(other.state_dict(), given.state_dict())
    assert same(load_weights(other, tmp_path / "w.pt").state_dict(), given.state_dict())


def save_code(path):
    torch.save({"weights": RunsCode()}, path)


def save_cut(path):
    torch.save(network().state_dict(), path)
    path.write_bytes(path.read_bytes()[:-500])


@pytest.mark.parametrize(
    ("write", "message"),
    [
        (lambda path: path.write_text("epochs: 3\n"), "torch cannot read it"),
        (lambda path: path.write_bytes(b""), "it is empty"),
        (lambda path: path.write_bytes(bytes(1000)), "torch cannot read it"),
        (save_cut, "torch cannot read it"),
        (save_code, r"it holds the Python object \w+\.system"),
        (lambda path: path.write_bytes(pickle.dumps(RunsCode())), "torch cannot read it"),
        (lambda path: torch.save(network(), path), "the Python object torch.nn.*Sequential"),
        (lambda path: torch.save(torch.zeros(2), path), "holds Tensor; allowed: a state dict"),
        (lambda path: torch.save({}, path), "holds dict; allowed: a state dict"),
        (lambda path: torch.save({"epoch": 3}, path), "holds int under 'epoch'"),
    ],
)
def test_read_weights_names_the_file_that_holds_none(tmp_path, monkeypatch, write, message):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "mine.pt"
    write(path)
    with pytest.raises(ValueError, match=rf"mine\.pt .*{message}") as caught:
        read_weights(path)
    assert "weights_only" not in str(caught.value)
    assert caught.value.__suppress_context__ or caught.value.__context__ is None
    assert [found.name for found in tmp_path.iterdir()] == ["mine.pt"]


def test_fit_weights_names_three_keys_of_each_kind():
    own = nn.Sequential(*(nn.Linear(2, 2) for _ in range(4)))
    state = {f"head.{n}": torch.zeros(1) for n in range(2)} | {"3.weight": torch.zeros(5, 2)}
    with pytest.raises(ValueError) as caught:  # noqa: PT011 - all of it is compared below
        fit_weights(own, state, source="mine.pt")
    assert str(caught.value) == (
        "the weights in mine.pt do not fit Sequential: "
        "missing: 0.weight, 0.bias, 1.weight and 4 more; unexpected: head.0, head.1; "
        "wrongly shaped: 3.weight [5, 2] instead of [2, 2]"
    )


@pytest.mark.parametrize("classes", [1, 3])
def test_fit_weights_refuses_another_number_of_classes(classes):
    shapes = rf"2.weight \[{classes}, 4\] instead of \[2, 4\], 2.bias \[{classes}\] instead of"
    with pytest.raises(ValueError, match=shapes):
        fit_weights(network(2), network(classes).state_dict(), source="mine.pt")


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("0.weight", lambda v: v * torch.nan, "not finite: 12 of the 12 values of 0.weight"),
        ("0.bias", lambda v: v / 0.0, "not finite: 4 of the 4 values of 0.bias"),
        ("1.running_var", lambda v: v / 0.0, "not finite: 4 of the 4 values of 1.running_var"),
        ("2.bias", lambda v: v * 1j, "complex64 under 2.bias; allowed: float32"),
        ("2.weight", lambda v: v.to(torch.int8), "int8 under 2.weight; allowed: float32"),
    ],
)
def test_fit_weights_names_the_key_that_holds_no_usable_numbers(name, change, message):
    model = network()
    state = model.state_dict()
    with pytest.raises(ValueError, match=rf"mine\.pt .*{message}"):
        fit_weights(model, {**state, name: change(state[name])}, source="mine.pt")


def test_fit_weights_takes_a_network_with_an_infinite_mask():
    state = {"mask": torch.tensor([1.0, -torch.inf])}
    assert fit_weights(Masked(), state, source="mine.pt").mask.tolist() == [1.0, -torch.inf]
    with pytest.raises(ValueError, match="1 of the 2 values of mask"):
        fit_weights(Masked(), {"mask": torch.tensor([torch.inf, 0.0])}, source="mine.pt")


def test_fit_weights_says_that_half_precision_is_cast(caplog):
    given = network().half()
    with caplog.at_level(logging.WARNING, "edgeopt.model.weights"):
        model = fit_weights(network(), given.state_dict(), source="mine.pt")
    assert {value.dtype for value in model.parameters()} == {torch.float32}
    assert torch.equal(model[0].weight, given[0].weight.float())
    assert caplog.messages == ["the weights in mine.pt are float16; they are read as float32"]


def test_fit_weights_says_nothing_of_weights_as_they_are(caplog):
    given, model = network(), network()
    state = given.state_dict()
    del state["1.num_batches_tracked"]  # checkpoints of before torch 0.4.1 have none
    fit_weights(model, state, source="mine.pt")
    assert same(model.state_dict(), given.state_dict())
    assert caplog.messages == []


@pytest.mark.parametrize(
    ("name", "file_name"),
    [("resnet18", "resnet18.pt"), ("mine.nets:small", "mine-nets-small.pt")],
)
def test_weights_path_of_a_file_and_of_a_folder(tmp_path, name, file_name):
    path = tmp_path / file_name
    with pytest.raises(FileNotFoundError, match=rf"no weights of {name} at .*{file_name}; allowed"):
        weights_path(tmp_path, name=name)
    path.touch()
    assert weights_path(tmp_path, name=name) == weights_path(path, name=name) == path
    with pytest.raises(FileNotFoundError, match="absent"):
        weights_path(tmp_path / "absent.pt", name=name)
