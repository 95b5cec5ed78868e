import re
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from torch import nn

from edgeopt.decision.choice import decide
from edgeopt.decision.gates import Gates
from edgeopt.experiments.candidates.candidate import Candidate, CandidateSpec
from edgeopt.experiments.candidates.seeds import (
    accuracy_over_seeds,
    answers_of,
    recall_table,
    with_seeds,
    with_test,
)
from edgeopt.experiments.sweep import FACT_COLUMNS, Target, run_sweep, sweep_table, with_energy
from edgeopt.metrics.quality import quality_row
from edgeopt.metrics.rounds import Measurement
from edgeopt.model.networks import SmallCNN
from edgeopt.model.training import fit

PUBLIC = [
    "pruning_level",
    "precision",
    "accuracy",
    "latency_ms",
    "latency_std_ms",
    "latency_p95_ms",
    "throughput_sps",
    "memory_mb",
    "energy_proxy_j",
    "accepted",
    "active_budget_mb",
    "violates_0.002mb",
    "violates_0.004mb",
]


@pytest.fixture(scope="module")
def arguments(striped):
    loader = striped.loader(32, shuffle=True, seed=0)
    model = fit(SmallCNN(6, 8, 4), loader, epochs=3, learning_rate=0.01, progress=False).model
    return {
        "base_model": model,
        "val_loader": striped.loader(64),
        "calibration_loader": striped.loader(32),
        "device": "cpu",
        "pruning_levels": [0.0, 0.5],
        "precisions": ["fp32", "int8"],
        "power_watts": 2.0,
        "calibration_batches": 2,
        "memory_budgets_mb": [0.002, 0.004],
        "active_memory_budget_mb": 0.004,
        "latency_multiplier": 1.0,
        "benchmark_repeats": 5,
    }


@pytest.fixture(scope="module")
def sweep(arguments):
    return run_sweep(**arguments)


def test_a_row_per_candidate_with_the_public_columns(sweep):
    assert [c for c in PUBLIC if c not in sweep] == []
    assert list(zip(sweep["pruning_level"], sweep["precision"], strict=True)) == [
        (0.0, "fp32"),
        (0.0, "int8"),
        (0.5, "fp32"),
        (0.5, "int8"),
    ]
    assert (sweep["status"] == "ok").all()


def test_run_sweep_times_every_call_of_every_round(sweep):
    assert sweep["samples"].eq(5 * 30).all()
    assert sweep["latency_p95_ms"].ge(sweep["latency_p50_ms"]).all()
    assert sweep["seeds"].eq(1).all()


def test_run_sweep_judges_the_weights_that_are_counted_by_hand(sweep):
    fp32 = sweep.loc[sweep["precision"] == "fp32", "memory_mb"]
    # 60 + 440 + 1572 parameters of 4 bytes, and 30 + 112 + 788 of half the channels
    assert fp32.tolist() == [8288 / 1048576, 3720 / 1048576]
    # 0.002 MiB are 2097 bytes, 0.004 are 4194; whole in int8: 2054 weights, 18 biases of 4 bytes
    assert sweep["violates_0.002mb"].tolist() == [True, True, True, False]
    assert sweep["violates_0.004mb"].tolist() == [True, False, False, False]
    assert sweep["accepted"].tolist() == [False, True, True, True]
    assert sweep["active_budget_mb"].eq(0.004).all()


def test_a_multiplier_scales_latency_and_says_so():
    table = pd.DataFrame(
        {
            "latency_ms": [1.0, np.nan],
            "latency_p95_ms": [2.0, np.nan],
            "throughput_sps": [1000.0, np.nan],
            "macs": [10, np.nan],
            "weight_bytes": [4, np.nan],
            "peak_activation_bytes": [8, np.nan],
            "precision": ["int8", "fp32"],
            "int8_mac_share": [0.5, np.nan],
            "status": ["ok", "failed"],
        }
    )
    scaled = with_energy(table, target=Target(3.0, 4.0), batch_size=2)
    assert scaled.loc[0, ["latency_ms", "latency_p95_ms", "throughput_sps"]].tolist() == [4, 8, 250]
    assert scaled["latency_kind"].eq("estimated").all()
    assert scaled.loc[0, "energy_proxy_j"] == pytest.approx(0.004 * 3)
    # 2 images of 10 MACs, half of them at 0.3 pJ and half at fp32's 4.6; 12 bytes at 162.5 pJ
    assert scaled.loc[0, "energy_model_j"] == pytest.approx(
        (10 * 0.3 + 10 * 4.6 + 12 * 162.5) / 1e12
    )
    assert scaled.loc[1, ["energy_proxy_j", "energy_model_j"]].isna().all()
    same = with_energy(table, target=Target(3.0), batch_size=2)
    assert same["latency_kind"].eq("measured").all()


