"""Quality numbers, recomputed by hand or by another route."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from edgeopt.metrics.quality import (
    confusion_table,
    per_class_table,
    quality_row,
    wilson_interval,
)

LABELS = np.array([0, 0, 0, 0, 1, 1, 2, 2])
PREDICTIONS = np.array([0, 0, 0, 1, 1, 0, 2, 2])
NAMES = ("shirt", "<b>coat</b>", "bag")


def test_wilson_interval_equals_the_written_out_formula():
    z, n, p = 1.959963984540054, 100, 0.9
    centre = (p + z**2 / (2 * n)) / (1 + z**2 / n)
    half = z / (1 + z**2 / n) * np.sqrt(p * (1 - p) / n + z**2 / (4 * n**2))
    assert wilson_interval(90, 100) == pytest.approx((centre - half, centre + half), abs=1e-12)


@given(total=st.integers(1, 5000), share=st.floats(0, 1))
def test_wilson_interval_holds_the_estimate_inside_zero_and_one(total, share):
    correct = round(total * share)
    low, high = wilson_interval(correct, total)
    assert -1e-12 <= low <= correct / total + 1e-12
    assert correct / total - 1e-12 <= high <= 1 + 1e-12
    assert low < high


def test_wilson_interval_widens_with_confidence():
    low, high = wilson_interval(45, 50)
    wider_low, wider_high = wilson_interval(45, 50, confidence=0.99)
    assert wider_low < low < high < wider_high


@pytest.mark.parametrize(
    ("correct", "total", "confidence", "message"),
    [
        (0, 0, 0.95, "total is 0; allowed: 1 or more"),
        (5, 4, 0.95, r"correct is 5; allowed: 0 to total \(4\)"),
        (-1, 4, 0.95, "correct is -1"),
        (1, 4, 1.0, "confidence is 1.0; allowed: above 0 and below 1"),
        (1, 4, 0.0, "confidence is 0.0; allowed: above 0 and below 1"),
    ],
)
def test_wilson_interval_refuses(correct, total, confidence, message):
    with pytest.raises(ValueError, match=message):
        wilson_interval(correct, total, confidence=confidence)


def test_quality_row_by_hand():
    row = quality_row(LABELS, PREDICTIONS, num_classes=3)
    f1_of_classes = [2 * 3 / (4 + 4), 2 * 1 / (2 + 2), 1.0]  # 2 TP / (support + predicted)
    assert row["accuracy"] == 6 / 8
    assert (row["accuracy_low"], row["accuracy_high"]) == wilson_interval(6, 8)
    assert row["macro_f1"] == pytest.approx(np.mean(f1_of_classes))


def test_quality_row_averages_only_the_classes_that_occur():
    with_absent_class = quality_row(LABELS, PREDICTIONS, num_classes=10)
    assert with_absent_class == quality_row(LABELS, PREDICTIONS, num_classes=3)


def test_quality_row_takes_tensors():
    row = quality_row(torch.tensor(LABELS), torch.tensor(PREDICTIONS), num_classes=3)
    assert row == quality_row(LABELS, PREDICTIONS, num_classes=3)


def test_98_percent_accuracy_can_hide_12_percent_recall():
    labels = np.array([0] * 978 + [1] * 25)
    predictions = np.array([0] * 978 + [1] * 3 + [0] * 22)
    assert quality_row(labels, predictions, num_classes=2)["accuracy"] == pytest.approx(
        0.978, abs=1e-3
    )
    recall = per_class_table(labels, predictions, class_names=("good", "bad"))["recall"]
    assert recall.tolist() == [1.0, 0.12]


def test_per_class_table_by_hand():
    table = per_class_table(LABELS, PREDICTIONS, class_names=NAMES)
    assert table.columns.tolist() == ["class_name", "support", "precision", "recall", "f1"]
    assert table["class_name"].tolist() == list(NAMES)
    assert table["support"].tolist() == [4, 2, 2]
    assert table["precision"].tolist() == [3 / 4, 1 / 2, 1.0]
    assert table["recall"].tolist() == [3 / 4, 1 / 2, 1.0]


def test_a_ratio_without_a_denominator_is_nan():
    table = per_class_table([0, 0, 1], [0, 2, 0], class_names=("a", "b", "c"))
    assert np.isnan(table["precision"][1])  # b is never predicted
    assert table["recall"][1] == 0.0
    assert np.isnan(table["recall"][2])  # c has no image
    assert table["f1"][1] == 0.0


def test_confusion_table_by_hand():
    table = confusion_table(LABELS, PREDICTIONS, class_names=NAMES)
    assert table.to_numpy().tolist() == [[3, 1, 0], [1, 1, 0], [0, 0, 2]]
    assert (table.index.name, table.columns.name) == ("true_class", "predicted_class")


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3)), min_size=1, max_size=50))
def test_confusion_table_keeps_every_image(pairs):
    labels, predictions = np.array(pairs).T
    table = confusion_table(labels, predictions, class_names="abcd")
    assert table.sum(axis=1).tolist() == [int(np.sum(labels == k)) for k in range(4)]
    assert table.sum(axis=0).tolist() == [int(np.sum(predictions == k)) for k in range(4)]


@pytest.mark.parametrize(
    ("labels", "predictions", "num_classes", "message"),
    [
        ([], [], 3, r"labels has shape \(0,\); allowed: \(N,\) with N >= 1"),
        ([[0, 1]], [0, 1], 3, r"labels has shape \(1, 2\)"),
        ([0, 1], [0, 1, 1], 3, "labels has 2 images and predictions has 3"),
        ([0, 1], [0, 3], 3, "predictions hold class 3; allowed: 0 to 2"),
        ([0, 1], [0.1, 0.9], 3, "predictions has dtype float64; allowed: integer class indices"),
        ([0, 1], [0, 1], 1, "num_classes is 1; allowed: 2 or more"),
        ([1, 1, 1], [0, 1, 1], 3, "all 3 labels are class 1; allowed: 2 or more classes"),
        ([2], [2], 3, "all 1 labels are class 2"),
    ],
)
def test_quality_row_refuses(labels, predictions, num_classes, message):
    with pytest.raises(ValueError, match=message):
        quality_row(labels, predictions, num_classes=num_classes)


def test_tables_refuse_repeated_class_names():
    with pytest.raises(ValueError, match="class_names repeat bag; allowed: distinct names"):
        confusion_table(LABELS, PREDICTIONS, class_names=("bag", "coat", "bag"))
