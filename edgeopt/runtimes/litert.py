"""LiteRT: .tflite files, converted in an environment of their own, and what is in them."""

import importlib.util
import json
import math
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from edgeopt.agent.session import Artifact
from edgeopt.quantization import float_modules
from edgeopt.runtimes.contract import (
    FLOATS,
    INTEGER,
    ExportError,
    Int8Options,
    Operation,
    Parity,
    Runtime,
)
from edgeopt.runtimes.formats.litert_graph import Graph, Node, read_graph
from edgeopt.runtimes.parity import check_parity, parity_images
from edgeopt.system import RuntimeUnavailable, known_noise_silenced

CONVERTER = Path(__file__).parents[2] / "build" / "litert" / "bin" / "python"
CONVERSION = Path(__file__).with_name("formats") / "litert_conversion.py"
CONVOLUTIONS = ("CONV_2D", "DEPTHWISE_CONV_2D")
BACKWARDS = "TRANSPOSE_CONV"  # of a shape, weights and what they are applied to
LAYERS = (*CONVOLUTIONS, BACKWARDS, "FULLY_CONNECTED", "BATCH_MATMUL")
# Operators for which XNNPACK's memory planner reuses an operand, as in ExecuTorch.
IN_PLACE = (
    *("ABS", "ADD", "DIV", "ELU", "EXP", "GELU", "LEAKY_RELU", "LOGISTIC", "MAXIMUM", "MINIMUM"),
    *("MUL", "NEG", "PRELU", "RELU", "RELU6", "RESHAPE", "SOFTMAX", "SQRT", "SUB", "TANH"),
)


class LiteRTRuntime(Runtime):
    """LiteRT with XNNPACK; int8 is ai-edge-quantizer's, static, per channel, between floats.

    Source: https://ai.google.dev/edge/litert/conversion/pytorch/overview
    """

    name = "litert"
    title = "LiteRT"
    marker = "v"
    suffix = ".tflite"
    precisions = ("fp32", "int8")
    session = "edgeopt.runtimes.sessions.litert:LiteRTSession"
    packages = ("ai-edge-litert",)
    bare_metal = True  # the same file, by LiteRT for Microcontrollers

    def unavailable(self) -> str:
        """Say that the converter or the runtime is not installed."""
        if CONVERTER.exists() and importlib.util.find_spec("ai_edge_litert"):
            return ""
        return "LiteRT and its converter are not installed: run `make litert`"

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
        """Convert the model; the float file, whatever the precision, is held to torch's logits."""
        if reason := self.unavailable():
            raise RuntimeUnavailable(reason)
        images = parity_images(input_shape)
        with tempfile.TemporaryDirectory(prefix="edgeopt-") as folder:
            _export(model, Path(folder, "program.pt2"), images)
            if precision != "fp32":
                batches = torch.cat([images for images, _ in calibration])
                np.save(Path(folder, "calibration.npy"), _channels_last(batches, len(images)))
            _convert(Path(folder), layers=options.float_layers, modules=float_modules(model))
            path.write_bytes(Path(folder, f"{precision}.tflite").read_bytes())
            return _parity(model, Path(folder, "fp32.tflite"), images, tolerance=tolerance)

    def operations(self, artifact: Artifact) -> Iterator[Operation]:
        """Operators of the file, each of which LiteRT computes in the types of its tensors."""
        graph = read_graph(artifact.path.read_bytes())
        keys = _keys(graph)
        yield Operation("input", writes=_sized(graph, graph.inputs, keys))
        for node in graph.nodes:
            reads = tuple(keys[place] for place in node.inputs)
            overwrites = reads if node.name in IN_PLACE else ()
            writes = _sized(graph, node.outputs, keys)
            yield Operation(node.name, reads, writes, overwrites, *_macs(node, graph))
        yield Operation("output", reads=graph.outputs)

    def weight_bytes(self, artifact: Artifact) -> int:
        """Bytes of the constant tensors, without the scales that stand beside them."""
        return read_graph(artifact.path.read_bytes()).constant_bytes