def test_models_given_by_level_are_swept_instead_of_pruned_ones(arguments):
    own = {0.0: arguments["base_model"], 0.5: SmallCNN(1, 1, 4).eval()}
    options = {**arguments, "precisions": ["fp32"], "pruned_models": own, "recipe": "fine-tuned"}
    table = run_sweep(**options)
    assert table["parameters"].tolist()[1] == (9 + 1) + (9 + 1) + (49 * 4 + 4)
    assert table["recipe"].tolist() == ["baseline", "fine-tuned"]


def test_any_network_is_swept_under_its_own_name(arguments):
    net = nn.Sequential(nn.Flatten(), nn.Linear(784, 4)).eval()
    options = {**arguments, "base_model": net, "pruning_levels": [0.0], "precisions": ["fp32"]}
    table = run_sweep(**options, model="net")
    assert table["candidate"].tolist() == ["net-p0-torch-fp32"]
    assert table[["model", "parameters"]].to_numpy().tolist() == [["net", 784 * 4 + 4]]


def test_a_failed_candidate_is_never_accepted(arguments):
    table = run_sweep(**{**arguments, "calibration_loader": [], "pruning_levels": [0.0]})
    failed = table[table["status"] == "failed"]
    assert failed["precision"].tolist() == ["int8"]
    assert failed["error"].str.contains("holds no images").all()
    assert not failed["accepted"].any()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"pruning_levels": [1.0]}, r"pruning_level is 1.0; allowed: a number in \[0, 1\)"),
        ({"pruning_levels": []}, "no candidate"),
        ({"pruned_models": {0.25: None}}, r"no network of level\(s\) \[0.5\]; it has: \[0.25\]"),
        ({"precisions": []}, "no candidate"),
        ({"precisions": ["int4"]}, "unknown precision 'int4'; allowed: fp32"),
        ({"device": "cuda"}, "device is 'cuda'; allowed: cpu"),
        ({"power_watts": 0.0}, r"power_watts\s+Input should be greater than 0"),
        ({"active_memory_budget_mb": -1.0}, r"active_memory_budget_mb\s+Input .* greater than 0"),
        ({"benchmark_repeats": 0}, "rounds is 0; allowed: 1"),
    ],
)
def test_bad_input_is_named(arguments, change, message):
    with pytest.raises(ValueError, match=message):
        run_sweep(**{**arguments, **change})


def candidate(seed, predictions, *, precision="fp32", level=0.0, **facts):
    spec = CandidateSpec(level, precision, seed=seed)
    return Candidate(spec, facts=facts, logits=np.eye(2)[predictions])


def sweep_of(*names, **columns):
    first = {"accuracy": 1.0, "accuracy_low": 0.6, "accuracy_high": 1.0, "macro_f1": 1.0}
    row = {"agreement": 1.0, "status": "ok", **first, **columns}
    return pd.DataFrame({"candidate": list(names)}).assign(**row)


def test_with_seeds_takes_the_mean_of_all_quality_over_seeds():
    labels = np.array([0, 1, 0, 1])
    seeds = [
        candidate(0, [0, 1, 0, 1], macro_f1=1.0, agreement=0.9),
        candidate(1, [0, 1, 1, 0], macro_f1=0.5, agreement=0.7),
    ]
    joined = with_seeds(sweep_of(seeds[0].name, "other"), seeds, labels=labels)
    numbers = joined[["accuracy", "macro_f1", "agreement", "seeds"]]
    assert numbers.iloc[0].tolist() == pytest.approx([0.75, 0.75, 0.8, 2])
    assert numbers.iloc[1].isna().all()
    low, high = joined.loc[0, ["accuracy_low", "accuracy_high"]]
    assert low < 0.75 < high


def test_with_seeds_gives_no_accuracy_to_a_candidate_whose_first_seed_failed():
    labels = np.array([0, 1])
    seeds = [
        replace(candidate(0, [0, 1]), logits=None, error="boom"),
        candidate(1, [0, 1], macro_f1=1.0, agreement=1.0),
    ]
    sweep = sweep_of(seeds[0].name, accuracy=np.nan, status="failed")
    assert with_seeds(sweep, seeds, labels=labels)["accuracy"].isna().all()


