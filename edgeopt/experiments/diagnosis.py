"""Why an int8 model lost accuracy: every quantized tensor, worst first."""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import onnx
import pandas as pd
from onnx import ModelProto
from torch import Tensor, nn
from tqdm import tqdm

from edgeopt.data import Split, in_batches
from edgeopt.runtimes import (
    INPUT,
    OUTPUT,
    Artifact,
    Quantizer,
    layer_name,
    layer_width,
    prepared_fp32,
    quantize_only,
    read_quantizers,
    session_options,
    source_layer,
)
from edgeopt.system import usable_cores

COLUMNS = (
    "tensor",
    "layer",
    "worst_channel",
    "minimum",
    "maximum",
    "outlier_ratio",
    "sqnr_alone_db",
    "sqnr_accumulated_db",
    "saturated_share",
    "accuracy_alone",
)


def diagnose(
    model: nn.Module,
    artifact: Artifact,
    images: Tensor | Split,
    *,
    batch_size: int = 32,
) -> pd.DataFrame:
    """Compare a static int8 ONNX artifact with the fp32 model that it was made from.

    One row per quantized activation tensor, the one that costs most accuracy first:

    - ``layer``, ``worst_channel``: the layer whose output channels the tensor holds, and the
      channel with the widest range;
    - ``outlier_ratio``: that channel's largest magnitude over the median channel's;
    - ``sqnr_alone_db``, ``sqnr_accumulated_db``: signal-to-quantization-noise ratio of the tensor
      rounded by itself, and inside the int8 network; the median over channels, since in their sum
      one huge channel hides that all the others are lost;
    - ``saturated_share``: values outside the integers' range;
    - ``accuracy_alone``: accuracy when this tensor and the weights that multiply it are the only
      quantized ones. Of images without labels it counts agreement with fp32.

    Parameters
    ----------
    images : Tensor or Split
        [N, C, H, W]; hundreds are enough, and all are held in memory.

    Raises
    ------
    ValueError
        When the artifact is not static int8 ONNX, or not made from ``model``.
    """
    if not len(images):
        raise ValueError("no images to diagnose; allowed: 1 or more")
    int8 = _static_int8(artifact)
    fp32 = prepared_fp32(model, input_shape=artifact.input_shape)
    quantizers = read_quantizers(int8)
    _check_same_tensors(fp32, quantizers, artifact)
    batches = [batch.numpy() for batch in in_batches(images, batch_size)]
    known = isinstance(images, Split)
    truth = images.labels.numpy() if known else _logits(fp32, batches).argmax(axis=1)
    table = _measure_tensors(fp32, int8, quantizers, batches)
    table["accuracy_alone"] = _accuracies_alone(fp32, int8, quantizers, batches, truth)
    worst_first = table.sort_values(["accuracy_alone", "sqnr_alone_db"], ignore_index=True)
    return worst_first[list(COLUMNS)]


def _accuracies_alone(
    fp32: ModelProto,
    int8: ModelProto,
    quantizers: dict[str, Quantizer],
    batches: list[np.ndarray],
    truth: np.ndarray,
) -> list[float]:
    """Accuracy with one quantized tensor at a time, on all cores."""

    def alone(tensor: str) -> float:
        return _accuracy(quantize_only(fp32, int8, tensor, quantizers[tensor]), batches, truth)

    with ThreadPoolExecutor(usable_cores()) as threads:  # the runtime lets go of Python's lock
        found = threads.map(alone, quantizers)
        return [*tqdm(found, "tensors", len(quantizers), disable=None, leave=False)]


def _static_int8(artifact: Artifact) -> ModelProto:
    if artifact.precision == "int8" and artifact.path.suffix == ".onnx":
        int8 = onnx.load(artifact.path)
        if read_quantizers(int8):
            return int8
    raise ValueError(f"{artifact.title} cannot be diagnosed; allowed: static int8 ONNX")


def _check_same_tensors(
    fp32: ModelProto, quantizers: dict[str, Quantizer], artifact: Artifact
) -> None:
    known = {INPUT, *(name for node in fp32.graph.node for name in node.output)}
    strange = sorted(set(quantizers) - known)
    if strange:
        raise ValueError(f"{artifact.title} was not made from this model: it holds {strange[0]!r}")


@dataclass(frozen=True, eq=False)
class _ChannelSums:
    """What one batch says about a tensor; arrays are per channel."""

    low: np.ndarray
    high: np.ndarray
    signal: np.ndarray
    noise_alone: np.ndarray
    noise_accumulated: np.ndarray
    saturated: float


