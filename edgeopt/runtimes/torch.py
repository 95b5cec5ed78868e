"""PyTorch: TorchScript files, and what its graphs execute."""

import io
import math
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from edgeopt.agent.session import Artifact
from edgeopt.quantization import (
    DEFAULT_ENGINE,
    TORCH_PRECISIONS,
    precision_variant,
    quantized_engine,
    to_int8,
)
from edgeopt.runtimes.contract import (
    FLOATS,
    INTEGER,
    ExportError,
    Int8Options,
    Operation,
    Parity,
    Runtime,
)
from edgeopt.runtimes.parity import check_parity, parity_images, relative_difference
from edgeopt.runtimes.sessions.torch import load_script
from edgeopt.system import known_noise_silenced, native_stderr_logged

# Rounding differs between fp16 kernels by a few units in the last place of the largest logit, and
# where small logits are the difference of large numbers by as much as fp16 is off from fp32; files
# were seen up to 2.4 times as far off as the network they were traced from.
FP16_TOLERANCE = 16 * torch.finfo(torch.float16).eps
FP16_SPREAD = 4
PRODUCTS = {"addmm": 1, "mm": 0, "bmm": 0, "matmul": 0}
COMPOSED = ("einsum", "tensordot", "inner")  # which torch makes of products
WEIGHTED = ("_convolution", "convolution", "conv2d", "linear", "mkldnn_convolution")
# Where the flag of a transposed convolution stands; another operator is one by its name.
TRANSPOSED = {"_convolution": 6, "convolution": 6}
RECURRENT = ("lstm", "gru", "rnn_tanh", "rnn_relu")
ATTENTION = ("scaled_dot_product_attention", "_scaled_dot_product_flash_attention_for_cpu")
# Whole layers of attention in one operator, by the places of their weights.
FUSED_ATTENTION = {
    "_native_multi_head_attention": (5, 7),
    "_transformer_encoder_layer_fwd": (3, 5, 14, 16),
}
# Records of an archive that nothing reads, and those that its writer adds by itself.
LEFT_OUT = (".debug_pkl", "version", ".data/serialization_id")
COUNTED = re.compile(r"/(___torch_mangle_\d+)")
# Elementwise, yet without torch's tag for it: batch norm, some activations, the quantized ones.
ELEMENTWISE = (
    *("batch_norm", "native_batch_norm", "hardswish", "relu6", "prelu", "_prelu_kernel"),
    *("selu", "celu", "add", "add_relu", "mul", "sigmoid", "elu", "leaky_relu"),
)


class TorchRuntime(Runtime):
    """TorchScript, traced and frozen; int8 by FX graph mode quantization."""

    name = "torch"
    title = "PyTorch"
    marker = "o"
    suffix = ".pt"
    precisions = TORCH_PRECISIONS
    session = "edgeopt.runtimes.sessions.torch:TorchSession"
    takes_scheme = True
    packages = ("torch",)

    def write(
        self,
        model: nn.Module,
        path: Path,
        *,
        precision: str,
        input_shape: tuple[int, ...],
        calibration: Sequence[tuple[Tensor, Tensor]],
        tolerance: float,
        options: Int8Options,
    ) -> Parity:
        """Trace the variant of the precision and hold the file to its logits."""
        if precision == "int8":
            batches = len(calibration)
            reduced, left = options.integers.reduce_range, options.float_layers
            variant = to_int8(model, calibration, batches, float_layers=left, reduce_range=reduced)
        else:
            variant = precision_variant(model, precision, None)[0]
        exact = parity_images(input_shape)
        images = exact.half() if precision == "fp16" else exact
        silence, log = known_noise_silenced(), native_stderr_logged()
        with silence, log, quantized_engine(DEFAULT_ENGINE), torch.inference_mode():
            traced = torch.jit.freeze(torch.jit.trace(variant, images))
            path.write_bytes(_reproducible(traced))
            expected = variant(images)
            if precision == "fp16":
                own = relative_difference(model(exact), expected)
                tolerance = max(tolerance, FP16_TOLERANCE, FP16_SPREAD * own)
            loaded = torch.jit.load(path)
            _require_any_batch(loaded, images)
            return check_parity(expected, loaded(images), tolerance=tolerance)

    def operations(self, artifact: Artifact) -> list[Operation]:
        """Operators that torch's dispatcher calls, packed int8 ones included."""
        script = load_script(artifact.path)
        images = torch.zeros(artifact.input_shape, dtype=_float_type(script))
        with quantized_engine(DEFAULT_ENGINE):
            return eager_operations(script, images)

    def weight_bytes(self, artifact: Artifact) -> int:
        """Bytes of parameters, buffers, graph constants and packed weights."""
        return module_weight_bytes(load_script(artifact.path))


