"""A .tflite file as a graph: its tensors, and its operators in the order of execution."""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np


@dataclass(frozen=True)
class Tensor:
    """Shape of a tensor, and its type under NumPy's name."""

    shape: tuple[int, ...]
    kind: str

    @property
    def nbytes(self) -> int:
        """Bytes of its values."""
        return math.prod(self.shape) * np.dtype(self.kind).itemsize


@dataclass(frozen=True)
class Node:
    """An operator; inputs and outputs are places among the graph's tensors."""

    name: str
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    options: Any = None


@dataclass(frozen=True)
class Graph:
    """A file's one subgraph; ``constant_bytes`` are those of its weights, each counted once."""

    tensors: tuple[Tensor, ...]
    nodes: tuple[Node, ...]
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    constant_bytes: int


def read_graph(content: bytes) -> Graph:
    """Read the bytes of a file that holds one subgraph."""
    from ai_edge_litert.tools import flatbuffer_utils as flatbuffer

    model = flatbuffer.read_model_from_bytearray(bytearray(content))
    [graph] = model.subgraphs
    tensors = (
        Tensor(tuple(tensor.shape or ()), flatbuffer.type_to_name(tensor.type).lower())
        for tensor in graph.tensors
    )
    names = [flatbuffer.opcode_to_name(model, code) for code in range(len(model.operatorCodes))]
    nodes = (
        Node(names[o.opcodeIndex], _present(o.inputs), tuple(o.outputs), o.builtinOptions)
        for o in graph.operators
    )
    constants = [model.buffers[place].data for place in {t.buffer for t in graph.tensors}]
    return Graph(
        tuple(tensors),
        tuple(nodes),
        tuple(graph.inputs),
        tuple(graph.outputs),
        sum(len(data) for data in constants if data is not None),
    )


def _present(places: list[int]) -> tuple[int, ...]:
    """Places without those of inputs that an operator leaves out."""
    return tuple(place for place in places if place >= 0)
