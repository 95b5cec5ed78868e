"""fp32 model -> ONNX file, in fp32 or int8: what all runtimes that read ONNX share."""

import contextlib
import io
import math
import tempfile
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from edgeopt.agent.session import INPUT, OUTPUT, Artifact
from edgeopt.runtimes.contract import CALIBRATIONS, ExportError, Int8Options, Parity, Runtime
from edgeopt.system import known_noise_silenced

if TYPE_CHECKING:
    from torch import Tensor, nn

OPSET = 17
PARITY_BATCH = 4


class OnnxFileRuntime(Runtime):
    """A runtime that reads ONNX files; loading one imports neither torch nor onnx."""

    suffix = ".onnx"
    takes_int8_options = True
    takes_scheme = True

    def write(self, model: "nn.Module", path: Path, **options: Any) -> Parity:
        """Write the same ONNX file for every such runtime."""
        return write_onnx(model, path, **options)

    def weight_bytes(self, artifact: Artifact) -> int:
        """Bytes of initializers and constant nodes, int8 values and scales as they are."""
        import onnx

        graph = onnx.load(artifact.path).graph
        constants = (a.t for node in graph.node for a in node.attribute if a.HasField("t"))
        return sum(onnx.numpy_helper.to_array(t).nbytes for t in (*graph.initializer, *constants))


def einsum_macs(equation: str, inputs: Sequence[Sequence[int]]) -> int:
    """Multiply over all indices of an equation such as ``bij,bjk->bik``."""
    terms = equation.replace(" ", "").partition("->")[0].split(",")
    sizes = {}
    for term, shape in zip(terms, inputs, strict=True):
        named, tail = term.split("...") if "..." in term else (term, "")
        rest = range(len(named), len(shape) - len(tail))
        names = [*named, *(f"...{len(shape) - place}" for place in rest), *tail]
        for name, size in zip(names, shape, strict=True):
            sizes[name] = max(size, sizes.get(name, 1))
    return math.prod(sizes.values()) if len(terms) > 1 else 0


def write_onnx(
    model: "nn.Module",
    path: Path,
    *,
    precision: str,
    input_shape: tuple[int, ...],
    calibration: Sequence[tuple["Tensor", "Tensor"]],
    tolerance: float,
    options: Int8Options,
) -> Parity:
    """Write ``model`` with a dynamic batch axis, quantized by ONNX Runtime's own tool.

    bf16 is a way of running the fp32 file, so it gets the same one. Returns how the fp32 graph
    compares with torch, to whose logits it is held, whatever the precision.
    """
    import torch
    from onnxruntime.quantization import QuantType, quantize_dynamic
    from onnxruntime.quantization.shape_inference import quant_pre_process

    from edgeopt.runtimes.parity import check_parity, parity_images

    images = parity_images(input_shape, at_least=PARITY_BATCH)
    with tempfile.TemporaryDirectory(prefix="edgeopt-") as folder:
        exported, prepared = Path(folder, "fp32.onnx"), Path(folder, "prepared.onnx")
        _export(model, exported, parity_images(input_shape))
        with torch.no_grad():
            logits = run_onnx(exported, images)
            parity = check_parity(model(images), logits, tolerance=tolerance)
        if precision in ("fp32", "bf16"):
            path.write_bytes(exported.read_bytes())
            return parity
        # Fold and infer what the static quantizer wants, under the tensor names that it keeps.
        quant_pre_process(exported, prepared)
        if precision == "int8":
            batches = [images for images, _ in calibration]
            left = _float_nodes(prepared, model, options)
            _quantize_static(prepared, path, batches=batches, options=options, left=left)
        elif precision == "int8-dynamic":
            # ConvInteger of ONNX Runtime's CPU provider takes unsigned weights only.
            with known_noise_silenced():
                quantize_dynamic(prepared, path, weight_type=QuantType.QUInt8)
        else:
            allowed = "fp32, bf16, int8, int8-dynamic"
            raise ExportError(f"precision is {precision!r}; allowed: {allowed}")
    _drop_annotations(path)
    return parity


def run_onnx(path: Path, images: "Tensor") -> np.ndarray:
    """Logits of an ONNX file by ONNX Runtime."""
    import onnxruntime

    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    return session.run([OUTPUT], {INPUT: images.numpy()})[0]


def _export(model: "nn.Module", path: Path, example: "Tensor") -> None:
    import torch

    from edgeopt.runtimes.formats.onnx_scopes import flat, name_by_path

    # The TorchScript exporter: quantize_dynamic fails on the graphs of the dynamo one.
    with known_noise_silenced():
        torch.onnx.export(
            flat(model),
            (example,),
            path,
            dynamo=False,
            opset_version=OPSET,
            input_names=[INPUT],
            output_names=[OUTPUT],
            dynamic_axes={INPUT: {0: "batch"}, OUTPUT: {0: "batch"}},
        )
    if isinstance(model, torch.fx.GraphModule):
        name_by_path(path)


def _float_nodes(path: Path, model: "nn.Module", options: Int8Options) -> set[str]:
    """Nodes around the layers that stay in float, and inside the modules that always do."""
    import onnx

    from edgeopt.quantization import float_modules
    from edgeopt.runtimes.formats.onnx_scopes import nodes_around, nodes_of_modules

    graph = onnx.load(path).graph
    around = (nodes_around(graph, layer) for layer in options.float_layers)
    inside = {*float_modules(model), *options.float_alone}
    return nodes_of_modules(graph, inside).union(*around)


class _BatchReader:
    """Hands calibration batches to ONNX Runtime, a range of them at a time."""

    def __init__(self, batches: Sequence["Tensor"]) -> None:
        self._batches = batches
        self._pending: Iterator[Tensor] = iter(batches)

    def __len__(self) -> int:
        return len(self._batches)

    def set_range(self, start_index: int, end_index: int) -> None:
        self._pending = iter(self._batches[start_index:end_index])

    def get_next(self) -> dict[str, np.ndarray] | None:
        images = next(self._pending, None)
        return None if images is None else {INPUT: images.numpy()}


def _quantize_static(
    source: Path,
    path: Path,
    *,
    batches: Sequence["Tensor"],
    options: Int8Options,
    left: Collection[str],
) -> None:
    from onnxruntime import quantization as ort

    kinds = {"uint8": ort.QuantType.QUInt8, "int8": ort.QuantType.QInt8}
    # Calibrators print their progress and offer no switch for it.
    with contextlib.redirect_stdout(io.StringIO()), known_noise_silenced():
        ort.quantize_static(
            source,
            path,
            _BatchReader(batches),
            quant_format=ort.QuantFormat.QDQ,
            per_channel=True,
            reduce_range=options.integers.reduce_range,
            activation_type=kinds[options.integers.activations],
            weight_type=kinds[options.integers.weights],
            calibrate_method=ort.CalibrationMethod[CALIBRATIONS[options.calibration]],
            nodes_to_exclude=sorted(left),
            # One batch of activations in memory at a time, whatever the method's name says.
            extra_options={"CalibStridedMinMax": 1},
        )


def _drop_annotations(path: Path) -> None:
    """Drop inferred shapes and node names, which no runtime reads and small files feel."""
    import onnx

    graph_file = onnx.load(path)
    graph_file.graph.ClearField("value_info")
    for node in graph_file.graph.node:
        node.ClearField("name")
    onnx.save(graph_file, path)