def _require_any_batch(script: torch.jit.ScriptModule, images: Tensor) -> None:
    """Raise ``ExportError`` where tracing has fixed the number of images that a file takes."""
    try:
        script(images.repeat(2, 1, 1, 1))
    except RuntimeError as error:
        raise ExportError(
            f"the network's code fixes the number of images, as len(images) does; allowed: what "
            f"holds for any, as images.shape[0]: {str(error).strip().splitlines()[-1]}"
        ) from error


def _reproducible(script: torch.jit.ScriptModule) -> bytes:
    """Save a TorchScript module as the same bytes each time.

    torch's own archive holds the name of its path, where each operation was traced from, and a
    number in each class's name that counts what this process has traced.
    """
    saved, written = io.BytesIO(), io.BytesIO()
    torch.jit.save(script, saved)
    archive = torch._C.PyTorchFileReader(io.BytesIO(saved.getvalue()))
    names = [name for name in archive.get_all_records() if not name.endswith(LEFT_OUT)]
    numbers = [*filter(None, map(COUNTED.search, names))]
    number = numbers[0] if len(numbers) == 1 else None  # more than one tell classes apart
    out = torch._C.PyTorchFileWriter(written)
    for name in names:
        content = archive.get_record(name)
        if number and name.endswith((".py", ".pkl")):
            content = content.replace(f".{number[1]}".encode(), b"")
        out.write_record(name.replace(number[0], "") if number else name, content, len(content))
    out.write_end_of_file()
    return written.getvalue()


def _float_type(script: torch.jit.ScriptModule) -> torch.dtype:
    """Type of the file's float weights, whatever its label; float32 when it has none."""
    held = (*script.parameters(), *_constants(script))
    weights = [v for v in held if isinstance(v, Tensor) and v.dim()]
    return next((w.dtype for w in weights if w.is_floating_point()), torch.float32)


def _constants(model: nn.Module) -> list[Any]:
    # torch.jit.freeze turns parameters and packed weights into constants of the graph
    if not isinstance(model, torch.jit.ScriptModule):
        return []
    graph = model.inlined_graph  # its nodes die with it
    return [node.output().toIValue() for node in graph.findAllNodes("prim::Constant")]


def module_weight_bytes(model: nn.Module) -> int:
    """Bytes of everything the model holds between two calls, shared tensors counted once.

    Parameters, buffers and the packed weights of quantized torch modules, which no
    ``state_dict`` shows as tensors: int8 values, float bias, and per-channel scales (8 bytes
    each) and zero points (8 bytes each). Takes a TorchScript module too, frozen or not.
    """
    constants = _constants(model)
    tensors = [value for value in constants if isinstance(value, Tensor)]
    held: dict[tuple[int, int], int] = {}
    for tensor in (*model.parameters(), *model.buffers(), *tensors):
        held[tensor.data_ptr() or id(tensor), tensor.nbytes] = tensor.nbytes
    packed = [getattr(module, "_packed_params", None) for module in model.modules()]
    objects = [v for v in (*packed, *constants) if isinstance(v, torch.ScriptObject)]
    return sum(held.values()) + sum(map(_packed_bytes, objects))


