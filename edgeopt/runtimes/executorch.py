"""ExecuTorch: programs lowered to XNNPACK, what they execute, and their event traces."""

import json
import math
import re
import tempfile
import warnings
from collections.abc import Collection, Hashable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from torch import Tensor, nn

from edgeopt.agent.session import Artifact
from edgeopt.runtimes.contract import (
    FLOATS,
    INTEGER,
    Int8Options,
    Operation,
    Parity,
    Runtime,
)
from edgeopt.runtimes.parity import check_parity, parity_images
from edgeopt.system import (
    RuntimeUnavailable,
    import_extra,
    known_noise_silenced,
    native_stderr_logged,
)

BACKWARDS = "XNNConvTranspose2d"
WEIGHTED = ("XNNConv2d", "XNNDepthwiseConv2d", "XNNFullyConnected", BACKWARDS)
PRODUCT = "XNNBatchMatrixMultiply"
# Elementwise operators and reshapes, for which XNNPACK's memory planner reuses an operand
# (runtime.c, optimize_tensor_allocation_for_in_place_operations).
IN_PLACE = tuple(
    f"XNN{name}"
    for name in (
        *("Abs", "Add", "Ceiling", "Clamp", "Copy", "Div", "ELU", "Exp", "Floor", "Gelu"),
        *("Hardswish", "LeakyReLU", "Maximum", "Minimum", "Multiply", "Negate", "PReLU"),
        *("Sigmoid", "Softmax", "Square", "SquareRoot", "StaticReshape", "Subtract", "Tanh"),
    )
)
PORTABLE_WEIGHTED = ("aten::convolution", "aten::linear")
PORTABLE_PRODUCTS = {"aten::addmm": 1, "aten::mm": 0, "aten::bmm": 0}
TORCH_TYPES = {"byte": "uint8", "char": "int8", "float": "float32", "half": "float16"}
# ETDump events that contain other events.
CONTAINERS = ("DELEGATE_CALL", "OPERATOR_CALL", "Method::execute")


