"""Where the bytes, multiply-accumulates and time of a model go, layer by layer."""

import copy
import time
from collections.abc import Callable, Iterator
from functools import partial

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn
from torch.utils.benchmark.utils.common import set_torch_threads

from edgeopt.schema import PRECISIONS, require_known

# Runtimes fuse, rename and reorder nearly everything but the layers that multiply.
MULTIPLYING = r"(?i)^\w*(?:conv(?!ert)|gemm|matmul|fully ?connected)"
# Layers that compute and move nothing at inference.
PASSIVE = ("Dropout", "Flatten", "Identity", "StochasticDepth")


def layerwise_breakdown(
    model: nn.Module, *, input_shape: tuple[int, ...], precision: str = "fp32"
) -> pd.DataFrame:
    """Count parameters, bytes and MACs of each leaf module of a float32 classifier, in call order.

    ``input_shape`` is ``(batch, channels, height, width)``; ``precision`` sets the bytes of an
    element. Columns: layer, kind, output_shape, parameters, parameter_bytes,
    input_activation_bytes, output_activation_bytes, activation_bytes, macs, arithmetic_intensity
    (MACs per byte moved). Only Conv2d (any groups) and Linear have MACs: an elementwise operation
    has none, and BatchNorm folds into its convolution. Functional calls (``torch.relu``, ``+``)
    are no modules and have no row. A module called again gets a row ``name#2``. Every module is
    taken to read its input from memory and to write its output back; a runtime that fuses ReLU
    into a convolution moves less.

    Raises
    ------
    ValueError
        For a module whose MACs are not known (attention, transposed convolution).
    """
    require_known(precision, allowed=PRECISIONS, what="precision")
    probe = copy.deepcopy(model).eval()
    _require_countable(probe)
    rows: list[dict[str, object]] = []
    for name, module in _leaves(probe):
        module.register_forward_hook(partial(_record, rows, name, precision))
    with torch.inference_mode():
        probe(torch.zeros(input_shape))
    table = pd.DataFrame(rows)
    moved = table["parameter_bytes"] + table["activation_bytes"]
    return table.assign(layer=_unique(table["layer"]), arithmetic_intensity=table["macs"] / moved)


def measure_layers(
    model: nn.Module,
    *,
    input_shape: tuple[int, ...],
    repeats: int = 100,
    warmup: int = 10,
    threads: int = 1,
) -> pd.DataFrame:
    """Time each leaf module in eager torch and join it to `layerwise_breakdown`'s estimate.

    Adds ``measured_ms`` (median over ``repeats`` whole passes, so that drift hits all layers
    alike), ``measured_share`` and ``hook_overhead_ms``: the same hooks' reading on a module that
    does nothing. That overhead is contained in ``measured_ms`` and not subtracted.
    """
    if repeats < 1 or warmup < 0:
        raise ValueError(f"repeats={repeats}, warmup={warmup}; allowed: repeats >= 1, warmup >= 0")
    estimate = layerwise_breakdown(model, input_shape=input_shape)
    probe = copy.deepcopy(model).eval()
    modules = [module for _, module in _leaves(probe)]
    idle = nn.Identity()
    batch = torch.rand(input_shape, generator=torch.Generator().manual_seed(0))
    with set_torch_threads(threads), torch.inference_mode():
        elapsed = _time_passes(modules, partial(probe, batch), repeats=repeats, warmup=warmup)
        overhead = _time_passes([idle], partial(idle, batch), repeats=repeats, warmup=warmup)
    measured = np.median(elapsed, axis=0)
    return estimate.assign(
        measured_ms=measured,
        measured_share=measured / measured.sum(),
        hook_overhead_ms=float(np.median(overhead)),
    )


def join_profile(breakdown: pd.DataFrame, profile: pd.DataFrame) -> pd.DataFrame:
    """Put the profiled time of each multiplying layer beside its estimate, matched by order.

    ``breakdown`` (:func:`layerwise_breakdown`) keeps its rows that have MACs and gets
    runtime_layer, op, measured_ms, share and macs_share. A last row ``everything else`` holds the
    other operators' time (and no MACs).

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


def _leaves(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    for name, module in model.named_modules():
        if not any(module.children()) and type(module).__name__ not in PASSIVE:
            yield name or type(module).__name__, module


def _require_countable(model: nn.Module) -> None:
    """Raise for any module that holds a weight matrix whose use is unknown."""
    for name, module in model.named_modules():
        matrix = any(p.squeeze().dim() > 1 for p in module.parameters(recurse=False))
        if matrix and not isinstance(module, nn.Conv2d | nn.Linear):
            kind = type(module).__name__
            raise ValueError(f"cannot count the MACs of {name!r} ({kind}); allowed: Conv2d, Linear")


def _record(
    rows: list[dict[str, object]],
    name: str,
    precision: str,
    module: nn.Module,
    inputs: tuple[Tensor, ...],
    output: Tensor,
) -> None:
    size = PRECISIONS[precision]
    weight_bytes, activation_bytes = size.weight_bytes, size.activation_bytes
    vector_bytes = 4 if weight_bytes == 1 else weight_bytes
    parameters = list(module.parameters())
    read = activation_bytes * sum(tensor.numel() for tensor in inputs)
    written = activation_bytes * output.numel()
    sizes = (p.numel() * (weight_bytes if p.dim() > 1 else vector_bytes) for p in parameters)
    rows.append(
        {
            "layer": name,
            "kind": _kind(module),
            "output_shape": tuple(output.shape),
            "parameters": sum(p.numel() for p in parameters),
            "parameter_bytes": sum(sizes),
            "input_activation_bytes": read,
            "output_activation_bytes": written,
            "activation_bytes": read + written,
            "macs": _macs(module, output),
        }
    )


def _kind(module: nn.Module) -> str:
    name = type(module).__name__
    if isinstance(module, nn.Conv2d) and module.groups > 1:
        depthwise = module.groups == module.in_channels
        return f"{name} ({'depthwise' if depthwise else 'grouped'})"
    return name


def _macs(module: nn.Module, output: Tensor) -> int:
    if isinstance(module, nn.Conv2d):
        taps = module.in_channels // module.groups * module.kernel_size[0] * module.kernel_size[1]
        return output.numel() * taps
    return output.numel() * module.in_features if isinstance(module, nn.Linear) else 0


def _unique(names: pd.Series) -> pd.Series:
    calls = names.groupby(names).cumcount() + 1
    return names.where(calls == 1, names + "#" + calls.astype(str))


def _time_passes(
    modules: list[nn.Module], run: Callable[[], object], *, repeats: int, warmup: int
) -> np.ndarray:
    """Milliseconds of each module call in each pass: ``[repeats, calls]``."""
    start = 0
    calls: list[int] = []

    def begin(*_: object) -> None:
        nonlocal start
        start = time.perf_counter_ns()

    def end(*_: object) -> None:
        calls.append(time.perf_counter_ns() - start)

    for module in modules:
        module.register_forward_pre_hook(begin)
        module.register_forward_hook(end)
    for _ in range(warmup + repeats):
        run()
    return np.reshape(calls, (warmup + repeats, -1))[warmup:] / 1e6