def _packed_bytes(packed: torch.ScriptObject) -> int:
    weight, bias = packed.unpack()
    if weight.qscheme() in (torch.per_channel_affine, torch.per_channel_affine_float_qparams):
        scheme = weight.q_per_channel_scales().nbytes + weight.q_per_channel_zero_points().nbytes
    else:
        scheme = 8 + 8  # one double scale, one int64 zero point
    return weight.numel() * weight.element_size() + scheme + (0 if bias is None else bias.nbytes)


def eager_operations(model: nn.Module, images: Tensor) -> list[Operation]:
    """Return the operators that torch executes for one batch, a module's or a TorchScript's."""
    recorder = _Recorder()
    with torch.inference_mode(), recorder:
        outputs = _storages(model(images))
    first = Operation("input", writes=tuple(_storages(images).items()))
    return [first, *recorder.operations, Operation("output", reads=tuple(outputs))]


class _Recorder(TorchDispatchMode):
    """Sees every operator that torch calls."""

    def __init__(self) -> None:
        super().__init__()
        self.operations: list[Operation] = []
        self._held: list[Any] = []  # so that an address stays that of one tensor

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None
    ) -> Any:
        if func._opname in COMPOSED:
            with self:
                return func.decompose(*args, **(kwargs or {}))
        result = func(*args, **(kwargs or {}))
        self._held.append(result)
        name, reads = func._opname, tuple(_storages((args, kwargs)))
        writes = tuple(_storages(result).items())
        elementwise = torch.Tag.pointwise in func.tags or name in ELEMENTWISE
        overwrites = reads if elementwise else ()
        macs, precision = _macs(func, args, result)
        self.operations.append(Operation(name, reads, writes, overwrites, macs, precision))
        return result


def _storages(values: Any) -> dict[int, int]:
    tensors = [leaf for leaf in tree_leaves(values) if isinstance(leaf, Tensor)]
    storages = [tensor.untyped_storage() for tensor in tensors]
    return {storage.data_ptr(): storage.nbytes() for storage in storages}


def _macs(func: Any, args: tuple, result: Any) -> tuple[int, str]:
    name = func._opname
    if func.namespace == "quantized" and any(isinstance(a, torch.ScriptObject) for a in args[1:2]):
        applied = args[0] if "transpose" in name else result
        return applied.numel() * math.prod(args[1].unpack()[0].shape[1:]), INTEGER
    if func.namespace == "quantized" and name in PRODUCTS:
        return result.numel() * args[PRODUCTS[name]].shape[-1], INTEGER
    count = _float_macs(name, args, result) if func.namespace == "aten" else 0
    kind = str(args[0].dtype).removeprefix("torch.") if count else ""
    return count, FLOATS.get(kind, kind)


def _float_macs(name: str, args: tuple, result: Any) -> int:
    if name in WEIGHTED or "conv_transpose" in name:
        backwards = "conv_transpose" in name or (name in TRANSPOSED and args[TRANSPOSED[name]])
        return (args[0] if backwards else result).numel() * math.prod(args[1].shape[1:])
    if name in PRODUCTS:
        return result.numel() * args[PRODUCTS[name]].shape[-1]
    if name in RECURRENT:  # of a sequence [T, B, C] or [B, T, C], by each of its layers' weights
        weights = (own.numel() for own in args[2] if own.dim() == 2)
        return args[0].numel() // args[0].shape[-1] * sum(weights)
    if name in ATTENTION:
        made = result[0] if isinstance(result, tuple) else result
        return (args[0].numel() + made.numel()) * args[1].shape[-2]
    if name in FUSED_ATTENTION:  # of [B, T, C]
        weights = sum(args[place].numel() for place in FUSED_ATTENTION[name])
        tokens = args[0].numel() // args[0].shape[-1]
        return tokens * weights + 2 * args[0].numel() * args[0].shape[1]
    return 0
