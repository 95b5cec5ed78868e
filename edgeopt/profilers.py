"""Per-layer times of an artifact from its runtime's own profiler."""

import importlib.util
import json
import tempfile
import warnings
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import onnxruntime
import pandas as pd
import torch
from scipy.stats import trim_mean

from edgeopt._upstream import known_noise_silenced, native_stderr_logged
from edgeopt.runtimes import openvino_core
from edgeopt.schema import require_known

if TYPE_CHECKING:
    from openvino import InferRequest, ProfilingInfo

    from edgeopt.artifact import Artifact

COLUMNS = ("layer", "op", "measured_ms", "share")
# Runtimes fuse, rename and reorder nearly everything but the layers that multiply.
MULTIPLYING = r"(?i)^\w*(?:conv(?!ert)|gemm|matmul|fully ?connected)"
TRIMMED = 0.1
# ETDump events that contain other events.
CONTAINERS = ("DELEGATE_CALL", "OPERATOR_CALL", "Method::execute")


class ProfilerUnavailableError(RuntimeError):
    """The installed runtime cannot profile; the text says ``unavailable:`` and why."""


def profile_artifact(
    artifact: "Artifact", *, threads: int = 1, repeats: int = 100, warmup: int = 10
) -> pd.DataFrame:
    """Profile an artifact in its own runtime: a row per executed operator, in order.

    Columns: layer (the runtime's name, after its own fusions), op, measured_ms, share. The time is
    a mean over ``repeats`` runs after ``warmup`` runs, without the lowest and highest tenth (but
    see `profile_openvino`): about as robust as a median, but finer than the whole microseconds in
    which these profilers count. An operator far below one can read 0.

    Raises
    ------
    ProfilerUnavailableError
        When the runtime is not installed or was built without its profiler. TorchScript files
        have none per layer: use `measure_layers` on the module.
    """
    if artifact.runtime == "torch":
        raise ProfilerUnavailableError(
            "unavailable: TorchScript has no layer profiler; time the module"
        )
    profile = PROFILERS[require_known(artifact.runtime, allowed=tuple(PROFILERS), what="runtime")]
    options = {"threads": threads, "repeats": repeats, "warmup": warmup}
    if artifact.runtime == "openvino":
        options["precision"] = artifact.precision
    return profile(artifact.path, input_shape=artifact.input_shape, **options)


def join_profile(breakdown: pd.DataFrame, profile: pd.DataFrame) -> pd.DataFrame:
    """Put the profiled time of each multiplying layer beside its estimate, matched by order.

    ``breakdown`` (`layerwise_breakdown`) keeps its rows that have MACs and gets runtime_layer, op,
    measured_ms, share and macs_share. A last row ``everything else`` holds the other operators'
    time (and no MACs).

    Raises
    ------
    ValueError
        When the runtime ran another number of multiplying layers than the model has, because then
        the order matches nothing.
    """
    layers = breakdown[breakdown["macs"] > 0].reset_index(drop=True)
    multiplying = profile["op"].str.contains(MULTIPLYING)
    timed = profile[multiplying].rename(columns={"layer": "runtime_layer"}).reset_index(drop=True)
    if len(layers) != len(timed):
        raise ValueError(
            f"{len(timed)} multiplying operators were profiled ({', '.join(timed['op'].unique())}) "
            f"but the model has {len(layers)} layers with MACs; they cannot be matched"
        )
    rest = profile.loc[~multiplying, ["measured_ms", "share"]].sum()
    other = pd.DataFrame([{"layer": "everything else", "op": "", "macs": 0, **rest}])
    joined = pd.concat([layers.join(timed), other], ignore_index=True)
    return joined.assign(macs_share=joined["macs"] / joined["macs"].sum())


def profile_onnxruntime(
    path: Path,
    *,
    input_shape: tuple[int, ...],
    threads: int = 1,
    repeats: int = 100,
    warmup: int = 10,
) -> pd.DataFrame:
    """Profile an ``.onnx`` file in ONNX Runtime; see `profile_artifact`."""
    runs = _count_runs(repeats=repeats, warmup=warmup)
    with tempfile.TemporaryDirectory() as folder:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.enable_profiling = True
        options.profile_file_prefix = str(Path(folder, "profile"))
        session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        feed = {session.get_inputs()[0].name: _batch(input_shape)}
        for _ in range(runs):
            session.run(None, feed)
        events = json.loads(Path(session.end_profiling()).read_text())
    return _table(onnxruntime_events(events), warmup=warmup)


def onnxruntime_events(events: list[dict]) -> pd.DataFrame:
    """Kernel times in an ONNX Runtime profile: a row per call, columns key, layer, op, ms."""
    kernels = [
        {
            "key": event["args"]["node_index"],
            "layer": event["name"].removesuffix("_kernel_time"),
            "op": event["args"]["op_name"],
            "ms": event["dur"] / 1e3,
        }
        for event in events
        if event["cat"] == "Node" and event["name"].endswith("_kernel_time")
    ]
    return pd.DataFrame(kernels, columns=["key", "layer", "op", "ms"])


