import numpy as np
import pandas as pd

from edgeopt.plots import readings


def test_training_history_says_where_the_accuracies_end():
    history = pd.DataFrame(
        {
            "seed": [0, 0, 1, 1],
            "train_accuracy": [0.1, 0.8, 0.1, 0.9],
            "val_accuracy": [0.1, 0.7, 0.1, 0.9],
        }
    )
    words = readings.training_history(history, model="net")
    assert "85.0% on training and 80.0% on validation" in words


def test_confusion_matrix_names_the_largest_mistake():
    classes = ["cat", "dog", "cow"]
    table = pd.DataFrame([[90, 2, 8], [1, 99, 0], [5, 0, 95]], index=classes, columns=classes)
    words = readings.confusion_matrix(table, model="net")
    assert "cat is taken for cow: 8 of 100 images" in words


def test_filter_norms_name_the_layer_whose_filters_differ_most():
    norms = pd.DataFrame({"layer": ["a", "a", "b", "b"], "l1_norm": [1.0, 2.0, 1.0, 10.0]})
    assert "in b the weakest has 10% of the strongest" in readings.filter_norms(norms, model="net")


def test_pruning_curves_read_the_highest_level():
    table = pd.DataFrame(
        {
            "pruning_level": [0.0, 0.5, 0.5, 0.5],
            "recipe": ["baseline", "fine-tuned", "fine-tuned", "scratch"],
            "accuracy": [0.9, 0.8, 0.9, 0.7],
        }
    )
    words = readings.pruning_curves(table, model="net")
    assert words == "net with 50% of its channels pruned: fine-tuned 85.0%, scratch 70.0%."


def test_quantization_reads_the_worst_int8():
    table = pd.DataFrame(
        {
            "precision": ["fp32", "int8", "int8"],
            "weight_bytes": [100, 25, 30],
            "agreement": [1.0, 0.99, 0.98],
        }
    )
    words = readings.quantization(table, model="net")
    assert "int8 takes 30% of fp32's weights and answers 98.0% or more" in words
    alone = readings.quantization(table.head(1), model="net")
    assert alone == "Weights of net in each precision of each runtime."


def test_diagnosis_bars_read_the_worst_tensor():
    table = pd.DataFrame({"layer": ["conv1", "logits"], "accuracy_alone": [0.1, 0.9]})
    words = readings.diagnosis_bars(table, model="net")
    assert "with conv1 alone in int8 10.0% is left" in words


def test_drift_reads_the_slowest_round():
    samples = pd.DataFrame(
        {
            "candidate": list("aaabbb"),
            "round": [0, 1, 2] * 2,
            "latency_ms": [1.0, 1.0, 1.5, 2.0, 2.0, 3.0],
        }
    )
    assert "the slowest round, 2, took the median candidate 1.50 times" in readings.drift(samples)


def test_latency_budget_and_energy_read_the_sweep():
    sweep = pd.DataFrame(
        {
            "candidate": ["a", "b", "c"],
            "latency_p50_ms": [1.0, 20.0, np.nan],
            "accepted": [True, False, True],
            "energy_proxy_j": [1.0, 2.0, 3.0],
            "energy_model_j": [3.0, 2.0, 1.0],
        }
    )
    assert "a takes 1 ms, b 20 ms" in readings.latency_distribution(sweep)
    assert "2 of 3 candidates fit" in readings.budgets(sweep)
    assert "correlate by \N{MINUS SIGN}1.00" in readings.energy_tiers(sweep)


def test_precision_ratios_name_what_is_slower_than_fp32():
    ratios = pd.DataFrame(
        {
            "runtime": ["torch", "onnxruntime", "openvino"],
            "precision": ["int8", "int8", "bf16"],
            "latency_ratio": [0.5, 1.9, 1.004],
        }
    )
    words = readings.precision_ratios(ratios)
    assert words == "Slower than fp32 in the same runtime: ONNX Runtime int8 (1.90 times)."
    assert readings.precision_ratios(ratios.head(1)).endswith("runtime: none.")


def test_per_class_change_names_the_class_that_lost_most():
    change = pd.DataFrame({"class_name": ["x", "y"], "before": [0.9, 0.8], "after": [0.95, 0.5]})
    words = readings.per_class_change(change, before="a", after="b")
    assert "y loses most, 30.0 points" in words


def test_layers_and_roofline_name_the_extremes():
    layers = pd.DataFrame({"layer": ["a", "b"], "macs": [90, 10], "measured_share": [0.4, 0.6]})
    assert "differ most in a, by 50 points" in readings.layer_breakdown(layers, model="net")
    summary = pd.DataFrame(
        {
            "candidate": ["slow", "near"],
            "compute_utilization": [0.1, 0.2],
            "bandwidth_utilization": [0.3, 0.7],
        }
    )
    assert "near comes nearest, at 70%" in readings.roofline(summary)
