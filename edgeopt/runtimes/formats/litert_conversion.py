"""Exported program -> .tflite: a script for the converter's own virtual environment.

``python -I litert_conversion.py FOLDER`` reads ``program.pt2``, ``request.json`` and, for int8,
``calibration.npy`` there, and writes ``fp32.tflite`` and ``int8.tflite``. The program takes
channels-last images. What it returns beside the logits is written into no file: the converter
folds a multiplication or division into the layer before it, unless others read that layer too.
"""

import json
import sys
from collections.abc import Collection
from pathlib import Path

import litert_torch
import numpy as np
import torch
from ai_edge_litert.schema_py_generated import BuiltinOperator, ModelT, OperatorT, SubGraphT
from ai_edge_litert.tools import flatbuffer_utils
from ai_edge_quantizer.algorithm_manager import AlgorithmName
from ai_edge_quantizer.calibrator import CalibrationMode, Calibrator
from ai_edge_quantizer.qtyping import TFLOperationName
from ai_edge_quantizer.quantizer import Quantizer
from ai_edge_quantizer.recipe_manager import RecipeManager
from ai_edge_quantizer.utils.qsv_utils import min_max_update

SIGNATURE, INPUT = "serving_default", "args_0"
FLOAT = "float"
LAYERS = {
    getattr(BuiltinOperator, name)
    for name in ("CONV_2D", "DEPTHWISE_CONV_2D", "FULLY_CONNECTED", "BATCH_MATMUL")
}


def main(folder: Path) -> None:
    """Convert what lies in a folder."""
    request = json.loads((folder / "request.json").read_text())
    model = converted(folder / "program.pt2")
    drop_all_but_logits(model)
    name_tensors(model, left=float_operators(model, **request))
    float_file = folder / "fp32.tflite"
    float_file.write_bytes(flatbuffer_utils.convert_object_to_bytearray(model))
    if (folder / "calibration.npy").exists():
        batches = np.load(folder / "calibration.npy", mmap_mode="r")
        (folder / "int8.tflite").write_bytes(quantized(str(float_file), batches))


def converted(path: Path) -> ModelT:
    """Convert a program; tensors are named by the modules that made them."""
    program = torch.export.load(path)
    for node in program.graph.nodes:
        if modules := node.meta.get("nn_module_stack"):
            innermost = list(modules.values())[-1][0]
            node.meta["nn_module_stack"] = {"": ("", innermost)}
    images = program.example_inputs[0]
    made = litert_torch.convert(program.module(), images)
    return flatbuffer_utils.read_model_from_bytearray(bytearray(made.model_content()))


def drop_all_but_logits(model: ModelT) -> None:
    """Keep the first output, and the operators that it depends on."""
    [graph], [signature] = model.subgraphs, model.signatureDefs
    logits = next(o.tensorIndex for o in signature.outputs if o.name == b"output_0")
    signature.outputs = [o for o in signature.outputs if o.tensorIndex == logits]
    graph.outputs, needed, kept = [logits], {logits}, []
    for operator in reversed(graph.operators):
        if needed.intersection(operator.outputs):
            needed.update(operator.inputs)
            kept.append(operator)
    graph.operators = kept[::-1]


def float_operators(
    model: ModelT, *, layers: Collection[str], modules: Collection[str]
) -> set[int]:
    """Places of the operators of ``layers`` and inside ``modules``, which stay in float.

    With a layer stays what reads its result, directly or through other operators, up to and with
    the next layers. Raises ``ValueError`` when the file has no operator of a layer.
    """
    [graph] = model.subgraphs
    codes = [flatbuffer_utils.get_builtin_code_from_operator_code(c) for c in model.operatorCodes]
    left: set[int] = set()
    opened: set[int] = set()
    missing = set(layers)
    for place, operator in enumerate(graph.operators):
        scopes = scopes_of(operator, graph)
        missing -= scopes
        named = not scopes.isdisjoint(layers)
        reads = not opened.isdisjoint(operator.inputs)
        if named or (reads and codes[operator.opcodeIndex] not in LAYERS):
            opened.update(operator.outputs)
        if named or reads or not scopes.isdisjoint(modules):
            left.add(place)
    if missing:
        raise ValueError(f"the file has no operator of {sorted(missing)}")
    return left


def scopes_of(operator: OperatorT, graph: SubGraphT) -> set[str]:
    """Modules that made an operator's results and its weight, and the modules around them."""
    tensors = [graph.tensors[place] for place in (*operator.outputs, *operator.inputs[1:2])]
    names = {name for tensor in tensors for name in tensor.name.decode().split(";")}
    parts = [name.split(".") for name in names]
    return {".".join(part[:end]) for part in parts for end in range(1, len(part) + 1)}


def name_tensors(model: ModelT, *, left: Collection[int]) -> None:
    """Give tensors short names, by which the quantizer knows the operators to leave in float."""
    [graph] = model.subgraphs
    for place, tensor in enumerate(graph.tensors):
        tensor.name = str(place).encode()
    for place in left:
        for result in graph.operators[place].outputs:
            graph.tensors[result].name = f"{FLOAT}{result}".encode()


def quantized(path: str, batches: np.ndarray) -> bytes:
    """Quantize to static int8, per channel, between floats; batches are [N, B, H, W, C]."""
    quantizer = Quantizer(path)
    quantizer.add_static_config(".*", TFLOperationName.ALL_SUPPORTED, 8, 8)
    for regex, operator in (
        (f"^{FLOAT}", TFLOperationName.ALL_SUPPORTED),
        (".", TFLOperationName.INPUT),
        (".", TFLOperationName.OUTPUT),
    ):
        quantizer.update_quantization_recipe(
            regex, operator, algorithm_key=AlgorithmName.NO_QUANTIZE
        )
    # The quantizer's own calibration takes moving averages, not the whole range.
    mode = CalibrationMode.CALIBRATION_PROFILER_BASED
    calibrator = Calibrator(path, 1, mode, min_max_update)
    images = [{INPUT: batch} for batch in batches]
    calibrator.calibrate({SIGNATURE: images}, RecipeManager())
    return bytes(quantizer.quantize(calibrator.get_model_qsvs()).quantized_model)


if __name__ == "__main__":
    try:
        main(Path(sys.argv[1]))
    except Exception as error:  # the converter and the quantizer raise whatever they like
        said, _, _ = str(error).strip().partition("\n")
        sys.exit(f"{type(error).__name__}: {said}")
