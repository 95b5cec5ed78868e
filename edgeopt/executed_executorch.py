"""The operators that ExecuTorch executes, from the program and its XNNPACK delegates."""

import json
import math
import re
import tempfile
from collections.abc import Hashable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch

from edgeopt._upstream import import_extra, known_noise_silenced
from edgeopt.artifact import Artifact
from edgeopt.operations import FLOATS, INTEGER, Operation

XNNPACK_WEIGHTED = ("XNNConv2d", "XNNDepthwiseConv2d", "XNNFullyConnected")
XNNPACK_PRODUCT = "XNNBatchMatrixMultiply"
# Elementwise operators and reshapes, for which XNNPACK's memory planner reuses an operand
# (runtime.c, optimize_tensor_allocation_for_in_place_operations).
XNNPACK_IN_PLACE = tuple(
    f"XNN{name}"
    for name in (
        *("Abs", "Add", "Ceiling", "Clamp", "Copy", "Div", "ELU", "Exp", "Floor", "Gelu"),
        *("Hardswish", "LeakyReLU", "Maximum", "Minimum", "Multiply", "Negate", "PReLU"),
        *("Sigmoid", "Softmax", "Square", "SquareRoot", "StaticReshape", "Subtract", "Tanh"),
    )
)
EXECUTORCH_WEIGHTED = ("aten::convolution", "aten::linear")
EXECUTORCH_PRODUCTS = {"aten::addmm": 1, "aten::mm": 0, "aten::bmm": 0}


def executorch_operations(artifact: Artifact) -> Iterator[Operation]:
    """Operators inside the XNNPACK delegates, and those left to ExecuTorch's float kernels."""
    program = import_extra("executorch.exir._serialize._program", extra="executorch")
    with known_noise_silenced():
        file = program.deserialize_pte_binary(artifact.path.read_bytes())
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


def _program_tensors(plan: Any, indices: Iterable[int]) -> tuple[tuple[int, int], ...]:
    """Tensors and members of tensor lists among a program's values, each with its bytes."""
    values = {index: plan.values[index].val for index in indices}
    lists = [
        items for value in values.values() if isinstance(items := getattr(value, "items", 0), list)
    ]
    members = {index: plan.values[index].val for items in lists for index in items}
    tensors = {i: v for i, v in (values | members).items() if hasattr(v, "scalar_type")}
    return tuple((i, _dtype(v).itemsize * math.prod(v.sizes)) for i, v in tensors.items())


def _dtype(value: Any) -> torch.dtype:
    name = value.scalar_type.name.lower()
    return getattr(torch, {"byte": "uint8", "char": "int8"}.get(name, name))


def _portable_operation(plan: Any, name: str, args: Sequence[int]) -> Operation:
    output = args[-1]
    reads = tuple(dict(_program_tensors(plan, [i for i in args if i != output])))
    macs = _portable_macs(name, [plan.values[index].val for index in args])
    return Operation(name, reads, _program_tensors(plan, [output]), (), *macs)


def _portable_macs(name: str, values: Sequence[Any]) -> tuple[int, str]:
    if name in EXECUTORCH_WEIGHTED:
        depth = math.prod(values[1].sizes[1:])
    elif name in EXECUTORCH_PRODUCTS:
        depth = values[EXECUTORCH_PRODUCTS[name]].sizes[-1]
    else:
        return 0, ""
    return math.prod(values[-1].sizes) * depth, FLOATS.get(_dtype(values[-1]), "")


def _xnnpack_operations(payload: bytes, delegate: int, args: Sequence[int]) -> Iterator[Operation]:
    """Operators of a delegate; what it shares with the program bears the program's keys."""
    graph = _xnnpack_graph(payload)
    values = {}
    for entry in graph["xvalues"]:
        value = entry["xvalue_union"]
        tensor = value.get("tensor_value", value)
        values[tensor["id_out"]] = tensor
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
    overwrites = own if kind in XNNPACK_IN_PLACE else ()
    return Operation(kind, reads, writes, overwrites, *_xnnpack_macs(kind, node, values))


def _xnnpack_macs(kind: str, node: dict[str, Any], values: dict[int, Any]) -> tuple[int, str]:
    if kind not in (*XNNPACK_WEIGHTED, XNNPACK_PRODUCT):
        return 0, ""
    first, output = values[node["input1_id"]], values[node["output_id"]]
    if kind == XNNPACK_PRODUCT:
        operands, depth = (first, values[node["input2_id"]]), first["dims"][-1]
    else:
        weight = values[node["filter_id"]]
        operands = (first, weight)
        depth = math.prod(weight["dims"]) // output["dims"][-1]  # channels are last
    integer = all(re.search(r"_q\w*int\d", operand["datatype"]) for operand in operands)
    precision = INTEGER if integer else FLOATS.get(first["datatype"], first["datatype"])
    return math.prod(output["dims"]) * depth, precision


def _xnnpack_graph(payload: bytes) -> dict[str, Any]:
    flatbuffer = import_extra("executorch.exir._serialize._flatbuffer", extra="executorch")
    serializer = import_extra(
        "executorch.backends.xnnpack.serialization.xnnpack_graph_serialize", extra="executorch"
    )
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
