"""fp32 model -> ONNX file, in fp32 or int8: what all runtimes that read ONNX share."""

import contextlib
import io
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from edgeopt.runtimes.contract import CALIBRATIONS, INPUT, NNCF, OUTPUT, Int8Options
from edgeopt.runtimes.parity import Parity, check_parity, parity_images
from edgeopt.system import import_extra, known_noise_silenced, nncf_progress_dropped

OPSET = 17
PARITY_BATCH = 4
NNCF_IMAGES = 300


def write_onnx(
    model: nn.Module,
    path: Path,
    *,
    precision: str,
    input_shape: tuple[int, ...],
    calibration: Sequence[tuple[Tensor, Tensor]],
    tolerance: float,
    options: Int8Options,
) -> Parity:
    """Write ``model`` with a dynamic batch axis; the fp32 graph is held to torch's logits.

    bf16 is a way of running the fp32 file, so it gets the same one. Returns how the fp32 graph
    compares with torch, whatever the precision.
    """
    batches = [images for images, _ in calibration]
    with tempfile.TemporaryDirectory(prefix="edgeopt-") as folder:
        exported, prepared = Path(folder, "fp32.onnx"), Path(folder, "prepared.onnx")
        _export(model, exported, input_shape=input_shape)
        images = parity_images(input_shape, at_least=PARITY_BATCH)
        with torch.no_grad():
            logits = run_onnx(exported, images)
            parity = check_parity(model(images), logits, tolerance=tolerance)
        if precision in ("fp32", "bf16"):
            path.write_bytes(exported.read_bytes())
        elif options.quantizer == NNCF:
            _quantize_nncf(exported, path, batches=batches)
        else:
            prepare_for_quantizer(exported, prepared)
            if precision == "int8":
                _quantize_static(prepared, path, batches=batches, options=options)
            else:
                _quantize_dynamic(prepared, path)
            _drop_annotations(path)
    return parity


def run_onnx(path: Path, images: Tensor) -> np.ndarray:
    """Logits of an ONNX file by ONNX Runtime."""
    import onnxruntime

    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    return session.run([OUTPUT], {INPUT: images.numpy()})[0]


def _export(model: nn.Module, path: Path, *, input_shape: tuple[int, ...]) -> None:
    # The TorchScript exporter: quantize_dynamic fails on the graphs of the dynamo one.
    with known_noise_silenced():
        torch.onnx.export(
            model,
            (parity_images(input_shape),),
            path,
            dynamo=False,
            opset_version=OPSET,
            do_constant_folding=True,
            input_names=[INPUT],
            output_names=[OUTPUT],
            dynamic_axes={INPUT: {0: "batch"}, OUTPUT: {0: "batch"}},
        )


def prepare_for_quantizer(source: Path, path: Path) -> None:
    """Fold and infer what the static quantizer wants, under the tensor names that it keeps."""
    from onnxruntime.quantization.shape_inference import quant_pre_process

    quant_pre_process(source, path)


class _BatchReader:
    """Hands calibration batches to ONNX Runtime, a range of them at a time."""

    def __init__(self, batches: Sequence[Tensor]) -> None:
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
    source: Path, path: Path, *, batches: Sequence[Tensor], options: Int8Options
) -> None:
    from onnxruntime import quantization as ort

    kinds = {"uint8": ort.QuantType.QUInt8, "int8": ort.QuantType.QInt8}
    with _stdout_dropped():
        ort.quantize_static(
            source,
            path,
            _BatchReader(batches),
            quant_format=ort.QuantFormat.QDQ,
            per_channel=True,
            reduce_range=options.scheme.reduce_range,
            activation_type=kinds[options.scheme.activations],
            weight_type=kinds[options.scheme.weights],
            calibrate_method=ort.CalibrationMethod[CALIBRATIONS[options.calibration]],
            nodes_to_exclude=sorted(options.float_nodes),
            # One batch of activations in memory at a time, whatever the method's name says.
            extra_options={"CalibStridedMinMax": 1},
        )


def _quantize_dynamic(source: Path, path: Path) -> None:
    from onnxruntime import quantization as ort

    # ConvInteger of ONNX Runtime's CPU provider takes unsigned weights only.
    ort.quantize_dynamic(source, path, weight_type=ort.QuantType.QUInt8)


def _drop_annotations(path: Path) -> None:
    """Drop inferred shapes and node names, which no runtime reads and small files feel."""
    import onnx

    graph_file = onnx.load(path)
    graph_file.graph.ClearField("value_info")
    for node in graph_file.graph.node:
        node.ClearField("name")
    onnx.save(graph_file, path)


def _quantize_nncf(source: Path, path: Path, *, batches: Sequence[Tensor]) -> None:
    import onnx

    nncf = import_extra("nncf")
    images = torch.cat(list(batches))[:NNCF_IMAGES]
    samples = [{INPUT: image.numpy()} for image in images.split(1)]
    with _stdout_dropped(), known_noise_silenced(), nncf_progress_dropped():
        quantized = nncf.quantize(
            onnx.load(source), nncf.Dataset(samples), subset_size=len(samples)
        )
    onnx.save(quantized, path)


@contextlib.contextmanager
def _stdout_dropped() -> Iterator[None]:
    # Calibrators print their progress and offer no switch for it.
    with contextlib.redirect_stdout(io.StringIO()):
        yield


def onnx_weight_bytes(path: Path) -> int:
    """Bytes of initializers and constant nodes, int8 values and scales as they are."""
    import onnx

    graph = onnx.load(path).graph
    constants = (a.t for node in graph.node for a in node.attribute if a.HasField("t"))
    return sum(onnx.numpy_helper.to_array(t).nbytes for t in (*graph.initializer, *constants))
