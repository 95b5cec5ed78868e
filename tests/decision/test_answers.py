"""Gates judged by intervals: by hand, and how often chance alone refuses."""

import io

import numpy as np
import pandas as pd
import pytest
from scipy.stats import binom, norm, t

from edgeopt.decision.answers import Answers, class_shares, gate_intervals, share_interval
from edgeopt.decision.paired import (
    SeedSpread,
    paired_difference,
    pooled_seed_spread,
    tango_interval,
    two_level_spread,
)
from edgeopt.metrics.quality import wilson_interval

LABELS = np.repeat([0, 1], [60, 40])
NAMES = ["cat", "dog"]
GATED = {"baseline": "base", "confidence": 0.9}


def first(count, *, of=100):
    return np.arange(of) < count


def seed_of(cats, dogs):
    """Right answers of one seed: the first of 60 cats and of 40 dogs."""
    return np.concatenate([first(cats, of=60), first(dogs, of=40)])


def interval_of(table, candidate, gate, class_name=""):
    return table.set_index(["candidate", "gate", "class_name"]).loc[(candidate, gate, class_name)]


def test_recalls_are_the_mean_over_seeds_of_the_classes_that_have_images():
    rows = np.stack([first(80), first(60)])  # all cats, then 20 and 0 of 40 dogs
    recalls = Answers({"net": rows}, LABELS, [*NAMES, "unseen"]).recalls()
    assert recalls.to_numpy().tolist() == [["net", "cat", 1.0], ["net", "dog", 0.25]]


def test_answers_come_back_from_their_table():
    seeds = np.stack([first(80), first(60)])
    answers = Answers({"net": seeds, "base": seeds[::-1]}, LABELS, NAMES)
    table = answers.table()
    assert table.columns.tolist() == ["candidate", "seed", "right"]
    text = table.to_csv(index=False)  # as a run keeps it: no bits may be read as a number
    again = Answers.from_table(pd.read_csv(io.StringIO(text)), labels=LABELS, class_names=NAMES)
    assert again.correct["net"].tolist() == seeds.tolist()
    assert again.correct["base"].tolist() == seeds[::-1].tolist()
    tens = Answers({"net": np.eye(1, 4, dtype=bool)}, LABELS[:4], NAMES).table()
    assert pd.read_csv(io.StringIO(tens.to_csv()))["right"].tolist() == ["x80"]


def test_answers_have_a_label_for_every_image():
    with pytest.raises(ValueError, match=r"correct is of \{100\} images; allowed: 99 \(labels\)"):
        Answers({"net": first(80)}, LABELS[:99], NAMES)


def test_gate_intervals_share_the_chance_among_accuracy_classes_and_gates():
    answers = Answers({"base": first(95), "net": first(90)}, LABELS, NAMES)
    table = gate_intervals(answers, baseline="base", confidence=0.95)
    assert len(table) == 2 * (2 + 2 * 2)
    accuracy = interval_of(table, "net", "accuracy")
    assert accuracy.tolist() == [1, 100, 0.9, *wilson_interval(90, 100, confidence=0.95)]
    drop = interval_of(table, "net", "accuracy_drop")
    assert drop.tolist() == pytest.approx([1, 100, 0.05, *tango_interval(0, 5, 100)])
    # half of 5% is left for two classes, two gates and both sides: 0.025 / 2 a class
    recall = interval_of(table, "net", "worst_recall", "dog")
    assert recall.tolist() == [1, 40, 0.75, *wilson_interval(30, 40, confidence=1 - 0.025 / 2)]
    fall = interval_of(table, "net", "worst_recall_drop", "dog")
    expected = tango_interval(0, 5, 40, confidence=1 - 0.025 / 2)
    assert fall.tolist() == pytest.approx([1, 40, 0.125, *expected])