class ExecuTorchRuntime(Runtime):
    """ExecuTorch with XNNPACK; int8 is PT2E static quantization, per channel.

    Source: https://docs.pytorch.org/executorch/stable/backends/xnnpack/xnnpack-overview.html
    """

    name = "executorch"
    title = "ExecuTorch"
    marker = "^"
    suffix = ".pte"
    precisions = ("fp32", "int8")
    session = "edgeopt.runtimes.sessions.executorch:ExecuTorchSession"
    packages = ("executorch", "torch")
    package = "executorch"
    any_batch = False
    bare_metal = True  # with a file exported for the portable or Cortex-M kernels, not XNNPACK's

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
        """Lower the model; the fp32 program is held to torch's logits, int8 is not compared."""
        exir = import_extra("executorch.exir")
        xnnpack = import_extra("executorch.backends.xnnpack.partition.xnnpack_partitioner")
        images = parity_images(input_shape)
        with known_noise_silenced(), torch.no_grad():
            lowered = model
            if precision != "fp32":
                lowered = _quantize(model, calibration, layers=options.float_layers)
            program = torch.export.export(lowered, (images,))
            partitioner = xnnpack.XnnpackPartitioner()
            edge = exir.to_edge_transform_and_lower(program, partitioner=[partitioner])
            path.write_bytes(edge.to_executorch().buffer)
            if precision != "fp32":
                return Parity()
            from edgeopt.runtimes.sessions.executorch import load_program

            with native_stderr_logged():
                logits = load_program(path).forward((images,))[0]
            return check_parity(model(images), logits, tolerance=tolerance)

    def simulated(
        self,
        model: nn.Module,
        *,
        calibration: Sequence[tuple[Tensor, Tensor]],
        options: Int8Options,
    ) -> nn.Module:
        """Return the quantized graph before it is lowered, which takes most of a file's time."""
        with known_noise_silenced(), torch.no_grad():
            return _quantize(model, calibration, layers=options.float_layers)

    def operations(self, artifact: Artifact) -> Iterator[Operation]:
        """Operators inside the XNNPACK delegates, and those left to the portable kernels."""
        file = _program_file(artifact.path)
        plan = next(plan for plan in file.program.execution_plan if plan.name == "forward")
        yield Operation("input", writes=_program_tensors(plan, plan.inputs))
        for instruction in plan.chains[0].instructions:
            call = instruction.instr_args
            if hasattr(call, "delegate_index"):
                delegate = plan.delegates[call.delegate_index].processed.index
                payload = file.program.backend_delegate_data[delegate].data
                yield from _xnnpack_operations(payload, call.delegate_index, call.args)
            elif hasattr(call, "op_index"):
                yield _portable_operation(plan, plan.operators[call.op_index].name, call.args)
        yield Operation("output", reads=tuple(plan.outputs))

    def weight_bytes(self, artifact: Artifact) -> int:
        """Bytes of constant and named data, the delegates' weights among them."""
        file = _program_file(artifact.path)
        named = file.named_data.buffers if file.named_data else []
        constants = file.program.constant_buffer
        return sum(len(entry.storage) for entry in constants) + sum(map(len, named))

    def layer_times(self, artifact: Artifact, *, threads: int) -> pd.DataFrame:
        """Operator times of ETDump, down to XNNPACK's operators.

        Source: https://docs.pytorch.org/executorch/stable/etdump.html
        """
        from edgeopt.runtimes.profiling import RUNS, WARMUP, operator_times, profiled_batch
        from edgeopt.runtimes.sessions.executorch import set_threads

        set_threads(threads)
        with known_noise_silenced(), native_stderr_logged():
            runtime = import_extra("executorch.runtime").Runtime.get()
            program = runtime.load_program(artifact.path, enable_etdump=True, debug_buffer_size=0)
            method = program.load_method("forward")
        inputs = (torch.from_numpy(profiled_batch(artifact.input_shape)),)
        for _ in range(WARMUP + RUNS):
            method.execute(inputs)
        with tempfile.TemporaryDirectory(prefix="edgeopt-") as folder:
            dump = Path(folder, "profile.etdp")
            program.write_etdump_result_to_file(str(dump), str(Path(folder, "tensors.bin")))
            if not dump.exists() or not dump.stat().st_size:
                raise RuntimeUnavailable(
                    "unavailable: this ExecuTorch was built without event tracing"
                )
            return operator_times(_etdump_calls(dump), warmup=WARMUP)


def _quantize(
    model: nn.Module,
    calibration: Sequence[tuple[Tensor, Tensor]],
    *,
    layers: Collection[str],
) -> nn.Module:
    from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e

    from edgeopt.model import with_readers
    from edgeopt.quantization import float_modules, two_or_more, xnnpack_quantizer

    left = {*float_modules(model), *with_readers(model, layers)}
    batches = [images for images, _ in calibration]
    batch = ({0: torch.export.Dim("batch", min=1)},)
    example = two_or_more(batches[0])
    exported = torch.export.export(model, (example,), dynamic_shapes=batch).module()
    prepared = prepare_pt2e(exported, xnnpack_quantizer(left=left))
    for images in batches:
        prepared(images)
    return convert_pt2e(prepared)


def _program_file(path: Path) -> Any:
    program = import_extra("executorch.exir._serialize._program")
    with known_noise_silenced():
        return program.deserialize_pte_binary(path.read_bytes())


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


def _program_tensors(plan: Any, indices: Iterable[int]) -> tuple[tuple[int, int], ...]:
    """Tensors and members of tensor lists among a program's values, each with its bytes."""
    values = {index: plan.values[index].val for index in indices}
    lists = [
        items for value in values.values() if isinstance(items := getattr(value, "items", 0), list)
    ]
    members = {index: plan.values[index].val for items in lists for index in items}
    tensors = {i: v for i, v in (values | members).items() if hasattr(v, "scalar_type")}
    sizes = {i: getattr(torch, _type_name(v)).itemsize for i, v in tensors.items()}
    return tuple((i, sizes[i] * math.prod(v.sizes)) for i, v in tensors.items())


def _type_name(value: Any) -> str:
    name = value.scalar_type.name.lower()
    return TORCH_TYPES.get(name, name)


