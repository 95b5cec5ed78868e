"""Bias correction: only biases move, and the function stays near."""

import pytest
import torch
from torch import nn

from edgeopt.experiments.bias_correction import correct_bias
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


def test_a_model_without_biases_is_refused() -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(784, CLASSES, bias=False)).eval()
    with pytest.raises(ValueError, match="Sequential has no bias that can be corrected"):
        correct_bias(model, calibration=splits()[0].loader(32))


def test_an_empty_calibration_set_is_refused() -> None:
    with pytest.raises(ValueError, match="holds no images"):
        correct_bias(trained_cnn(), calibration=[])