def test_gate_intervals_of_the_baseline_leave_no_doubt_that_it_is_itself():
    answers = Answers({"base": first(95), "same": first(95)}, LABELS, NAMES)
    table = gate_intervals(answers, baseline="base", confidence=0.95)
    drops = table[table["gate"].str.endswith("drop")].set_index("candidate")
    assert (drops.loc["base", ["value", "low", "high"]] == 0).all(axis=None)
    assert (drops.loc["same", "high"] > 0).all()


@pytest.mark.parametrize("right", [[[1, 0], [0, 1]], [[1, 0, 0], [0, 1, 0], [0, 0, 1]], [[1], [0]]])
def test_gate_intervals_of_a_class_with_a_handful_of_images_are_numbers(right):
    right = np.array(right, dtype=bool)
    labels = np.zeros(right.shape[1], dtype=int)
    answers = Answers({"base": np.ones_like(right), "net": right}, labels, NAMES)
    table = gate_intervals(answers, baseline="base", confidence=0.95)
    own = table[table["candidate"] == "net"]
    assert (own["low"] <= own["value"]).all()
    assert (own["value"] <= own["high"]).all()


def test_share_interval_of_one_seed_is_wilsons():
    assert share_interval(first(90)[None]) == wilson_interval(90, 100)


@pytest.mark.parametrize("count", [0, 37, 100])
def test_share_interval_of_equal_seeds_is_that_of_one(count):
    # the two more images, and Student's quantile for 101 degrees of freedom, change it by a hair
    same = share_interval(np.tile(first(count), (3, 1)))
    assert same == pytest.approx(wilson_interval(count, 100), abs=0.002)


def test_share_interval_of_seeds_that_differ_is_wider_than_over_images():
    # three seeds 0.1 apart: Student's t on them alone is +- 4.303 x 0.1 / sqrt(3) = 0.25
    right = np.stack([first(count, of=1000) for count in (300, 200, 100)])
    low, high = share_interval(right)
    assert 0 < low < 0.2 < high < 1
    assert high - low > 0.4
    assert np.subtract(*wilson_interval(200, 1000)[::-1]) < 0.06


def test_share_interval_of_seeds_ends_where_the_score_test_of_as_many_images_does():
    right = np.stack([np.roll(first(count, of=40), count) for count in (20, 26, 35)])
    padded = np.column_stack([np.zeros(3), right, np.ones(3)])
    error, freedom = two_level_spread(padded)
    binomial = padded.mean() * (1 - padded.mean())
    images = binomial / error**2 * 40 / 42
    limit = t.ppf(0.95, freedom)
    ends = share_interval(right, confidence=0.9)
    assert ends[0] < right.mean() < ends[1]
    for end in ends:
        assert (end - right.mean()) ** 2 == pytest.approx(limit**2 * end * (1 - end) / images)


def test_gate_intervals_take_no_class_for_surer_than_the_seeds_of_all_classes_are():
    # the classes vary against each other, so that all images together hardly vary with the seed
    base = np.stack([seed_of(cats, dogs) for cats, dogs in ((59, 39), (56, 39), (57, 34))])
    net = np.stack([seed_of(cats, dogs) for cats, dogs in ((55, 20), (50, 25), (45, 30))])
    table = gate_intervals(Answers({"base": base, "net": net}, LABELS, NAMES), **GATED)
    cats, dogs = LABELS == 0, LABELS == 1
    gaps = base * 1.0 - net
    share, drop = (pooled_seed_spread([x[:, cats], x[:, dogs]]) for x in (net * 1.0, gaps))
    level = {"confidence": 1 - 0.1 / 4}
    recall = interval_of(table, "net", "worst_recall", "dog")[["low", "high"]]
    assert recall.tolist() == pytest.approx(share_interval(net[:, dogs], **level, at_least=share))
    fall = interval_of(table, "net", "worst_recall_drop", "dog")[["value", "low", "high"]]
    expected = paired_difference(base[:, dogs], net[:, dogs], **level, at_least=drop)
    assert fall.tolist() == pytest.approx(expected[:3])
    # 60 and 40 of 100 images: the mean of independent classes has 0.36 + 0.16 of their variance
    share, drop = (SeedSpread(0.52 * x.variance, x.freedom) for x in (share, drop))
    accuracy = interval_of(table, "net", "accuracy")[["low", "high"]]
    level = {"confidence": 0.9}
    assert accuracy.tolist() == pytest.approx(share_interval(net, **level, at_least=share))
    assert accuracy["low"] < share_interval(net, **level)[0]
    fall = interval_of(table, "net", "accuracy_drop")[["value", "low", "high"]]
    assert fall.tolist() == pytest.approx(paired_difference(base, net, **level, at_least=drop)[:3])


