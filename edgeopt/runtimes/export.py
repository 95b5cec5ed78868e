"""fp32 model -> artifact file of a runtime, in a precision, checked against its parent."""

import copy
import logging
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from edgeopt.agent.session import Artifact
from edgeopt.data import Split
from edgeopt.quantization import calibration_images
from edgeopt.runtimes.contract import DEFAULT_OPTIONS, ExportError, Int8Options
from edgeopt.runtimes.parity import TOLERANCE
from edgeopt.runtimes.registry import require_precision, runtime_named
from edgeopt.system import RuntimeUnavailable, file_sha256, replacing

logger = logging.getLogger(__name__)

SIMULATED_BATCH = 64


def export_artifact(
    model: nn.Module,
    path: str | Path,
    *,
    runtime: str,
    precision: str,
    input_shape: tuple[int, ...],
    calibration: Iterable[tuple[Tensor, Tensor]] | None = None,
    tolerance: float = TOLERANCE,
    options: Int8Options = DEFAULT_OPTIONS,
) -> Artifact:
    """Quantize ``model`` as its runtime wants it and write it, whole or not at all.

    Parameters
    ----------
    path : Path
        The suffix of the runtime is added where it is missing, missing folders are made.
    input_shape : tuple of int
        [B, C, H, W] that the artifact will be called with.
    calibration : iterable of (images, labels)
        Batches of training images of every class, all of which are used; int8 only.
    tolerance : float
        Largest allowed difference of a logit between the float artifact and torch, over the largest
        logit; fp16 gets at least what its rounding takes. What was found stands in the artifact.
    options : Int8Options
        How static int8 is made.

    Raises
    ------
    ValueError
        When the runtime has no such precision, or int8 gets a calibration set without images, of
        one class, or of another shape.
    ExportError
        When the exporter or quantizer fails on the model, or the logits differ.
    RuntimeUnavailable
        When an optional package is not installed.
    """
    require_precision(runtime, precision)
    if len(input_shape) != 4 or min(input_shape) < 1:
        raise ValueError(f"input_shape is {tuple(input_shape)}; allowed: [B, C, H, W], each >= 1")
    target = runtime_named(runtime)
    _check_options(options, model=model, runtime=runtime, precision=precision)
    batches = tuple(calibration or ()) if precision == "int8" else ()
    if precision == "int8":
        _check_calibration(batches, input_shape)
    file = Path(path)
    if not file.name.endswith(target.suffix):  # with_suffix would take "-p12.5" for a suffix
        file = file.with_name(file.name + target.suffix)
    label = f"{type(model).__name__} to {file.name} ({runtime} {precision})"
    with _failure_named(label), replacing(file) as temporary:
        parity = target.write(
            copy.deepcopy(model).cpu().eval(),
            temporary,
            precision=precision,
            input_shape=tuple(input_shape),
            calibration=batches,
            tolerance=tolerance,
            options=options,
        )
    size, content = file.stat().st_size, file_sha256(file)
    return Artifact(file, runtime, precision, tuple(input_shape), content, size, *parity)


def simulated_classes(
    model: nn.Module,
    split: Split,
    *,
    runtime: str,
    calibration: Iterable[tuple[Tensor, Tensor]],
    options: Int8Options = DEFAULT_OPTIONS,
) -> np.ndarray | None:
    """Classes [N] by static int8 as torch computes it, before a runtime writes its file.

    An estimate of what the file will answer. None where the runtime has no such form, or where that
    fails on the model, which is logged: then the file tells.
    """
    _check_options(options, model=model, runtime=runtime, precision="int8")
    batches, own = (*calibration,), copy.deepcopy(model).cpu().eval()
    _check_calibration(batches, (1, *split.shape))
    try:
        network = runtime_named(runtime).simulated(own, calibration=batches, options=options)
        if network is None:
            return None
        with torch.no_grad():
            logits = [network(images) for images in split.batches(SIMULATED_BATCH)]
    except Exception as error:  # exporters and quantizers raise whatever they like
        what = "%s: int8 of %s cannot be simulated: %s: %s"
        logger.info(what, runtime, type(model).__name__, type(error).__name__, error)
        return None
    return torch.cat(logits).argmax(1).numpy()


def _check_options(options: Int8Options, *, model: nn.Module, runtime: str, precision: str) -> None:
    target = runtime_named(runtime)
    scheme = None if target.takes_scheme else options.scheme
    plain = replace(options, float_layers=frozenset(), scheme=scheme)
    if options != DEFAULT_OPTIONS and precision != "int8":
        raise ValueError(f"{runtime} {precision} takes no options; allowed: int8")
    if plain != DEFAULT_OPTIONS and not target.takes_int8_options:
        own = "float_layers and scheme" if target.takes_scheme else "float_layers"
        raise ValueError(f"{runtime} takes {own} alone; calibration and float_alone: int8 as ONNX")
    named = options.float_layers | options.float_alone
    if strange := sorted(named - {name for name, _ in model.named_modules()}):
        raise ValueError(f"float layers hold {strange[0]!r}, no module of {type(model).__name__}")


def _check_calibration(
    batches: tuple[tuple[Tensor, Tensor], ...], input_shape: tuple[int, ...]
) -> None:
    for images in calibration_images(batches):
        if tuple(images.shape[1:]) != tuple(input_shape[1:]):
            raise ValueError(
                f"the calibration images are {tuple(images.shape[1:])}, "
                f"the model's input {tuple(input_shape[1:])}"
            )


@contextmanager
def _failure_named(label: str) -> Iterator[None]:
    try:
        yield
    except RuntimeUnavailable:
        raise
    except Exception as error:  # exporters and quantizers raise whatever they like
        raise ExportError(f"cannot export {label}: {type(error).__name__}: {error}") from error
