"""Bias correction: only biases move, and the function stays near."""

import copy

import numpy as np
import onnxruntime
import pytest
import torch
from torch import nn

from edgeopt.quantization.bias_correction import correct_bias
from edgeopt.runtimes.contract import Int8Options
from edgeopt.runtimes.export import export_artifact
from edgeopt.system.int8 import U8S8, U8S8_REDUCED
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


def rounded_to_one_side(model: nn.Module, steps: int) -> nn.Module:
    """Put every weight of conv2 0.4 steps above a level of its channel: all are rounded down."""
    shifted = copy.deepcopy(model)
    weights = shifted.conv2.weight.detach().flatten(1)
    largest = weights.abs().amax(1, keepdim=True)
    step = largest / steps
    moved = ((weights / step).round().clamp(1 - steps, steps - 2) + 0.4) * step
    moved = torch.where(weights.abs() == largest, weights, moved)
    shifted.load_state_dict(
        {**shifted.state_dict(), "conv2.weight": moved.reshape_as(shifted.conv2.weight)}
    )
    return shifted.eval()


@pytest.mark.parametrize(("scheme", "steps"), [(U8S8, 127), (U8S8_REDUCED, 64)])
def test_correct_bias_lowers_the_mean_error_of_int8_per_logit(scheme, steps, tmp_path) -> None:
    calibration, validation = splits()
    model = rounded_to_one_side(trained_cnn(), steps)
    images = validation.take(64)
    with torch.no_grad():
        expected = model(images).numpy()
    batches = [*calibration.loader(32)]

    def mean_error(network: nn.Module, name: str) -> float:
        """In float, rounded as the file says, because integer products saturate on some CPUs."""
        given = {"precision": "int8", "input_shape": (1, 1, 28, 28), "calibration": batches}
        given["options"] = Int8Options(scheme=scheme)
        file = export_artifact(network, tmp_path / name, runtime="onnxruntime", **given)
        plain = onnxruntime.SessionOptions()
        plain.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
        session = onnxruntime.InferenceSession(file.path, plain)
        found = [session.run(None, {"images": image[None]})[0][0] for image in images.numpy()]
        return float(np.abs((np.array(found) - expected).mean(axis=0)).mean())

    corrected = correct_bias(model, calibration=batches, weight_steps=scheme.weight_steps)
    assert mean_error(corrected, "corrected") < 0.5 * mean_error(model, "plain")


def test_a_model_without_biases_is_refused() -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(784, CLASSES, bias=False)).eval()
    with pytest.raises(ValueError, match="Sequential has no bias that can be corrected"):
        correct_bias(model, calibration=splits()[0].loader(32))


def test_an_empty_calibration_set_is_refused() -> None:
    with pytest.raises(ValueError, match="holds no images"):
        correct_bias(trained_cnn(), calibration=[])