def _portable_operation(plan: Any, name: str, args: Sequence[int]) -> Operation:
    writes = _program_tensors(plan, args[-1:])
    made = {args[-1], *dict(writes)}  # of several outputs each stands among the arguments too
    reads = tuple(dict(_program_tensors(plan, [i for i in args if i not in made])))
    macs = _portable_macs(name, [plan.values[index].val for index in args])
    return Operation(name, reads, writes, (), *macs)


def _portable_macs(name: str, values: Sequence[Any]) -> tuple[int, str]:
    if name in PORTABLE_WEIGHTED:
        depth = math.prod(values[1].sizes[1:])
    elif name in PORTABLE_PRODUCTS:
        depth = values[PORTABLE_PRODUCTS[name]].sizes[-1]
    else:
        return 0, ""
    return math.prod(values[-1].sizes) * depth, FLOATS.get(_type_name(values[-1]), "")


def _xnnpack_operations(payload: bytes, delegate: int, args: Sequence[int]) -> Iterator[Operation]:
    """Operators of a delegate; what it shares with the program has the program's keys."""
    graph = _xnnpack_graph(payload)
    unions = [entry["xvalue_union"] for entry in graph["xvalues"]]
    tensors = [value.get("tensor_value", value) for value in unions]
    values = {tensor["id_out"]: tensor for tensor in tensors}
    keys: dict[int, Hashable] = {index: (delegate, index) for index in values}
    for index in (*graph["input_ids"], *graph["output_ids"]):
        keys[index] = args[values[index]["external_id"]]
    for entry in graph["xnodes"]:
        yield _xnnpack_operation(entry["xnode_union_type"], entry["xnode_union"], values, keys)


def _xnnpack_operation(
    kind: str, node: dict[str, Any], values: dict[int, Any], keys: dict[int, Hashable]
) -> Operation:
    fields = [name for name in node if name.endswith("_id") and name != "output_id"]
    reads = tuple(keys[node[name]] for name in fields if node[name] in keys)
    output = values[node["output_id"]]
    bits = int(re.search(r"\d+$", output["datatype"]).group())
    writes = ((keys[node["output_id"]], bits * math.prod(output["dims"]) // 8),)
    # XNNPACK writes over its own workspace only, not over what the program hands to it.
    own = tuple(key for key in reads if isinstance(key, tuple))
    overwrites = own if kind in IN_PLACE else ()
    return Operation(kind, reads, writes, overwrites, *_xnnpack_macs(kind, node, values))


def _xnnpack_macs(kind: str, node: dict[str, Any], values: dict[int, Any]) -> tuple[int, str]:
    if kind not in (*WEIGHTED, PRODUCT):
        return 0, ""
    first, output = values[node["input1_id"]], values[node["output_id"]]
    if kind == PRODUCT:
        operands, depth = (first, values[node["input2_id"]]), first["dims"][-1]
    else:
        weight = values[node["filter_id"]]
        operands = (first, weight)
        output = first if kind == BACKWARDS else output
        depth = math.prod(weight["dims"]) // output["dims"][-1]  # channels are last
    integer = all(re.search(r"_q\w*int\d", operand["datatype"]) for operand in operands)
    precision = INTEGER if integer else FLOATS.get(first["datatype"], first["datatype"])
    return math.prod(output["dims"]) * depth, precision


def _xnnpack_graph(payload: bytes) -> dict[str, Any]:
    flatbuffer = import_extra("executorch.exir._serialize._flatbuffer")
    serializer = import_extra("executorch.backends.xnnpack.serialization.xnnpack_graph_serialize")
    header = serializer.XNNHeader.from_bytes(payload[: serializer.XNNHeader.EXPECTED_LENGTH])
    end = header.flatbuffer_offset + header.flatbuffer_size
    with tempfile.TemporaryDirectory(prefix="edgeopt-") as folder:
        schema, binary = Path(folder, "schema.fbs"), Path(folder, "graph.bin")
        schema.write_bytes(serializer._get_schema_bytes())
        binary.write_bytes(payload[header.flatbuffer_offset : end])
        flatbuffer._flatc_decompile(folder, str(schema), str(binary), ["--raw-binary"])
        text = binary.with_suffix(".json").read_text()
    # flatc writes the open upper bound of a ReLU as a bare inf, which is not JSON.
    return json.loads(re.sub(r"(?<=: )(-?)inf\b", r"\1Infinity", text))