@pytest.mark.parametrize(("images", "share"), [(12, 0.2), (50, 0.2), (50, 0.95)])
def test_share_interval_of_few_images_is_not_too_sure(images, share):
    # at the chance that ten classes and two gates leave to each end of an interval
    tail, repeats, rng = 0.05 / 40, 3000, np.random.default_rng(0)
    labels = np.zeros(images, dtype=int)
    below = 0
    for _ in range(repeats):
        [right] = drawn(rng, [[share]], labels=labels, seeds=3)
        below += share_interval(right, confidence=1 - 2 * tail)[1] < share
    assert below <= binom.ppf(0.999, repeats, tail)


def drawn(rng, shares, *, labels, seeds, effect=0.9, of_seeds=0.0, by_class=False):
    """Answers [seeds, N] right with probability ``shares`` by class, alike on the same image.

    Each seed moves all of them alike, or each class in its own way (``by_class``).
    """
    image = rng.normal(size=(1, len(labels)))

    def right(share):
        own = rng.normal(size=(seeds, len(labels)))
        score = np.sqrt(effect) * image + np.sqrt(1 - effect) * own
        moved = rng.normal(size=(seeds, labels.max() + 1 if by_class else 1))
        moved = moved[:, labels] if by_class else moved
        score = (score + of_seeds * moved) / np.hypot(1, of_seeds)
        return score < norm.ppf(np.array(share))[labels]

    return [right(share) for share in shares]


def wrongly_refused(shares, *, labels, seeds, repeats, confidence=0.95, seed=0, **effects):
    """Share of repeats in which a candidate exactly on its gates lies beyond one of them."""
    rng, refused = np.random.default_rng(seed), 0
    names = [str(label) for label in np.unique(labels)]
    for _ in range(repeats):
        base, net = drawn(rng, shares, labels=labels, seeds=seeds, **effects)
        answers = Answers({"base": base, "net": net}, labels, names)
        table = gate_intervals(answers, baseline="base", confidence=confidence)
        own = table[table["candidate"] == "net"].groupby("gate")
        low, high = own["low"].max(), own["high"].min()
        beyond = low["accuracy_drop"] > 0.05, low["worst_recall_drop"] > 0.10
        refused += any(beyond) or high["worst_recall"] < 0.20
    return refused / repeats


def allowed(repeats):
    """Most refusals that 5% of chance gives in 999 of 1,000 such simulations."""
    return binom.ppf(0.999, repeats, 0.05) / repeats


EXACTLY = {
    "accuracy drop": ([0.95] * 4, [0.90] * 4),
    "recall": ([0.20, 0.9, 0.9, 0.9], [0.20, 0.9, 0.9, 0.9]),
    "recall drop": ([0.90, 0.9, 0.9, 0.9], [0.80, 0.9, 0.9, 0.9]),
    "every one": ([0.30, 0.30, 0.9, 0.9], [0.20, 0.20, 0.9, 0.9]),
    "every recall": ([0.20] * 4, [0.20] * 4),
}


@pytest.mark.parametrize("seeds", [1, 3])
@pytest.mark.parametrize("case", ["every one", "every recall"])
def test_gate_intervals_refuse_by_chance_at_most_as_often_as_stated(case, seeds):
    labels = np.repeat(np.arange(4), 25)
    found = wrongly_refused(EXACTLY[case], labels=labels, seeds=seeds, repeats=150)
    assert found <= allowed(150)


