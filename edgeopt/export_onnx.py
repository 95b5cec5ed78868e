"""fp32 model -> ONNX file, in fp32 or int8, for ONNX Runtime and OpenVINO."""

import contextlib
import io
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from edgeopt._upstream import import_extra, known_noise_silenced, nncf_progress_dropped
from edgeopt.artifact import INPUT, OUTPUT
from edgeopt.host import U8S8, Int8Scheme
from edgeopt.parity import TOLERANCE, Parity, check_parity, parity_images
from edgeopt.schema import require_known

OPSET = 17
CALIBRATIONS = {"minmax": "MinMax", "percentile": "Percentile", "entropy": "Entropy"}
QUANTIZERS = ("onnxruntime", "nncf")
PARITY_BATCH = 4
NNCF_IMAGES = 300


@dataclass(frozen=True)
class Int8Options:
    """How static int8 ONNX is made: where the ranges come from, which integers, by whose tool.

    ``float_nodes`` names the nodes of the graph that stay in float.
    """

    calibration: str = "minmax"
    scheme: Int8Scheme = U8S8
    quantizer: str = "onnxruntime"
    float_nodes: frozenset[str] = frozenset()

    def __post_init__(self) -> None:
        """Refuse unknown names, and options that NNCF decides itself."""
        require_known(self.calibration, allowed=tuple(CALIBRATIONS), what="calibration method")
        require_known(self.quantizer, allowed=QUANTIZERS, what="quantizer")
        own = (self.calibration, self.scheme, self.float_nodes)
        if self.quantizer == "nncf" and own != ("minmax", U8S8, frozenset()):
            raise ValueError(
                "nncf decides calibration, scheme and float_nodes; allowed: the defaults"
            )


DEFAULT_OPTIONS = Int8Options()


def write_onnx(
    model: nn.Module,
    path: Path,
    *,
    precision: str,
    input_shape: tuple[int, ...],
    batches: Sequence[Tensor] = (),
    tolerance: float = TOLERANCE,
    options: Int8Options = DEFAULT_OPTIONS,
) -> Parity:
    """Write ``model`` with a dynamic batch axis; the fp32 graph is held to torch's logits.

    bf16 is a way of running the fp32 file, so it gets the same one. Returns how the fp32 graph
    compares with torch, whatever the precision.
    """
    with tempfile.TemporaryDirectory(prefix="edgeopt-") as folder:
        exported, prepared = Path(folder, "fp32.onnx"), Path(folder, "prepared.onnx")
        _export(model, exported, input_shape=input_shape)
        images = parity_images(input_shape, at_least=PARITY_BATCH)
        with torch.no_grad():
            logits = run_onnx(exported, images)
            parity = check_parity(model(images), logits, tolerance=tolerance)
        if precision in ("fp32", "bf16"):
            path.write_bytes(exported.read_bytes())
        elif options.quantizer == "nncf":
            _quantize_nncf(exported, path, batches=batches)
        else:
            _prepare(exported, prepared)
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


def _prepare(source: Path, path: Path) -> None:
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

    nncf = import_extra("nncf", extra="openvino")
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
