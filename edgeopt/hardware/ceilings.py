"""What this machine can do at best: multiply-accumulate rates and copy bandwidths."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import onnx
import onnxruntime
import pandas as pd
import torch
from torch.nn import functional
from torch.utils.benchmark import Timer

from edgeopt.schema import require_known

CEILING_PRECISIONS = ("fp32", "fp16", "bf16", "int8")
FLOAT_TYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
MATRIX_SIZES = (256, 512, 1024)
CONV_SIDE = 28  # pixels
SLOW_CALL_S = 0.05
DRAM_BUFFER_BYTES = 64 * 2**20
COLUMNS = ("name", "precision", "value", "unit", "kind", "how")


def measure_ceilings(
    *,
    precisions: Iterable[str] = CEILING_PRECISIONS,
    threads: int = 1,
    cache_bytes: int | None = None,
    seconds: float = 0.1,
) -> pd.DataFrame:
    """Measure the best rate of large layers per precision and the best copy bandwidth.

    Rows: ``compute`` (GMAC/s) per precision, ``memory`` (GB/s, buffers of 64 MiB each) and, where
    ``cache_bytes`` (of the last private level, usually L2) is given, ``cache`` (GB/s, source and
    target together half of it). A copied byte is read once and written once and counts twice, as
    in STREAM (https://www.cs.virginia.edu/stream/ref.html). Each value is the best of all timings
    taken in about ``seconds``: a ceiling is what was reached, not what is usual.
    """
    rows = []
    for precision in precisions:
        require_known(precision, allowed=CEILING_PRECISIONS, what="ceiling precision")
        rows.append(_compute_row(precision, threads=threads, seconds=seconds))
    rows.append(_copy_row("memory", DRAM_BUFFER_BYTES, threads=threads, seconds=seconds))
    if cache_bytes is not None:
        rows.append(_copy_row("cache", cache_bytes // 4, threads=threads, seconds=seconds))
    return pd.DataFrame(rows, columns=COLUMNS)


def configure_ceilings(
    ceilings: pd.DataFrame,
    *,
    memory_bandwidth_gbps: float | None = None,
    peak_compute_gmacs: float | Mapping[str, float] | None = None,
) -> pd.DataFrame:
    """Put configured ceilings in the place of measured ones, labelled ``kind='configured'``.

    A single ``peak_compute_gmacs`` holds for every precision listed. A configured bandwidth
    stands for every memory level, so a ``cache`` row goes.
    """
    result = ceilings.copy()
    if memory_bandwidth_gbps is not None:
        result = result[result["name"] != "cache"]
        rows = result["name"] == "memory"
        result = _override(result, rows, memory_bandwidth_gbps, what="memory_bandwidth_gbps")
    if peak_compute_gmacs is not None:
        compute = result.loc[result["name"] == "compute", "precision"]
        given = peak_compute_gmacs
        peaks = given if isinstance(given, Mapping) else dict.fromkeys(compute, given)
        for precision, value in peaks.items():
            require_known(precision, allowed=tuple(compute), what="ceiling precision")
            rows = (result["name"] == "compute") & (result["precision"] == precision)
            result = _override(result, rows, value, what="peak_compute_gmacs")
    return result.reset_index(drop=True)


def _override(frame: pd.DataFrame, rows: pd.Series, value: float, *, what: str) -> pd.DataFrame:
    if not value > 0:
        raise ValueError(f"{what} is {value!r}; it must be above 0")
    changes = {"value": float(value), "kind": "configured", "how": what}
    return frame.assign(**{key: frame[key].mask(rows, new) for key, new in changes.items()})


def _compute_row(precision: str, *, threads: int, seconds: float) -> dict[str, object]:
    is_int8 = precision == "int8"
    kernels = _int8_kernels(threads) if is_int8 else _float_kernels(precision, threads)
    rates = [(rate, how) for kernel in kernels for rate, how in _rates(kernel, threads, seconds)]
    value, how = max(rates)
    how = f"{how}, {threads} thread(s), best"
    return _row("compute", precision, value, "GMAC/s", how)


@dataclass(frozen=True)
class _Work:
    """A call that does so many multiply-accumulates, and what it is in words."""

    call: Callable[[], object]
    macs: int
    words: str


Kernel = Callable[[int], _Work]


def _rates(kernel: Kernel, threads: int, seconds: float) -> Iterator[tuple[float, str]]:
    """Rate per matrix size, growing until a call is slow: emulated types take seconds at 1024."""
    for size in MATRIX_SIZES:
        work = kernel(size)
        best = _best_seconds(work.call, threads=threads, seconds=seconds)
        yield work.macs / best / 1e9, work.words
        if best > SLOW_CALL_S:
            return


def _float_kernels(precision: str, threads: int) -> list[Kernel]:
    dtype = FLOAT_TYPES[precision]

    def linear(size: int) -> _Work:
        left, right = (torch.rand(size, size).to(dtype) for _ in range(2))
        words = f"torch linear {size}x{size}"
        return _Work(lambda: functional.linear(left, right), size**3, words)

    def convolution(size: int) -> _Work:
        width, last = size // 4, torch.channels_last
        images = torch.rand(1, width, CONV_SIDE, CONV_SIDE).to(dtype, memory_format=last)
        weights = torch.rand(width, width, 3, 3).to(dtype, memory_format=last)
        macs = 9 * width**2 * CONV_SIDE**2
        words = f"torch conv2d 3x3, {width} channels, {CONV_SIDE}x{CONV_SIDE}"
        return _Work(lambda: functional.conv2d(images, weights, padding=1), macs, words)

    def onnxruntime_matmul(size: int) -> _Work:
        left, right = np.random.default_rng(0).random((2, size, size), dtype=np.float32)
        call = _onnxruntime_matmul("MatMul", left, right, threads=threads)
        return _Work(call, size**3, f"onnxruntime MatMul {size}x{size}")

    kernels: list[Kernel] = [linear, convolution]
    # torch's library may not use all that the CPU has, so a second one has its say.
    return [*kernels, onnxruntime_matmul] if precision == "fp32" else kernels


def _int8_kernels(threads: int) -> list[Kernel]:
    def torch_matmul(size: int) -> _Work:
        left, right = (torch.randint(-128, 128, (size, size), dtype=torch.int8) for _ in "ab")
        words = f"torch._int_mm (S8S8) {size}x{size}"
        return _Work(lambda: torch._int_mm(left, right), size**3, words)

    def onnxruntime_matmul(size: int) -> _Work:
        rng = np.random.default_rng(0)
        left = rng.integers(0, 256, (size, size), dtype=np.uint8)
        right = rng.integers(-127, 128, (size, size), dtype=np.int8)
        call = _onnxruntime_matmul("MatMulInteger", left, right, threads=threads)
        return _Work(call, size**3, f"onnxruntime MatMulInteger (U8S8) {size}x{size}")

    return [torch_matmul, onnxruntime_matmul]


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
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    return lambda: session.run(None, {"a": left})


def _copy_row(name: str, buffer_bytes: int, *, threads: int, seconds: float) -> dict[str, object]:
    source = torch.ones(buffer_bytes, dtype=torch.uint8)
    target = torch.empty_like(source)
    best = _best_seconds(lambda: target.copy_(source), threads=threads, seconds=seconds)
    how = f"torch copy of {buffer_bytes:,} bytes, read + write, {threads} thread(s), best"
    return _row(name, "", 2 * buffer_bytes / best / 1e9, "GB/s", how)


def _best_seconds(call: Callable[[], object], *, threads: int, seconds: float) -> float:
    timer = Timer("call()", globals={"call": call}, num_threads=threads)
    return min(timer.blocked_autorange(min_run_time=seconds).times)


def _row(name: str, precision: str, value: float, unit: str, how: str) -> dict[str, object]:
    return dict(zip(COLUMNS, (name, precision, value, unit, "measured", how), strict=True))
