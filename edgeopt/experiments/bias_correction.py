"""Shifting biases so that rounded weights keep the mean of every channel."""

import copy
from collections.abc import Iterable
from contextlib import redirect_stdout
from io import StringIO

import torch
from onnx import ModelProto, numpy_helper
from torch import Tensor, nn

from edgeopt.quantization import calibration_images, fold_batch_norm
from edgeopt.runtimes import INPUT, prepared_fp32
from edgeopt.system import import_extra, known_noise_silenced, nncf_progress_dropped


def correct_bias(
    model: nn.Module,
    *,
    calibration: Iterable[tuple[Tensor, Tensor]],
) -> nn.Module:
    """Return a copy, BatchNorm folded, with the biases that NNCF's full bias correction finds.

    NNCF corrects layer after layer, for int8 weights per channel (Nagel et al. 2019,
    doi:10.1109/ICCV.2019.00141, section 4.2). Its own graphs leave most layers of a backbone in
    float in ONNX Runtime, so the biases are taken and the rest is quantized as usual.

    Raises
    ------
    RuntimeUnavailable
        When NNCF is not installed.
    ValueError
        When no bias of the model is found in the corrected graph.
    """
    batches = calibration_images(calibration)
    corrected = fold_batch_norm(model)
    graph = prepared_fp32(corrected, input_shape=tuple(batches[0].shape))
    found = {c.name: numpy_helper.to_array(c) for c in _quantized(graph, batches).graph.initializer}
    biases = {
        name: torch.from_numpy(copy.copy(found[name])).reshape(parameter.shape)
        for name, parameter in corrected.named_parameters()
        if name.endswith("bias") and name in found
    }
    if not biases:
        raise ValueError(f"{type(model).__name__} has no bias that can be corrected")
    corrected.load_state_dict({**corrected.state_dict(), **biases})
    return corrected


def _quantized(graph: ModelProto, batches: Iterable[Tensor]) -> ModelProto:
    nncf = import_extra("nncf")
    samples = [{INPUT: images.numpy()} for images in batches]
    with redirect_stdout(StringIO()), known_noise_silenced(), nncf_progress_dropped():
        return nncf.quantize(
            graph, nncf.Dataset(samples), subset_size=len(samples), fast_bias_correction=False
        )
