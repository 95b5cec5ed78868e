"""Every rewritten network is compared with its parent."""

import torch
from torch import Tensor, nn

SAME_FUNCTION = 1e-4  # of the largest logit


class RewriteError(ValueError):
    """A rewritten network does not compute what its parent does."""


def require_same_function(changed: nn.Module, parent: nn.Module, *, images: Tensor) -> None:
    """Raise :class:`RewriteError` unless both networks give the same logits for ``images``."""
    with torch.no_grad():
        expected, found = parent(images), changed(images)
    if found.shape != expected.shape:
        shapes = f"{list(found.shape)} and {list(expected.shape)}"
        raise RewriteError(f"{type(parent).__name__} cannot be rewritten: logits are {shapes}")
    expected, found = expected.nan_to_num(), found.nan_to_num()  # as little a number in both
    largest = expected.abs().max().clamp(min=torch.finfo().tiny)  # a head may begin at zero
    difference = float((found - expected).abs().max() / largest)
    if not difference <= SAME_FUNCTION:
        raise RewriteError(
            f"{type(parent).__name__} cannot be rewritten: its logits move by {difference:.2g} of "
            f"the largest; allowed: {SAME_FUNCTION:g}. Does its forward read a weight itself?"
        )
