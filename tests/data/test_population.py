"""Stratified draws and duplicates, on labels small enough to count by hand."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from edgeopt.data.splits import Population, Split, split_off, stratified_order, without_duplicates


def numbered(labels: list[int], values: list[int] | None = None) -> Split:
    """One-pixel images whose value is their number."""
    values = list(range(len(labels))) if values is None else values
    images = torch.tensor(values, dtype=torch.uint8).reshape(-1, 1, 1, 1)
    return Split(images, torch.tensor(labels))


def values(source: Split) -> list[int]:
    return (source.take(len(source)) * 255).round().int().flatten().tolist()


@given(st.lists(st.integers(0, 3), min_size=1, max_size=60), st.integers(0, 5), st.data())
def test_every_prefix_holds_each_class_in_proportion(labels, seed, data):
    order = stratified_order(torch.tensor(labels), seed=seed)
    assert sorted(order.tolist()) == list(range(len(labels)))
    count = data.draw(st.integers(1, len(labels)))
    drawn = np.bincount(np.array(labels)[order[:count]], minlength=4)
    share = np.bincount(labels, minlength=4) / len(labels)
    # A class rounds by half an image, and takes its share of the roundings of all classes.
    assert (np.abs(drawn - share * count) <= 0.5 + share * len(set(labels)) / 2 + 1e-9).all()


def test_balanced_classes_take_turns():
    labels = torch.tensor([0] * 4 + [1] * 4 + [2] * 4)
    order = stratified_order(labels, seed=3)
    rounds = labels.numpy()[order].reshape(4, 3)
    assert all(sorted(taken) == [0, 1, 2] for taken in rounds.tolist())


def test_seed_decides_the_order():
    labels = torch.tensor([0, 1] * 50)
    one, same, other = (stratified_order(labels, seed=seed) for seed in (1, 1, 2))
    assert one.tolist() == same.tolist()
    assert one.tolist() != other.tolist()


def test_split_off_loses_nothing():
    taken, rest = split_off(numbered([0, 1] * 10), 6, seed=0)
    assert (len(taken), len(rest)) == (6, 14)
    assert sorted(values(taken) + values(rest)) == list(range(20))
    assert taken.labels.bincount().tolist() == [3, 3]


def test_copies_are_dropped_within_and_against_held_out():
    source = numbered([0, 0, 1, 1, 1], values=[7, 7, 8, 9, 8])
    held_out = numbered([1], values=[9])
    assert values(without_duplicates(source)) == [7, 8, 9]
    assert values(without_duplicates(source, held_out=[held_out])) == [7, 8]


def test_nothing_is_dropped_where_all_differ():
    source = numbered([0, 1, 0])
    assert without_duplicates(source) is source


def test_with_classes_moves_labels_and_no_image():
    part = numbered([0, 1, 2])
    population = Population(("a", "b", "c"), "", part, part, part).with_classes(["c", "a", "b"])
    assert population.class_names == ("c", "a", "b")
    assert population.test.labels.tolist() == [1, 2, 0]
    assert values(population.train) == [0, 1, 2]


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["a", "b"], r"unknown: none, missing: \['c'\]"),
        (["a", "b", "d"], r"unknown: \['d'\], missing: \['c'\]"),
        (["a", "b", "c", "c"], r"allowed: each of \['a', 'b', 'c'\] once"),
    ],
)
def test_with_classes_names_what_is_wrong(names, message):
    part = numbered([0, 1, 2])
    with pytest.raises(ValueError, match=message):
        Population(("a", "b", "c"), "", part, part, part).with_classes(names)
