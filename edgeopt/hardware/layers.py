"""Where the bytes, multiply-accumulates and time of networks go, layer by layer."""

import copy
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn
from torch.utils.benchmark.utils.common import set_torch_threads

from edgeopt.schema import PRECISIONS, Precision, require_known

# Layers that compute and move nothing at inference.
PASSIVE = ("Dropout", "Flatten", "Identity", "StochasticDepth")
PASSES, WARMUP_PASSES = 100, 10


def count_layers(
    networks: Mapping[str, nn.Module], *, shapes: Mapping[str, tuple[int, ...]]
) -> tuple[pd.DataFrame, dict[str, str]]:
    """Count the layers of every network, and say why one cannot be counted.

    Returns :func:`layerwise_breakdown` of each with its ``model`` as first column, and the reasons
    by model.
    """
    tables, reasons = {}, {}
    for model, network in networks.items():
        try:
            tables[model] = layerwise_breakdown(network, input_shape=shapes[model])
        except ValueError as error:
            reasons[model] = str(error)
    columns = ["layer", "kind", "output_shape", "parameters", "macs", "arithmetic_intensity"]
    return _stacked(tables, columns=columns), reasons


def measure_networks(
    models: Iterable[str],
    networks: Mapping[str, nn.Module],
    *,
    shapes: Mapping[str, tuple[int, ...]],
    threads: int = 1,
) -> pd.DataFrame:
    """Time the layers of the named networks in eager torch: :func:`measure_layers` of each."""
    tables = {
        m: measure_layers(networks[m], input_shape=shapes[m], threads=threads) for m in models
    }
    return _stacked(tables, columns=["layer", "macs", "measured_ms", "measured_share"])


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
        module.register_forward_hook(partial(_record, rows, name, PRECISIONS[precision]))
    with torch.inference_mode():
        probe(torch.zeros(input_shape))
    table = pd.DataFrame(rows)
    calls = table.groupby("layer").cumcount() + 1
    moved = table["parameter_bytes"] + table["activation_bytes"]
    return table.assign(
        layer=table["layer"].where(calls == 1, table["layer"] + "#" + calls.astype(str)),
        arithmetic_intensity=table["macs"] / moved,
    )


def measure_layers(
    model: nn.Module, *, input_shape: tuple[int, ...], threads: int = 1
) -> pd.DataFrame:
    """Time each leaf module in eager torch and join it to `layerwise_breakdown`'s estimate.

    Adds ``measured_ms`` (median over 100 whole passes, so that drift hits all layers alike),
    ``measured_share`` and ``hook_overhead_ms``: the same hooks' reading on a module that does
    nothing. That overhead is contained in ``measured_ms`` and not subtracted.
    """
    estimate = layerwise_breakdown(model, input_shape=input_shape)
    probe, idle = copy.deepcopy(model).eval(), nn.Identity()
    modules = [module for _, module in _leaves(probe)]
    batch = torch.rand(input_shape, generator=torch.Generator().manual_seed(0))
    with set_torch_threads(threads), torch.inference_mode():
        measured = _median_ms(modules, partial(probe, batch))
        [overhead] = _median_ms([idle], partial(idle, batch))
    return estimate.assign(
        measured_ms=measured, measured_share=measured / measured.sum(), hook_overhead_ms=overhead
    )


def _stacked(tables: Mapping[str, pd.DataFrame], *, columns: list[str]) -> pd.DataFrame:
    """Put the tables of networks below one another, ``model`` first; ``columns`` if none."""
    if not tables:
        return pd.DataFrame(columns=["model", *columns])
    return pd.concat(tables, names=["model", None]).reset_index("model").reset_index(drop=True)


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
    size: Precision,
    module: nn.Module,
    inputs: tuple[Tensor, ...],
    output: Tensor,
) -> None:
    vector_bytes = 4 if size.weight_bytes == 1 else size.weight_bytes
    parameters = list(module.parameters())
    sizes = (p.numel() * (size.weight_bytes if p.dim() > 1 else vector_bytes) for p in parameters)
    read = size.activation_bytes * sum(tensor.numel() for tensor in inputs)
    written = size.activation_bytes * output.numel()
    multiplies = isinstance(module, nn.Conv2d | nn.Linear)
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
            "macs": output.numel() * module.weight[0].numel() if multiplies else 0,
        }
    )


def _kind(module: nn.Module) -> str:
    name = type(module).__name__
    if isinstance(module, nn.Conv2d) and module.groups > 1:
        depthwise = module.groups == module.in_channels
        return f"{name} ({'depthwise' if depthwise else 'grouped'})"
    return name


def _median_ms(modules: list[nn.Module], run: Callable[[], object]) -> np.ndarray:
    """Milliseconds [calls] of each module call in one pass, the median over the passes."""
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
    passes = WARMUP_PASSES + PASSES
    for _ in range(passes):
        run()
    return np.median(np.reshape(calls, (passes, -1))[WARMUP_PASSES:], axis=0) / 1e6