def profile_openvino(
    path: Path,
    *,
    input_shape: tuple[int, ...],
    precision: str,
    threads: int = 1,
    repeats: int = 100,
    warmup: int = 10,
) -> pd.DataFrame:
    """Profile a model file in OpenVINO; ``op`` carries the kernel's name with its type.

    ``precision`` bf16 asks for bf16 arithmetic, every other one for f32 around what is quantized.
    OpenVINO keeps one mean per operator, since its first call and cut to whole microseconds: the
    warm-up is taken out of it again, nothing is trimmed, and a time reads up to two microseconds
    short.
    """
    runs = _count_runs(repeats=repeats, warmup=warmup)
    batch = _batch(input_shape)
    request = _openvino_request(path, batch.shape, precision=precision, threads=threads)
    for _ in range(warmup):
        request.infer([batch])
    cold = [node.real_time for node in request.profiling_info]
    for _ in range(repeats):
        request.infer([batch])
    nodes = request.profiling_info
    times = [
        max((node.real_time * runs - start * warmup) / repeats, timedelta())
        for node, start in zip(nodes, cold, strict=True)
    ]
    return _shares(_openvino_table(nodes, times=times))


def _openvino_request(
    path: Path, shape: tuple[int, ...], *, precision: str, threads: int
) -> "InferRequest":
    _require_installed("openvino")
    settings = {
        "PERF_COUNT": True,
        "INFERENCE_NUM_THREADS": threads,
        "NUM_STREAMS": 1,
        "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_PRECISION_HINT": "bf16" if precision == "bf16" else "f32",
    }
    core = openvino_core()
    model = core.read_model(path)
    model.reshape(list(shape))  # as it is served: other shapes get other kernels
    return core.compile_model(model, "CPU", settings).create_infer_request()


def _openvino_table(nodes: list["ProfilingInfo"], *, times: list[timedelta]) -> pd.DataFrame:
    """Return a row per node that has a kernel, also where its time is below a microsecond."""
    rows = [
        (node.node_name, f"{node.node_type} {node.exec_type}", time / timedelta(milliseconds=1))
        for node, time in zip(nodes, times, strict=True)
    ]
    table = pd.DataFrame(rows, columns=["layer", "op", "measured_ms"])
    no_kernel = table["op"].str.contains(" (?:undef|unknown)")
    return table[~no_kernel | (table["measured_ms"] > 0)].reset_index(drop=True)


def profile_executorch(
    path: Path,
    *,
    input_shape: tuple[int, ...],
    threads: int = 1,
    repeats: int = 100,
    warmup: int = 10,
) -> pd.DataFrame:
    """Profile a ``.pte`` file through ExecuTorch's ETDump, down to XNNPACK's operators.

    Source: https://docs.pytorch.org/executorch/stable/etdump.html
    """
    runs = _count_runs(repeats=repeats, warmup=warmup)
    _require_installed("executorch")
    with known_noise_silenced(), native_stderr_logged():
        from executorch.extension.pybindings import portable_lib
        from executorch.runtime import Runtime

        portable_lib._unsafe_reset_threadpool(threads)
        program = Runtime.get().load_program(path, enable_etdump=True, debug_buffer_size=0)
        method = program.load_method("forward")
    inputs = (torch.from_numpy(_batch(input_shape)),)
    for _ in range(runs):
        method.execute(inputs)
    with tempfile.TemporaryDirectory() as folder:
        dump = Path(folder, "profile.etdp")
        program.write_etdump_result_to_file(str(dump), str(Path(folder, "tensors.bin")))
        if not dump.exists() or not dump.stat().st_size:
            raise ProfilerUnavailableError(
                "unavailable: this ExecuTorch was built without event tracing"
            )
        return _table(_etdump_calls(dump), warmup=warmup)


def _etdump_calls(dump: Path) -> pd.DataFrame:
    with known_noise_silenced(), native_stderr_logged():
        from executorch.devtools import Inspector

    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Output Buffer not found", category=UserWarning)
        blocks = Inspector(etdump_path=str(dump)).event_blocks
    events = [event for block in blocks if block.name == "Execute" for event in block.events]
    calls = [
        {"key": place, "layer": event.name, "op": event.name.split(" #")[0], "ms": milliseconds}
        for place, event in enumerate(events)
        if event.name not in CONTAINERS
        for milliseconds in event.perf_data.raw
    ]
    return pd.DataFrame(calls)


def _require_installed(package: str) -> None:
    if importlib.util.find_spec(package) is None:
        raise ProfilerUnavailableError(f"unavailable: {package} is not installed")


def _count_runs(*, repeats: int, warmup: int) -> int:
    """Return the number of runs in all, or raise for counts that mean nothing."""
    if repeats < 1 or warmup < 0:
        raise ValueError(f"repeats={repeats}, warmup={warmup}; allowed: repeats >= 1, warmup >= 0")
    return warmup + repeats


def _batch(input_shape: tuple[int, ...]) -> np.ndarray:
    return np.random.default_rng(0).random(input_shape, dtype=np.float32)


def _table(calls: pd.DataFrame, *, warmup: int) -> pd.DataFrame:
    """Reduce calls ``[key, layer, op, ms]``, in order of time, to a row per operator."""
    warm = calls[calls.groupby("key").cumcount() >= warmup]
    grouped = warm.groupby(["key", "layer", "op"], sort=False)["ms"]
    table = grouped.agg(lambda ms: trim_mean(ms, TRIMMED)).rename("measured_ms").reset_index()
    return _shares(table)


def _shares(table: pd.DataFrame) -> pd.DataFrame:
    share = table["measured_ms"] / table["measured_ms"].sum()
    return table.assign(share=share)[list(COLUMNS)]


PROFILERS: dict[str, Callable[..., pd.DataFrame]] = {
    "onnxruntime": profile_onnxruntime,
    "openvino": profile_openvino,
    "executorch": profile_executorch,
}