def test_with_seeds_of_one_keeps_the_interval_over_images():
    only = candidate(0, [0, 1, 0, 0], macro_f1=0.7, agreement=1.0)
    joined = with_seeds(sweep_of(only.name), [only], labels=np.array([0, 1, 0, 1]))
    # Wilson, 3 of 4, z = 1.96: (0.75 + 0.4802 +- 1.96 sqrt(0.0469 + 0.0600)) / 1.9604
    numbers = joined[["accuracy", "accuracy_low", "accuracy_high"]].iloc[0].tolist()
    assert numbers == pytest.approx([0.75, 0.3006, 0.9544], abs=1e-4)


def test_accuracy_over_seeds_and_images_is_wider_than_over_images_alone():
    images = np.random.default_rng(0).random(400)
    unequal = np.stack([images < share for share in (0.7, 0.8, 0.9)])
    table = accuracy_over_seeds({"net": unequal, "perfect": np.ones((3, 400), bool)})
    table = table.set_index("candidate")
    assert table.loc["net", "accuracy"] == unequal.mean()
    # three seeds 0.1 apart: Student's t on them alone is +- 4.303 x 0.1 / sqrt(3)
    assert table.loc["net", "accuracy"] - table.loc["net", "accuracy_low"] > 0.2
    # all right: Wilson's low end, n / (n + z^2)
    assert table.loc["perfect", "accuracy_low"] == pytest.approx(400 / (400 + 1.96**2), abs=1e-4)


def test_recall_table_is_the_mean_over_seeds():
    labels = np.array([0, 1, 0, 1, 1, 1])
    seeds = [candidate(0, [0, 0, 0, 1, 1, 0]), candidate(1, [1, 1, 0, 1, 1, 1])]
    failed = Candidate(CandidateSpec(0.5, "fp32"), error="boom")
    table = recall_table([*seeds, failed], labels, class_names=["a", "b"])
    assert table["candidate"].unique().tolist() == ["small_cnn-p0-torch-fp32"]
    assert table["class_name"].tolist() == ["a", "b"]
    assert table["support"].tolist() == [2, 4]
    assert table["recall"].tolist() == pytest.approx([(2 / 2 + 1 / 2) / 2, (2 / 4 + 4 / 4) / 2])
    assert table["precision"].tolist() == pytest.approx([(2 / 4 + 1 / 1) / 2, (2 / 2 + 4 / 5) / 2])


def test_answers_of_are_of_the_candidates_that_ran_with_every_seed():
    labels = np.array([0, 1])
    both = [candidate(0, [0, 1]), candidate(1, [0, 0])]
    one = candidate(0, [0, 1], precision="int8")
    found = answers_of([*both, one], labels=labels, class_names=["a", "b"])
    assert list(found.correct) == [both[0].name]
    assert found.correct[both[0].name].tolist() == [[True, True], [True, False]]
    assert (found.labels is labels, found.class_names) == (True, ["a", "b"])


def test_with_test_is_the_mean_over_seeds_of_every_candidate_that_was_scored():
    predicted = {"net": np.array([[0, 1, 0, 1], [0, 0, 0, 0]])}
    names = {"labels": np.array([0, 1, 0, 1]), "class_names": ["a", "b"]}
    table = with_test(pd.DataFrame({"candidate": ["net", "failed"]}), predicted, **names)
    # F1 of the second seed: a's precision is 2/4, its recall 1; b is never named
    expected = [0.75, (1 + (2 * 0.5 / 1.5 + 0) / 2) / 2]
    found = table[["test_accuracy", "test_macro_f1"]]
    assert found.iloc[0].tolist() == pytest.approx(expected)
    assert found.iloc[1].isna().all()
    assert table.loc[0, "test_accuracy_low"] < 0.75 < table.loc[0, "test_accuracy_high"]


CHAIN_LABELS = np.arange(200) % 2


def prepared(name_wrong, *, seeds=2, failed=()):
    """Candidates of every seed that answer the first ``wrong`` images wrongly, or failed."""
    found = []
    for seed in range(seeds):
        for (level, precision), wrong in name_wrong.items():
            predictions = np.where(np.arange(200) < wrong, 1 - CHAIN_LABELS, CHAIN_LABELS)
            own = candidate(seed, predictions, level=level, precision=precision)
            quality = quality_row(CHAIN_LABELS, predictions, num_classes=2)
            numbers = dict.fromkeys(set(FACT_COLUMNS) - {"artifact", "artifact_sha256"}, 1000.0)
            numbers |= {"int8_mac_share": 0.0, "agreement": 1.0, "memory_mb": 0.01, **quality}
            own = replace(own, facts=numbers)
            if (level, precision) in failed:
                own = Candidate(own.spec, error="RuntimeError: no kernel")
            found.append(own)
    return found


