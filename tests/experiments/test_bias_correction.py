"""Bias correction: only biases move, and the function stays near."""

import numpy as np
import pytest
import torch
from torch import nn

from edgeopt.experiments.bias_correction import correct_bias
from edgeopt.runtimes.contract import Int8Options
from edgeopt.runtimes.export import export_artifact
from edgeopt.runtimes.registry import load_session, session_logits
from edgeopt.system.host import host_facts, int8_scheme
from tests.specimens import CLASSES, splits, trained_cnn


def test_only_biases_change_and_the_function_stays_near() -> None:
    model = trained_cnn()
    corrected = correct_bias(model, calibration=splits()[0].loader(32))
    state = model.state_dict()
    changed = {n for n, value in corrected.state_dict().items() if not torch.equal(value, state[n])}
    assert changed
    assert all(name.endswith("bias") for name in changed)
    images = splits()[1].take(64)
    with torch.no_grad():
        assert (corrected(images).argmax(1) == model(images).argmax(1)).float().mean() > 0.95


def test_correct_bias_lowers_the_mean_error_of_int8_per_logit(tmp_path) -> None:
    calibration, validation = splits()
    model = trained_cnn()
    images = validation.take(len(validation))
    with torch.no_grad():
        expected = model(images).numpy()
    batches = [*calibration.loader(32)]
    exact = Int8Options(scheme=int8_scheme(host_facts()["isa"]))  # products that do not saturate

    def mean_error(network: nn.Module, name: str) -> float:
        options = {"precision": "int8", "input_shape": (1, 1, 28, 28), "calibration": batches}
        options["options"] = exact
        file = export_artifact(network, tmp_path / name, runtime="onnxruntime", **options)
        found = session_logits(load_session(file), images.numpy())
        return float(np.abs((found - expected).mean(axis=0)).mean())

    corrected = correct_bias(model, calibration=batches)
    assert mean_error(corrected, "corrected") < 0.5 * mean_error(model, "plain")


def test_a_model_without_biases_is_refused() -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(784, CLASSES, bias=False)).eval()
    with pytest.raises(ValueError, match="Sequential has no bias that can be corrected"):
        correct_bias(model, calibration=splits()[0].loader(32))


def test_an_empty_calibration_set_is_refused() -> None:
    with pytest.raises(ValueError, match="holds no images"):
        correct_bias(trained_cnn(), calibration=[])