@pytest.mark.parametrize("seeds", [2, 3])
def test_gate_intervals_reckon_with_seeds_that_happen_to_agree(seeds):
    # a seed moves the recall of a class by 6 points; half of the ten classes are on both gates
    shares, labels = ([0.3] * 5 + [0.9] * 5, [0.2] * 5 + [0.9] * 5), np.repeat(np.arange(10), 100)
    effects = {"of_seeds": 0.2, "by_class": True}
    found = wrongly_refused(shares, labels=labels, seeds=seeds, repeats=150, **effects)
    assert found <= allowed(150)


def test_gate_intervals_at_a_lower_confidence_refuse_more_often():
    labels, case = np.repeat(np.arange(4), 100), EXACTLY["accuracy drop"]
    found = wrongly_refused(case, labels=labels, seeds=1, repeats=150, confidence=0.2)
    assert found > allowed(150)


@pytest.mark.slow
@pytest.mark.parametrize("images", [25, 50, 300])
@pytest.mark.parametrize("seeds", [1, 3])
@pytest.mark.parametrize("case", EXACTLY)
def test_gate_intervals_refuse_by_chance_at_most_as_often_as_stated_in_long(case, seeds, images):
    labels = np.repeat(np.arange(4), images)
    found = wrongly_refused(EXACTLY[case], labels=labels, seeds=seeds, repeats=1000, seed=1)
    assert found <= allowed(1000)


@pytest.mark.slow
@pytest.mark.parametrize("of_seeds", [0.03, 0.1, 0.2])
@pytest.mark.parametrize("seeds", [2, 3, 5])
def test_gate_intervals_reckon_with_seeds_that_happen_to_agree_in_long(seeds, of_seeds):
    shares, labels = ([0.3] * 5 + [0.9] * 5, [0.2] * 5 + [0.9] * 5), np.repeat(np.arange(10), 300)
    effects = {"of_seeds": of_seeds, "by_class": True}
    found = wrongly_refused(shares, labels=labels, seeds=seeds, repeats=1000, **effects)
    assert found <= allowed(1000)


@pytest.mark.slow
@pytest.mark.parametrize(("effect", "of_seeds"), [(0.6, 0.05), (0.9, 0.05), (0.99, 0.0)])
@pytest.mark.parametrize("share", [0.2, 0.5, 0.9])
def test_share_interval_covers_95_percent(share, effect, of_seeds):
    rng, inside = np.random.default_rng(2), []
    labels = np.zeros(300, dtype=int)
    for _ in range(3000):
        options = {"seeds": 3, "effect": effect, "of_seeds": of_seeds}
        [right] = drawn(rng, [[share]], labels=labels, **options)
        low, high = share_interval(right)
        inside.append(low <= share <= high)
    assert 0.93 <= np.mean(inside) <= 0.97


def test_answers_are_the_same_shape_for_all():
    with pytest.raises(ValueError, match="different numbers of seeds or images"):
        Answers({"a": first(90), "b": np.stack([first(90)] * 2)}, LABELS, NAMES)
    assert isinstance(Answers({"a": first(90)}, LABELS, NAMES).recalls(), pd.DataFrame)


def test_class_shares_are_recalls_before_and_after_with_the_interval_of_the_later():
    correct = {"before": first(80)[None], "after": first(60)[None]}
    table = class_shares(correct, LABELS, before="before", after="after", names=NAMES)
    table = table.set_index("class_name")
    assert table["before"].to_dict() == {"cat": 1.0, "dog": 0.5}
    assert table["after"].to_dict() == {"cat": 1.0, "dog": 0.0}
    assert table.loc["dog", ["after_low", "after_high"]].tolist() == [*wilson_interval(0, 40)]
    alone = class_shares(
        {"after": first(60)[None]}, LABELS, before="gone", after="after", names=NAMES
    )
    assert alone["before"].isna().all()