def _measure_tensors(
    fp32: ModelProto,
    int8: ModelProto,
    quantizers: dict[str, Quantizer],
    batches: list[np.ndarray],
) -> pd.DataFrame:
    layers = {tensor: source_layer(fp32, tensor) for tensor in quantizers}
    widths = {tensor: layer_width(fp32, layer) for tensor, layer in layers.items()}
    exact = _Probe(fp32, list(quantizers))
    rounded = _Probe(int8, [quantizer.result for quantizer in quantizers.values()])
    sums: dict[str, list[_ChannelSums]] = {tensor: [] for tensor in quantizers}
    for batch in batches:
        for tensor, values, result in zip(quantizers, exact(batch), rounded(batch), strict=True):
            width = widths[tensor] or values.shape[1]
            sums[tensor].append(_channel_sums(values, result, quantizers[tensor], width))
    return pd.DataFrame(
        {"tensor": tensor, "layer": layer_name(layers[tensor]), **_summary(found)}
        for tensor, found in sums.items()
    )


def _channel_sums(
    values: np.ndarray, result: np.ndarray, quantizer: Quantizer, width: int
) -> _ChannelSums:
    exact, inside = (
        a.reshape(len(a), width, -1).swapaxes(0, 1).reshape(width, -1) for a in (values, result)
    )  # [C, B * rest]
    low, high = quantizer.bounds
    half_step = float(quantizer.scale) / 2
    outside = (exact < low - half_step) | (exact > high + half_step)
    return _ChannelSums(
        exact.min(axis=1),
        exact.max(axis=1),
        (exact**2).mean(axis=1),
        ((quantizer.rounded(exact) - exact) ** 2).mean(axis=1),
        ((inside - exact) ** 2).mean(axis=1),
        float(outside.mean()),
    )


def _summary(batches: list[_ChannelSums]) -> dict[str, float]:
    low = np.min([b.low for b in batches], axis=0)
    high = np.max([b.high for b in batches], axis=0)
    magnitudes = np.maximum(np.abs(low), np.abs(high))
    signal = np.mean([b.signal for b in batches], axis=0)
    median = float(np.median(magnitudes))
    return {
        "worst_channel": int(magnitudes.argmax()),
        "minimum": float(low.min()),
        "maximum": float(high.max()),
        "outlier_ratio": float(magnitudes.max()) / median if median else np.inf,
        "sqnr_alone_db": _median_db(signal, [b.noise_alone for b in batches]),
        "sqnr_accumulated_db": _median_db(signal, [b.noise_accumulated for b in batches]),
        "saturated_share": float(np.mean([b.saturated for b in batches])),
    }


def _median_db(signal: np.ndarray, noises: list[np.ndarray]) -> float:
    """Signal-to-noise ratio of the median live channel; infinite where nothing was lost."""
    noise = np.mean(noises, axis=0)
    alive = signal > 0
    if not alive.any():
        return np.inf
    with np.errstate(divide="ignore"):
        return float(np.median(10 * np.log10(signal[alive] / noise[alive])))


class _Probe:
    """A graph that hands out chosen tensors, computed operator by operator as written."""

    def __init__(self, model: ModelProto, tensors: list[str]) -> None:
        import onnxruntime

        opened = ModelProto()
        opened.CopyFrom(model)
        present = {entry.name for entry in (*opened.graph.output, *opened.graph.input)}
        opened.graph.output.extend(
            onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None)
            for name in tensors
            if name not in present
        )
        options = session_options(threads=1)
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
        self._session = _session(opened, options)
        self._tensors = tensors

    def __call__(self, images: np.ndarray) -> list[np.ndarray]:
        wanted = [name for name in self._tensors if name != INPUT]
        found = dict(zip(wanted, self._session.run(wanted, {INPUT: images}), strict=True))
        return [images if name == INPUT else found[name] for name in self._tensors]


def _logits(model: ModelProto, batches: list[np.ndarray]) -> np.ndarray:
    session = _session(model, session_options(threads=1))
    feed = session.get_inputs()[0].name
    return np.concatenate([session.run([OUTPUT], {feed: batch})[0] for batch in batches])


def _accuracy(model: ModelProto, batches: list[np.ndarray], truth: np.ndarray) -> float:
    return float(np.mean(_logits(model, batches).argmax(axis=1) == truth))


def _session(model: ModelProto, options):
    import onnxruntime

    providers = ["CPUExecutionProvider"]
    return onnxruntime.InferenceSession(model.SerializeToString(), options, providers=providers)
