"""What this machine can do at best: multiply-accumulate rates and copy bandwidths."""

from collections.abc import Callable, Iterator
from functools import partial
from typing import NamedTuple

import numpy as np
import onnx
import onnxruntime
import pandas as pd
import torch
from torch.nn import functional
from torch.utils.benchmark import Timer

from edgeopt.runtimes import session_options

FLOAT_TYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
MATRIX_SIZES = (256, 512, 1024)
CONV_SIDE = 28  # pixels
SECONDS = 0.1  # of timing each layer and copy
SLOW_CALL_S = 0.05
DRAM_BUFFER_BYTES = 64 * 2**20
COLUMNS = ("name", "precision", "value", "unit", "kind", "how")


def measure_ceilings(*, threads: int = 1, cache_bytes: int | None = None) -> pd.DataFrame:
    """Measure the best rate of large layers per precision and the best copy bandwidth.

    Rows: ``compute`` (GMAC/s) per precision, ``memory`` (GB/s, buffers of 64 MiB each) and, where
    ``cache_bytes`` (of the last private level, usually L2) is given, ``cache`` (GB/s, source and
    target together half of it). A copied byte is read once and written once and counts twice, as
    in STREAM (https://www.cs.virginia.edu/stream/ref.html). Each value is the best of all timings
    taken in about 0.1 s: a ceiling is what was reached, not what is usual.
    """
    rows = [_compute_row(precision, threads=threads) for precision in (*FLOAT_TYPES, "int8")]
    rows.append(_copy_row("memory", DRAM_BUFFER_BYTES, threads=threads))
    if cache_bytes is not None:
        rows.append(_copy_row("cache", cache_bytes // 4, threads=threads))
    return pd.DataFrame(rows, columns=COLUMNS)


def configure_ceilings(
    ceilings: pd.DataFrame,
    *,
    memory_bandwidth_gbps: float | None = None,
    peak_compute_gmacs: float | None = None,
) -> pd.DataFrame:
    """Put configured ceilings in the place of measured ones, labelled ``kind='configured'``.

    ``peak_compute_gmacs`` holds for every precision listed. A configured bandwidth stands for
    every memory level, so a ``cache`` row goes.
    """
    result = ceilings.copy()
    if memory_bandwidth_gbps is not None:
        result = result[result["name"] != "cache"].reset_index(drop=True)
        _override(result, "memory", memory_bandwidth_gbps, what="memory_bandwidth_gbps")
    if peak_compute_gmacs is not None:
        _override(result, "compute", peak_compute_gmacs, what="peak_compute_gmacs")
    return result


def _override(ceilings: pd.DataFrame, name: str, value: float, *, what: str) -> None:
    if not value > 0:
        raise ValueError(f"{what} is {value!r}; it must be above 0")
    columns = ["value", "kind", "how"]
    ceilings.loc[ceilings["name"] == name, columns] = [float(value), "configured", what]


class _Work(NamedTuple):
    """A call that does so many multiply-accumulates, and what it is in words."""

    call: Callable[[], object]
    macs: int
    words: str


def _compute_row(precision: str, *, threads: int) -> tuple[str, str, float, str, str, str]:
    kernels = _kernels(precision, threads=threads)
    value, how = max(rate for kernel in kernels for rate in _rates(kernel, threads=threads))
    how = f"{how}, {threads} thread(s), best"
    return "compute", precision, value, "GMAC/s", "measured", how


def _kernels(precision: str, *, threads: int) -> list[Callable[[int], _Work]]:
    """Layers by size; torch's library may not use all that the CPU has, so there is a second."""
    if precision == "int8":
        return [_torch_int8, partial(_onnxruntime_int8, threads=threads)]
    kernels = [partial(layer, FLOAT_TYPES[precision]) for layer in (_linear, _convolution)]
    second = [partial(_onnxruntime_fp32, threads=threads)] if precision == "fp32" else []
    return [*kernels, *second]


def _rates(kernel: Callable[[int], _Work], *, threads: int) -> Iterator[tuple[float, str]]:
    """Rate per matrix size, growing until a call is slow: emulated types take seconds at 1024."""
    for size in MATRIX_SIZES:
        work = kernel(size)
        best = _best_seconds(work.call, threads=threads)
        yield work.macs / best / 1e9, work.words
        if best > SLOW_CALL_S:
            return


def _linear(dtype: torch.dtype, size: int) -> _Work:
    left, right = (torch.rand(size, size).to(dtype) for _ in range(2))
    words = f"torch linear {size}x{size}"
    return _Work(lambda: functional.linear(left, right), size**3, words)


def _convolution(dtype: torch.dtype, size: int) -> _Work:
    width, last = size // 4, torch.channels_last
    images = torch.rand(1, width, CONV_SIDE, CONV_SIDE).to(dtype, memory_format=last)
    weights = torch.rand(width, width, 3, 3).to(dtype, memory_format=last)
    macs = 9 * width**2 * CONV_SIDE**2
    words = f"torch conv2d 3x3, {width} channels, {CONV_SIDE}x{CONV_SIDE}"
    return _Work(lambda: functional.conv2d(images, weights, padding=1), macs, words)


def _torch_int8(size: int) -> _Work:
    left, right = (torch.randint(-128, 128, (size, size), dtype=torch.int8) for _ in range(2))
    words = f"torch._int_mm (S8S8) {size}x{size}"
    return _Work(lambda: torch._int_mm(left, right), size**3, words)


def _onnxruntime_fp32(size: int, *, threads: int) -> _Work:
    left, right = np.random.default_rng(0).random((2, size, size), dtype=np.float32)
    call = _onnxruntime_matmul("MatMul", left, right, threads=threads)
    return _Work(call, size**3, f"onnxruntime MatMul {size}x{size}")


def _onnxruntime_int8(size: int, *, threads: int) -> _Work:
    rng = np.random.default_rng(0)
    left = rng.integers(0, 256, (size, size), dtype=np.uint8)
    right = rng.integers(-127, 128, (size, size), dtype=np.int8)
    call = _onnxruntime_matmul("MatMulInteger", left, right, threads=threads)
    return _Work(call, size**3, f"onnxruntime MatMulInteger (U8S8) {size}x{size}")


def _onnxruntime_matmul(
    operator: str, left: np.ndarray, right: np.ndarray, *, threads: int
) -> Callable[[], object]:
    kinds = onnx.helper.np_dtype_to_tensor_dtype
    result = np.dtype(np.int32 if operator == "MatMulInteger" else np.float32)
    graph = onnx.helper.make_graph(
        [onnx.helper.make_node(operator, ["a", "b"], ["c"])],
        "matmul",
        [onnx.helper.make_tensor_value_info("a", kinds(left.dtype), left.shape)],
        [onnx.helper.make_tensor_value_info("c", kinds(result), left.shape)],
        [onnx.numpy_helper.from_array(right, "b")],
    )
    opsets = [onnx.helper.make_opsetid("", 17)]
    model = onnx.helper.make_model(graph, opset_imports=opsets, ir_version=8)
    session = onnxruntime.InferenceSession(
        model.SerializeToString(),
        session_options(threads=threads),
        providers=["CPUExecutionProvider"],
    )
    return lambda: session.run(None, {"a": left})


def _copy_row(
    name: str, buffer_bytes: int, *, threads: int
) -> tuple[str, str, float, str, str, str]:
    source = torch.ones(buffer_bytes, dtype=torch.uint8)
    target = torch.empty_like(source)
    best = _best_seconds(lambda: target.copy_(source), threads=threads)
    how = f"torch copy of {buffer_bytes:,} bytes, read + write, {threads} thread(s), best"
    return name, "", 2 * buffer_bytes / best / 1e9, "GB/s", "measured", how


def _best_seconds(call: Callable[[], object], *, threads: int) -> float:
    timer = Timer("call()", globals={"call": call}, num_threads=threads)
    return min(timer.blocked_autorange(min_run_time=SECONDS).times)
