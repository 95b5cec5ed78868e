"""A .tflite file for microcontrollers: as a C header, with the memory that its tensors need."""

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from edgeopt.agent.session import Artifact
from edgeopt.runtimes.formats.litert_graph import Graph, read_graph
from edgeopt.system import write_atomically

ALIGNMENT = 16
ROW = 12
HEADER = """\
// {title}, SHA-256 {sha256}
// The arena holds the tensors; add the interpreter's own structures and the kernels' scratch.
#ifndef MODEL_H_
#define MODEL_H_

#include <stdalign.h>

#define MODEL_BYTES {size}
#define MODEL_ARENA_BYTES {arena}

alignas({alignment}) static const unsigned char model[MODEL_BYTES] = {{
{rows}
}};

#endif  // MODEL_H_
"""


@dataclass(frozen=True)
class Lifetime:
    """Bytes of a tensor, and the first and last steps at which they are needed."""

    nbytes: int
    first: int
    last: int

    def overlaps(self, other: "Lifetime") -> bool:
        """Whether both are needed at one step."""
        return self.first <= other.last and other.first <= self.last


def write_header(artifact: Artifact, path: str | Path, *, integer_borders: bool = False) -> Path:
    """Write a .tflite artifact as a C or C++ header: its bytes, their number, and the arena's.

    ``integer_borders`` writes :func:`with_integer_borders` of it. Raises ``ValueError`` when the
    artifact is of another kind, or has no integers at its borders.
    """
    if artifact.path.suffix != ".tflite":
        raise ValueError(f"{artifact.title} is no .tflite file")
    content = artifact.path.read_bytes()
    if integer_borders:
        content = with_integer_borders(content)
    text = HEADER.format(
        title=artifact.title,
        sha256=hashlib.sha256(content).hexdigest(),
        size=len(content),
        arena=arena_bytes(content),
        alignment=ALIGNMENT,
        rows="\n".join(_rows(content)),
    )
    return write_atomically(Path(path), text.encode())


def with_integer_borders(content: bytes) -> bytes:
    """Take the conversions from and to float out of an int8 file: it takes and returns int8.

    What they did is the caller's: ``round(value / scale) + zero_point`` of the input tensor, and
    ``scale * (value - zero_point)`` of the output. Raises ``ValueError`` where there are none.
    """
    from ai_edge_litert.tools import flatbuffer_utils as flatbuffer

    model = flatbuffer.read_model_from_bytearray(bytearray(content))
    [graph], [signature] = model.subgraphs, model.signatureDefs
    first, *inner, last = graph.operators
    names = [flatbuffer.opcode_to_name(model, node.opcodeIndex) for node in (first, last)]
    if names != ["QUANTIZE", "DEQUANTIZE"]:
        raise ValueError(f"the file's borders are {names}; allowed: QUANTIZE and DEQUANTIZE")
    graph.operators, graph.inputs, graph.outputs = inner, first.outputs, last.inputs
    [signature.inputs[0].tensorIndex], [signature.outputs[0].tensorIndex] = (
        graph.inputs,
        graph.outputs,
    )
    return bytes(flatbuffer.convert_object_to_bytearray(model))


def arena_bytes(content: bytes) -> int:
    """Estimate the bytes that a file's tensors take of LiteRT for Microcontrollers' arena.

    Planned as its greedy memory planner does; weights stay in flash. Left out is what the file does
    not tell: the interpreter's structures, the parameters that kernels prepare, their scratch
    buffers (as CMSIS-NN's) and variables. The interpreter itself says the whole once it has
    allocated: ``arena_used_bytes()``.

    Source: https://ai.google.dev/edge/litert/microcontrollers/get_started
    """
    return planned_bytes(_lifetimes(read_graph(content)))


def planned_bytes(lifetimes: Iterable[Lifetime]) -> int:
    """Bytes of a memory in which tensors are placed, largest first, each as low as it can be.

    Every tensor begins at a multiple of 16 bytes.
    """
    placed: list[tuple[int, int, Lifetime]] = []
    for life in sorted(lifetimes, key=lambda life: -life.nbytes):
        size = -(-life.nbytes // ALIGNMENT) * ALIGNMENT
        taken = sorted((start, end) for start, end, other in placed if life.overlaps(other))
        start = _lowest_gap(taken, size)
        placed.append((start, start + size, life))
    return max((end for _, end, _ in placed), default=0)


def _lowest_gap(taken: Sequence[tuple[int, int]], size: int) -> int:
    lowest = 0
    for start, end in taken:
        if start - lowest >= size:
            break
        lowest = max(lowest, end)
    return lowest


def _lifetimes(graph: Graph) -> list[Lifetime]:
    """Lifetimes of the tensors that are computed; step 0 is before the first operator."""
    first = dict.fromkeys(graph.inputs, 0)
    first |= {place: step for step, node in enumerate(graph.nodes, 1) for place in node.outputs}
    last = dict(first)
    last |= {place: step for step, node in enumerate(graph.nodes, 1) for place in node.inputs}
    last |= dict.fromkeys(graph.outputs, len(graph.nodes))
    return [Lifetime(graph.tensors[place].nbytes, first[place], last[place]) for place in first]


def _rows(content: bytes) -> Iterable[str]:
    for start in range(0, len(content), ROW):
        yield "    " + " ".join(f"0x{byte:02x}," for byte in content[start : start + ROW])