class _ChannelsLast(nn.Module):
    """The network behind a permutation, which saves the file one of its own.

    What inserted scales divide is returned as well, so that the converter folds no scale away.
    """

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        divided: list[Tensor] = []

        def keep(_: nn.Module, given: tuple[Tensor, ...]) -> None:
            divided.extend(given)

        scaled = [self.network.get_submodule(name) for name in float_modules(self.network)]
        hooks = [module.register_forward_pre_hook(keep) for module in scaled]
        logits = self.network(images.permute(0, 3, 1, 2))
        for hook in hooks:
            hook.remove()
        return logits, *divided


def _export(model: nn.Module, path: Path, images: Tensor) -> None:
    example = images.permute(0, 2, 3, 1).contiguous()
    with known_noise_silenced(), torch.no_grad():
        program = torch.export.export(_ChannelsLast(model).eval(), (example,))
        torch.export.save(program, path)


def _channels_last(images: Tensor, batch: int) -> np.ndarray:
    """Images as batches [N, B, H, W, C], the last filled up with the last image."""
    missing = -len(images) % batch
    filled = torch.cat([images, images[-1:].expand(missing, -1, -1, -1)])
    return filled.permute(0, 2, 3, 1).unflatten(0, (-1, batch)).numpy()


def _convert(folder: Path, **request: object) -> None:
    """Run the converter on what lies in a folder; ``ExportError`` with its last word."""
    lists = {key: sorted(f"network.{name}" for name in names) for key, names in request.items()}
    (folder / "request.json").write_text(json.dumps(lists))
    command = [str(CONVERTER), "-I", str(CONVERSION), str(folder)]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        last = done.stderr.strip().rpartition("\n")[2]
        raise ExportError(f"the converter ended with {done.returncode}: {last}")


def _parity(model: nn.Module, path: Path, images: Tensor, *, tolerance: float) -> Parity:
    from edgeopt.runtimes.sessions.litert import LiteRTSession

    artifact = Artifact(path, LiteRTRuntime.name, "fp32", tuple(images.shape), "", 0)
    logits = LiteRTSession(artifact, threads=1)(images.numpy())
    with torch.no_grad():
        return check_parity(model(images), logits, tolerance=tolerance)


def _keys(graph: Graph) -> list[int]:
    """Storage of every tensor: XNNPACK pads inside the convolution that reads the padded tensor."""
    keys = list(range(len(graph.tensors)))
    for node in graph.nodes:
        readers = {reader.name for reader in graph.nodes if node.outputs[0] in reader.inputs}
        if node.name == "PAD" and readers <= {*CONVOLUTIONS}:
            keys[node.outputs[0]] = keys[node.inputs[0]]
    return keys


def _sized(graph: Graph, places: Sequence[int], keys: Sequence[int]) -> tuple[tuple[int, int], ...]:
    return tuple((keys[place], graph.tensors[place].nbytes) for place in places)


def _macs(node: Node, graph: Graph) -> tuple[int, str]:
    outputs = math.prod(graph.tensors[node.outputs[0]].shape)
    outer = _is_outer_product(node, graph)
    if node.name not in LAYERS and not outer:
        return 0, ""
    places = node.inputs[2:0:-1] if node.name == BACKWARDS else node.inputs[:2]
    first, second = (graph.tensors[place] for place in places)
    if node.name == BACKWARDS:
        outputs, depth = math.prod(first.shape[:-1]), math.prod(second.shape)
    elif outer:
        depth = 1
    elif node.name == "BATCH_MATMUL":
        depth = first.shape[-2 if node.options.adjX else -1]
    elif node.name == "DEPTHWISE_CONV_2D":
        depth = math.prod(second.shape[1:3])
    else:
        depth = math.prod(second.shape[1:])
    integer = first.kind == second.kind == INTEGER
    return outputs * depth, INTEGER if integer else FLOATS.get(first.kind, first.kind)


def _is_outer_product(node: Node, graph: Graph) -> bool:
    """Whether this is a linear layer of one input, which the converter writes as a multiplication.

    One factor is computed, and is smaller than what comes of it; the other is the weights.
    """
    made = {*graph.inputs, *(place for other in graph.nodes for place in other.outputs)}
    computed = [place for place in node.inputs if place in made]
    sizes = [math.prod(graph.tensors[place].shape) for place in (*computed, *node.outputs)]
    return node.name == "MUL" and len(computed) == 1 and sizes[0] < sizes[1]
