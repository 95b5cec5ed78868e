"""The one place that imports torchvision, so that a CPU-only torch can use it.

torchvision's wheel is compiled against a CUDA torch. Beside a CPU-only torch its operators cannot
load, and ``import torchvision`` dies while it registers shape functions for ``torchvision::nms``
and ``torchvision::qnms``. Declaring the two schemas first is enough for models, data sets and
transforms. Where the compiled operators do load, nothing is declared.
"""

import importlib.util
from pathlib import Path

import torch

_BOX_OPERATORS = ("nms", "qnms")
_SCHEMA = "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"


def _load_compiled_operators() -> None:
    """Load torchvision's extension where it fits this torch; a second load changes nothing."""
    spec = importlib.util.find_spec("torchvision")
    if spec is None or spec.origin is None:
        raise ModuleNotFoundError("torchvision is not installed; edgeopt needs it")
    for library in sorted(Path(spec.origin).parent.glob("_C.*")):
        try:
            torch.ops.load_library(str(library))
        except OSError:
            # The CUDA or torch libraries it was linked with are absent: the case handled below.
            continue


def _declare_missing_operators() -> torch.library.Library | None:
    """Declare the operators' schemas where they are missing; a Library dies with its handle."""
    missing = [name for name in _BOX_OPERATORS if not hasattr(torch.ops.torchvision, name)]
    if not missing:
        return None
    fragment = torch.library.Library("torchvision", "FRAGMENT")
    for name in missing:
        fragment.define(f"{name}{_SCHEMA}")
    return fragment


_load_compiled_operators()
DECLARED_OPERATORS = _declare_missing_operators()

from torchvision import datasets, models  # noqa: E402
from torchvision.transforms import v2 as transforms  # noqa: E402

__all__ = ["datasets", "models", "transforms"]