def timed(candidates, *, latency_ms=1.0, unmeasured=()):
    """Ten rounds of one call of the first seed's candidates, each as long as the others."""
    rows = [
        (c.name, i, np.nan if c.name in unmeasured else latency_ms)
        for c in candidates
        if c.spec.seed == 0 and c.logits is not None
        for i in range(10)
    ]
    samples = pd.DataFrame(rows, columns=["candidate", "round", "latency_ms"]).assign(error="")
    return Measurement(samples, pd.DataFrame({"round": range(10), "reference_ms": 0.5}))


def decided(candidates, *, unmeasured=()):
    """The way of notebook 04 from prepared candidates to the decision."""
    measured = timed(candidates, unmeasured=unmeasured)
    target = Target(2.0, 1.0, (1.0,), 1.0)
    sweep = sweep_table(candidates, measured, labels=CHAIN_LABELS, target=target, batch_size=1)
    answers = answers_of(candidates, labels=CHAIN_LABELS, class_names=["a", "b"])
    recalls = recall_table(candidates, CHAIN_LABELS, class_names=["a", "b"])
    return decide(sweep, gates=Gates(), answers=answers, recalls=recalls, samples=measured.samples)


WRONG = {(0.0, "fp32"): 10, (0.0, "int8"): 11, (0.5, "fp32"): 12}


def test_sweep_table_of_calls_of_4_ms_is_that_by_hand():
    candidates = prepared({(0.0, "fp32"): 10, (0.5, "fp32"): 30})
    target = Target(3.0, 1.0, (0.005, 0.01, 0.02), 0.01)
    measured = timed(candidates, latency_ms=4.0)
    table = sweep_table(candidates, measured, labels=CHAIN_LABELS, target=target, batch_size=8)
    assert table["accuracy"].tolist() == pytest.approx([190 / 200, 170 / 200])
    assert table["seeds"].eq(2).all()
    # 8 images in 4 ms, at 3 W; the reference kernel takes half a millisecond
    derived = table[["latency_ms", "throughput_sps", "energy_proxy_j", "latency_relative"]]
    assert derived.to_numpy() == pytest.approx(np.array([[4, 2000, 0.012, 8]] * 2))
    # all weigh 0.01 MiB, which is what the budget allows
    assert table["accepted"].all()
    violated = table[["violates_0.005mb", "violates_0.01mb", "violates_0.02mb"]]
    assert violated.to_numpy().tolist() == [[True, False, False]] * 2


def test_sweep_table_to_decide_says_that_nothing_fits_when_the_baseline_failed():
    decision = decided(prepared(WRONG, failed=[(0.0, "fp32")]))
    assert decision.pick is None
    assert decision.reason.startswith("Nothing fits")
    assert "RuntimeError: no kernel" in decision.reason
    assert len(decision.rejected) == 3
    assert decision.to_dict()["baseline"]["accuracy"] is None


def test_sweep_table_to_decide_writes_no_nan_beside_a_baseline_that_was_not_timed():
    candidates = prepared(WRONG)
    decision = decided(candidates, unmeasured=[candidates[0].name])
    assert decision.pick["candidate"] == "small_cnn-p0-torch-int8"
    assert "baseline not known" in decision.reason
    words = [decision.reason, decision.what_it_would_take, *decision.rejected["reason"]]
    assert not re.search(r"\bnan\b", " ".join(words), re.IGNORECASE)


def test_sweep_table_to_decide_judges_all_seeds():
    decision = decided(prepared(WRONG))
    assert decision.baseline["candidate"] == "small_cnn-p0-torch-fp32"
    assert decision.baseline["seeds"] == 2
    assert decision.pick["accuracy_drop_low"] <= decision.pick["accuracy_drop"]
    assert decision.recall_checked


def test_target_keeps_budgets_as_they_were_given():
    # the names of the columns violates_{budget}mb are made from them
    assert repr(Target(memory_budgets_mb=(1, 2.0, 0.5)).memory_budgets_mb) == "(1, 2.0, 0.5)"
