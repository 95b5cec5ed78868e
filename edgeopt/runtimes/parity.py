"""Hold an exported model's logits to those of its torch parent."""

import numpy as np
import torch
from torch import Tensor

from edgeopt.runtimes.contract import ExportError, Parity

TOLERANCE = 1e-4  # of the largest logit


def parity_images(input_shape: tuple[int, ...], *, at_least: int = 1) -> Tensor:
    """Return the same random images [max(B, at_least), C, H, W] in [0, 1] on every call."""
    count = max(input_shape[0], at_least)
    return torch.rand(count, *input_shape[1:], generator=torch.Generator().manual_seed(0))


def check_parity(expected: Tensor, actual: Tensor | np.ndarray, *, tolerance: float) -> Parity:
    """Compare logits [N, classes] with torch's, in proportion to torch's largest.

    Two classes that torch sets apart by no more than twice the tolerance, one up and one down, are
    a tie, and either is the same answer: within the tolerance all classes agree.

    Raises
    ------
    ExportError
        When the shapes differ, a logit is not finite, or the largest difference exceeds
        ``tolerance`` of the largest logit; with the share of images that get the same class.
    """
    actual = torch.as_tensor(actual)
    if expected.shape != actual.shape:
        raise ExportError(
            f"the exported model returns {tuple(actual.shape)}, torch {tuple(expected.shape)}"
        )
    largest = expected.double().abs().max().item()
    parity = _compare(expected.double(), actual.double(), largest=largest, tolerance=tolerance)
    if not parity.difference <= tolerance:
        raise ExportError(
            f"the exported logits differ from torch's by up to {parity.difference:.3g} of the "
            f"largest, {largest:.3g}, and give the same class on {parity.agreement:.1%} of "
            f"{len(expected)} images; allowed: {tolerance:.3g} and 100%"
        )
    return parity


def relative_difference(expected: Tensor, actual: Tensor) -> float:
    """Largest |difference| of two tensors of logits over the largest |expected|."""
    largest = expected.double().abs().max().item()
    apart = (expected.double() - actual.double()).abs().max().item()
    return apart / largest if largest else apart


def _compare(expected: Tensor, actual: Tensor, *, largest: float, tolerance: float) -> Parity:
    difference = relative_difference(expected, actual)
    answers = actual.flatten(1).argmax(1, keepdim=True)
    given = expected.flatten(1)
    behind = given.max(1, keepdim=True).values - given.gather(1, answers)
    return Parity(difference, (behind <= 2 * tolerance * largest).double().mean().item())
