from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from torch import nn

from edgeopt.candidates import Candidate, CandidateSpec
from edgeopt.experiments import (
    accuracy_over_seeds,
    recall_table,
    run_sweep,
    with_energy,
    with_seeds,
)
from edgeopt.model import SmallCNN
from edgeopt.training import fit

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


def test_derived_columns_follow_from_the_measured_ones(sweep):
    np.testing.assert_allclose(sweep["energy_proxy_j"], sweep["latency_ms"] / 1000 * 2.0)
    np.testing.assert_allclose(sweep["throughput_sps"], 1000 / sweep["latency_ms"])
    np.testing.assert_allclose(sweep["memory_mb"], sweep["weight_bytes"] / 2**20)
    assert sweep["accepted"].equals(sweep["memory_mb"] <= 0.004)
    assert sweep["samples"].eq(150).all()
    assert sweep["latency_p95_ms"].ge(sweep["latency_p50_ms"]).all()


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
    scaled = with_energy(table, power_watts=3.0, latency_multiplier=4.0, batch_size=2)
    assert scaled.loc[0, ["latency_ms", "latency_p95_ms", "throughput_sps"]].tolist() == [4, 8, 250]
    assert scaled["latency_kind"].eq("estimated").all()
    assert scaled.loc[0, "energy_proxy_j"] == pytest.approx(0.004 * 3)
    # 2 images of 10 MACs, half of them at 0.3 pJ and half at fp32's 4.6; 12 bytes at 162.5 pJ
    assert scaled.loc[0, "energy_model_j"] == pytest.approx(
        (10 * 0.3 + 10 * 4.6 + 12 * 162.5) / 1e12
    )
    assert scaled.loc[1, ["energy_proxy_j", "energy_model_j"]].isna().all()
    assert with_energy(table, power_watts=3.0)["latency_kind"].eq("measured").all()


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
        ({"power_watts": 0.0}, "power_watts is 0.0; allowed: above 0"),
        ({"active_memory_budget_mb": -1.0}, "memory budget is -1.0 MiB; allowed: above 0"),
        ({"benchmark_repeats": 0}, "rounds is 0; allowed: 1"),
    ],
)
def test_bad_input_is_named(arguments, change, message):
    with pytest.raises(ValueError, match=message):
        run_sweep(**{**arguments, **change})


def candidate(name_seed, predictions):
    spec = CandidateSpec(0.0, "fp32", seed=name_seed)
    return Candidate(spec, logits=np.eye(2)[predictions])


def test_accuracy_over_seeds_is_their_mean():
    labels = np.array([0, 1, 0, 1])
    seeds = [candidate(0, [0, 1, 0, 1]), candidate(1, [0, 1, 1, 0])]
    sweep = pd.DataFrame(
        {
            "candidate": [seeds[0].name, "other"],
            "accuracy": [1.0, 0.5],
            "accuracy_low": [0.6, 0.2],
            "accuracy_high": [1.0, 0.8],
            "status": "ok",
        }
    )
    joined = with_seeds(sweep, seeds, labels=labels)
    assert joined["accuracy"].tolist() == pytest.approx([0.75, np.nan], nan_ok=True)
    assert joined["seeds"].tolist()[0] == 2


def test_a_candidate_whose_first_seed_failed_has_no_accuracy():
    labels = np.array([0, 1])
    seeds = [replace(candidate(0, [0, 1]), logits=None, error="boom"), candidate(1, [0, 1])]
    sweep = pd.DataFrame({"candidate": [seeds[0].name], "accuracy": np.nan, "status": "failed"})
    columns = sweep.assign(accuracy_low=np.nan, accuracy_high=np.nan)
    assert with_seeds(columns, seeds, labels=labels)["accuracy"].isna().all()


def test_one_seed_keeps_the_interval_over_images():
    labels = np.array([0, 1, 0, 1])
    only = candidate(0, [0, 1, 0, 0])
    sweep = pd.DataFrame(
        {
            "candidate": [only.name],
            "accuracy": [0.75],
            "accuracy_low": [0.3],
            "accuracy_high": [0.95],
            "status": "ok",
        }
    )
    joined = with_seeds(sweep, [only], labels=labels)
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


def test_recalls_of_every_class_and_candidate():
    table = recall_table(
        [candidate(0, [0, 0, 0, 1])], np.array([0, 1, 0, 1]), class_names=["a", "b"]
    )
    assert table["recall"].tolist() == [1.0, 0.5]
    assert table["candidate"].unique().tolist() == ["small_cnn-p0-torch-fp32"]
