"""Limits judged by estimates and by intervals, and their words."""

import math

import pandas as pd
import pytest

from edgeopt.decision.limits import (
    BROKEN,
    MET,
    NOT_SETTLED,
    Finding,
    Limit,
    findings,
    texts,
)

DROP = Limit("accuracy_drop", 0.05)
RECALL = Limit("worst_recall", 0.2, at_least=True, class_column="worst_class")


def intervals(*rows, gate="accuracy_drop", images=1000):
    columns = ["candidate", "gate", "class_name", "images", "value", "low", "high"]
    table = [("net", gate, name, images, *numbers) for name, *numbers in rows]
    return pd.DataFrame(table, columns=columns)


@pytest.mark.parametrize(
    ("low", "high", "verdict"),
    [
        (0.01, 0.05, MET),
        (0.01, 0.0501, NOT_SETTLED),
        (0.05, 0.09, NOT_SETTLED),
        (0.0501, 0.09, BROKEN),
    ],
)
def test_judge_has_three_verdicts_of_a_bound_from_above(low, high, verdict):
    found = DROP.judge(intervals(("", (low + high) / 2, low, high)))
    assert found.verdict == verdict
    assert bool(found.text) == (verdict != MET)
    assert (found.shortfall > 0) == (verdict == BROKEN)


@pytest.mark.parametrize(
    ("low", "high", "verdict"),
    [(0.2, 0.4, MET), (0.199, 0.4, NOT_SETTLED), (0.1, 0.2, NOT_SETTLED), (0.1, 0.199, BROKEN)],
)
def test_judge_has_three_verdicts_of_a_bound_from_below(low, high, verdict):
    table = intervals(("dog", (low + high) / 2, low, high), gate="worst_recall")
    assert RECALL.judge(table).verdict == verdict


def test_judge_says_what_is_broken_and_by_how_much():
    found = DROP.judge(intervals(("", 0.08, 0.06, 0.10)))
    assert found.shortfall == pytest.approx(0.03 / 0.05)
    assert found.text == (
        "accuracy drop 8.00 points (at least 6.00 points), allowed at most 5.00 points"
    )


def test_judge_lets_the_worst_class_speak():
    table = intervals(
        ("cat", 0.15, 0.10, 0.19), ("dog", 0.12, 0.07, 0.18), ("owl", 0.9, 0.8, 1), gate="recall"
    )
    found = RECALL.judge(table)
    assert found.shortfall == pytest.approx(0.08 / 0.2)
    assert found.text.startswith("recall of class 'dog' 12.0% (up to 18.0%), allowed at least 20.0")


def test_judge_says_how_many_images_would_settle_it():
    # the end is 0.02 away and has to come within 0.01: four times the images
    found = DROP.judge(intervals(("", 0.04, 0.02, 0.06)))
    assert found == Finding(
        NOT_SETTLED,
        0.0,
        "accuracy drop 4.00 points (up to 6.00 points), allowed at most 5.00 points; "
        "about 4,000 images would settle it",
    )
    # 0.18 away, has to come within 0.07: 50 x 6.61 = 331
    table = intervals(("dog", 0.27, 0.09, 0.45), gate="worst_recall", images=50)
    assert RECALL.judge(table).text == (
        "recall of class 'dog' 27.0% (at least 9.0%), allowed at least 20.0%; "
        "about 340 images of 'dog' would settle it"
    )


def test_judge_asks_for_more_images_than_there_are_and_for_none_on_the_gate():
    lopsided = DROP.judge(intervals(("", 0.06, 0.04, 0.061), images=99))
    assert "about 100 images would settle it" in lopsided.text
    # 0.025 away, has to come within 0.01: 6 x 6.25 = 37.5, of which two digits are all
    few = DROP.judge(intervals(("", 0.04, 0.02, 0.065), images=6))
    assert "about 38 images would settle it" in few.text
    of_seeds = DROP.judge(intervals(("", 0.04, 0.02, 0.065), images=6).assign(seeds=3))
    assert of_seeds.text.endswith("more images and more seeds could settle it")
    on_it = DROP.judge(intervals(("", 0.05, 0.03, 0.07)))
    assert on_it.text.endswith("no number of images settles what lies exactly on the gate")


@pytest.mark.parametrize(
    ("value", "missed"),
    [(0.05, 0), (0.05 + 1e-12, 0), (0.0501, 0.002), (0.04, 0), (math.nan, math.inf)],
)
def test_miss_is_a_share_of_the_bound(value, missed):
    assert DROP.miss(value) == pytest.approx(missed)
    assert Limit("accuracy_drop", 0.0).miss(0.25) == 0.25
    assert RECALL.miss(0.15) == pytest.approx(0.25)


def test_estimate_of_one_byte_too_many_is_written_in_bytes():
    limit = Limit("artifact_bytes", 51_200)
    assert limit.estimate(pd.Series({"artifact_bytes": 51_200})) == Finding(MET)
    found = limit.estimate(pd.Series({"artifact_bytes": 51_201}))
    assert found.verdict == BROKEN
    assert found.text == "artifact on disk 51,201 bytes, allowed at most 51,200 bytes"
    large = Limit("artifact_bytes", 8 * 2**30)
    assert large.estimate(pd.Series({"artifact_bytes": 8 * 2**30 + 1})).verdict == BROKEN
    weights = Limit("memory_mb", 51_200 / 2**20).estimate(pd.Series({"memory_mb": 51_201 / 2**20}))
    assert weights.text == "weights 51,201 bytes, allowed at most 51,200 bytes"


def test_estimate_names_the_class_and_what_is_not_known():
    row = pd.Series({"worst_recall": 0.12, "worst_class": "dog", "accuracy_drop": math.nan})
    assert RECALL.estimate(row).text == "recall of class 'dog' 12.0%, allowed at least 20.0%"
    unknown = DROP.estimate(row)
    assert unknown.shortfall == math.inf
    assert unknown.text == "accuracy drop is not available, allowed at most 5.00 points"


def test_findings_of_a_row_without_the_others_intervals_are_not_settled_at_best():
    table = pd.DataFrame(
        {
            "candidate": ["net", "partial", "lossy"],
            "accuracy_drop": [0.01, 0.01, 0.09],
            "memory_mb": [0.5, 0.5, 0.5],
        }
    )
    weights = Limit("memory_mb", 1.0)
    found = findings(table, [DROP, weights], intervals(("", 0.01, 0.0, 0.02)))
    assert [own[DROP].verdict for own in found] == [MET, NOT_SETTLED, BROKEN]
    assert [own[weights].verdict for own in found] == [MET] * 3
    assert found[1][DROP].text.endswith("it did not run with every seed")
    assert [own[DROP].verdict for own in findings(table, [DROP])] == [MET, MET, BROKEN]


def test_texts_say_each_column_once_and_only_what_has_the_verdict():
    own = {
        DROP: Finding(NOT_SETTLED, 0.0, "drop, allowed 5"),
        Limit("accuracy_drop", 0.02): Finding(NOT_SETTLED, 0.0, "drop, allowed 2"),
        RECALL: Finding(NOT_SETTLED, 0.0, "recall"),
        Limit("memory_mb", 1): Finding(BROKEN, 1.0, "weights"),
    }
    assert texts(own, NOT_SETTLED) == "drop, allowed 5; recall"
    assert texts(own, BROKEN) == "weights"
    assert texts(own, MET) == ""
