"""fp32 model -> artifact file of a runtime, in a precision, checked against its parent."""

import copy
import itertools
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from edgeopt._upstream import RuntimeUnavailable, known_noise_silenced, native_stderr_logged
from edgeopt.artifact import Artifact, check_target
from edgeopt.export_executorch import write_executorch
from edgeopt.export_onnx import DEFAULT_OPTIONS, Int8Options, write_onnx
from edgeopt.files import file_sha256, replacing
from edgeopt.parity import TOLERANCE, ExportError, Parity, check_parity, parity_images
from edgeopt.quantization import collect_calibration, precision_variant, quantized_engine

SUFFIXES = {"torch": ".pt", "onnxruntime": ".onnx", "executorch": ".pte", "openvino": ".onnx"}
# Rounding differs between fp16 kernels by a few units in the last place of the largest logit.
FP16_TOLERANCE = 16 * torch.finfo(torch.float16).eps

Calibration = tuple[tuple[Tensor, Tensor], ...]


def export_artifact(
    model: nn.Module,
    path: str | Path,
    *,
    runtime: str,
    precision: str,
    input_shape: tuple[int, ...],
    calibration_loader: Iterable[tuple[Tensor, Tensor]] | None = None,
    calibration_batches: int = 10,
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
    calibration_loader : iterable of (images, labels)
        Shuffled training images; int8 only.
    tolerance : float
        Largest allowed |logit difference| between the float artifact and torch, over the largest
        |logit|; fp16 gets at least what its rounding takes. What was found stands in the artifact.
    options : Int8Options
        How static int8 ONNX is made; int8 of onnxruntime and openvino only.

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
    check_target(runtime, precision, input_shape)
    if options != DEFAULT_OPTIONS and (SUFFIXES[runtime], precision) != (".onnx", "int8"):
        raise ValueError(f"{runtime} {precision} takes no options; allowed: int8 as ONNX")
    request: dict[str, Any] = {
        "precision": precision,
        "input_shape": tuple(input_shape),
        "tolerance": tolerance,
    }
    calibration: Calibration = ()
    if precision == "int8":
        calibration = tuple(itertools.islice(calibration_loader or (), calibration_batches))
        request["batches"] = _calibration_images(calibration, calibration_batches, input_shape)
    parent = copy.deepcopy(model).cpu().eval()
    target = _with_suffix(Path(path), SUFFIXES[runtime])
    label = f"{type(model).__name__} to {target.name} ({runtime} {precision})"
    with _failure_named(label), replacing(target) as temporary:
        if runtime == "torch":
            parity = _write_torchscript(parent, temporary, calibration=calibration, **request)
        elif runtime == "executorch":
            parity = write_executorch(parent, temporary, **request)
        else:
            parity = write_onnx(parent, temporary, options=options, **request)
    size, content = target.stat().st_size, file_sha256(target)
    return Artifact(target, runtime, precision, tuple(input_shape), content, size, *parity)


def _write_torchscript(
    model: nn.Module,
    path: Path,
    *,
    precision: str,
    input_shape: tuple[int, ...],
    tolerance: float,
    calibration: Calibration,
    batches: tuple[Tensor, ...] = (),
) -> Parity:
    variant, input_precision = precision_variant(model, precision, calibration, len(batches))
    images = parity_images(input_shape)
    images = images.half() if input_precision == "fp16" else images
    silence, log = known_noise_silenced(), native_stderr_logged()
    with silence, log, quantized_engine(), torch.inference_mode():
        torch.jit.save(torch.jit.freeze(torch.jit.trace(variant, images)), path)
        if precision == "fp16":
            tolerance = max(tolerance, FP16_TOLERANCE)
        return check_parity(variant(images), torch.jit.load(path)(images), tolerance=tolerance)


def _calibration_images(
    calibration: Calibration, count: int, input_shape: tuple[int, ...]
) -> tuple[Tensor, ...]:
    batches = collect_calibration(calibration, count)
    for images in batches:
        if tuple(images.shape[1:]) != tuple(input_shape[1:]):
            raise ValueError(
                f"the calibration images are {tuple(images.shape[1:])}, "
                f"the model's input {tuple(input_shape[1:])}"
            )
    return batches


def _with_suffix(path: Path, suffix: str) -> Path:
    # Path.with_suffix would take "-p12.5" for a suffix.
    return path if path.name.endswith(suffix) else path.with_name(path.name + suffix)


@contextmanager
def _failure_named(label: str) -> Iterator[None]:
    try:
        yield
    except RuntimeUnavailable:
        raise
    except Exception as error:  # exporters and quantizers raise whatever they like
        raise ExportError(f"cannot export {label}: {type(error).__name__}: {error}") from error
