"""Peak activation bytes: which tensors a runtime holds at the same time."""

import copy
from collections import Counter
from collections.abc import Hashable, Sequence
from itertools import accumulate

import torch
from torch import nn

from edgeopt.runtimes import Artifact, Operation, eager_operations, executed_graph


def peak_activation_bytes(model: nn.Module, *, input_shape: tuple[int, ...]) -> int:
    """Largest sum of activation bytes that are needed at the same time, input included.

    A tensor lives from the operator that makes it to the last one that reads it, in the order of
    execution. Batch norm, activations and every other elementwise operator write over an operand
    of the same size that nothing reads later, the caller's input excepted; views share their
    source's storage. So a convolution, its batch norm and its activation are one tensor, whether
    the module says ``inplace`` or not, and so is a sum and the summand that ends there. This is
    what ONNX Runtime, OpenVINO and XNNPACK do; torch's interpreter, which is counted alike, holds
    an activation's input and output for a moment. Scratch memory inside an operator, copies into
    another layout and channels padded to whole vectors are not included.

    ``input_shape`` has a batch size; the images are of the type of the model's first weight.
    """
    copied = copy.deepcopy(model).cpu().eval()
    floats = (p.dtype for p in copied.parameters() if p.is_floating_point())
    images = torch.zeros(input_shape, dtype=next(floats, torch.float32))
    return _peak_bytes(eager_operations(copied, images))


def artifact_activation_bytes(artifact: Artifact, *, model: nn.Module) -> int:
    """Peak activation bytes of an artifact at its batch size.

    fp32 is ``peak_activation_bytes`` of the fp32 ``model``, one number for all runtimes. Every
    other precision is counted on the graph that the runtime executes, in the types that its
    tensors have there: the float32 input is quantized or rounded first, and what the runtime
    leaves in float, or copies into another layout, is counted so.
    """
    if artifact.precision == "fp32":
        return peak_activation_bytes(model, input_shape=artifact.input_shape)
    return _peak_bytes(executed_graph(artifact))


class _Lifetime:
    """Bytes of a storage and the positions of the operators that first and last touch it."""

    def __init__(self, size: int, first: int) -> None:
        self.size, self.first, self.last = size, first, first


def _peak_bytes(operations: Sequence[Operation]) -> int:
    lives = _lifetimes(operations)
    _share_memory(operations, lives)
    change = Counter()
    for life in lives.values():
        change[life.first] += life.size
        change[life.last + 1] -= life.size
    return max(accumulate(change[index] for index in range(len(operations))))


def _lifetimes(operations: Sequence[Operation]) -> dict[Hashable, _Lifetime]:
    lives: dict[Hashable, _Lifetime] = {}
    for index, operation in enumerate(operations):
        for key, size in operation.writes:
            if key not in operation.reads:  # else a view, of an activation or of a weight
                lives.setdefault(key, _Lifetime(size, index))
        for key in (*operation.reads, *dict(operation.writes)):
            if key in lives:
                lives[key].last = index
    return lives


def _share_memory(operations: Sequence[Operation], lives: dict[Hashable, _Lifetime]) -> None:
    """Join the lifetime of every result to that of the operand that it is written over."""
    holder: dict[Hashable, Hashable] = {}
    inputs = {key for operation in operations if not operation.reads for key, _ in operation.writes}
    for index, operation in enumerate(operations):
        sources = [holder.get(key, key) for key in operation.overwrites if key not in inputs]
        made = [key for key, _ in operation.writes if key in lives and lives[key].first == index]
        for key in made:
            ended = (index, lives[key].size)
            free = [s for s in sources if s in lives and (lives[s].last, lives[s].size) == ended]
            if free:
                holder[key] = free[0]
                lives[free[0]].last = lives.pop(key).last
