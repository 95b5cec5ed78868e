"""One executed operator, whatever the runtime, and the words for the types of its operands."""

from collections.abc import Hashable
from dataclasses import dataclass

import torch

INTEGER = "int8"
# Every name that a runtime has for a type of floating-point operands.
FLOATS = {
    **dict.fromkeys((torch.float32, "float", "f32", "xnn_datatype_fp32"), "fp32"),
    **dict.fromkeys((torch.float16, "float16", "f16", "xnn_datatype_fp16"), "fp16"),
    **dict.fromkeys((torch.bfloat16, "bfloat16", "bf16", "xnn_datatype_bf16"), "bf16"),
}


@dataclass(frozen=True)
class Operation:
    """One executed operator.

    Attributes
    ----------
    reads, writes : tuple
        Storages, each under a key of its runtime; those written with their bytes. What nothing
        writes is a weight.
    overwrites : tuple
        Those of ``reads`` whose memory the runtime takes for the result when no later operator
        reads them and they are as large.
    macs : int
        Multiply-accumulates of a convolution or matrix product, else 0.
    precision : str
        Type of their operands: fp32, fp16, bf16 or int8.
    """

    name: str
    reads: tuple[Hashable, ...] = ()
    writes: tuple[tuple[Hashable, int], ...] = ()
    overwrites: tuple[Hashable, ...] = ()
    macs: int = 0
    precision: str = ""
