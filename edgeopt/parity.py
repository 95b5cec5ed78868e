"""Hold an exported model's logits to those of its torch parent."""

import numpy as np
import torch
from torch import Tensor


class ExportError(RuntimeError):
    """A model could not be written for a runtime."""


def parity_images(input_shape: tuple[int, ...], *, at_least: int = 1) -> Tensor:
    """Return the same random images [max(B, at_least), C, H, W] in [0, 1] on every call."""
    count = max(input_shape[0], at_least)
    return torch.rand(count, *input_shape[1:], generator=torch.Generator().manual_seed(0))


def check_parity(expected: Tensor, actual: Tensor | np.ndarray, *, tolerance: float) -> None:
    """Raise ``ExportError`` when max |logit difference| exceeds ``tolerance`` or is not finite."""
    actual = torch.as_tensor(actual)
    if expected.shape != actual.shape:
        raise ExportError(
            f"the exported model returns {tuple(actual.shape)}, torch {tuple(expected.shape)}"
        )
    difference = (expected.float() - actual.float()).abs().max().item()
    if not difference <= tolerance:
        raise ExportError(
            f"the exported logits differ from torch's by up to {difference:.3g}; "
            f"allowed: {tolerance:.3g}"
        )
