"""Which integers a CPU multiplies exactly."""

from collections.abc import Collection
from dataclasses import dataclass

from edgeopt.schema import TIMES, require_known
from edgeopt.system.host import host_facts

VNNI = frozenset({"avx512_vnni", "avx_vnni", "amx_int8"})
INTEGER_TYPES = {"uint8": "U8", "int8": "S8"}
WEIGHT_STEPS = 127  # of 8-bit weights, on either side of zero
REDUCED_STEPS = 64


@dataclass(frozen=True)
class Int8Scheme:
    """Integer types that a CPU multiplies exactly, why, and what happens elsewhere."""

    reason: str
    note: str
    activations: str = "uint8"
    weights: str = "int8"
    reduce_range: bool = False

    def __post_init__(self) -> None:
        for value in (self.activations, self.weights):
            require_known(value, allowed=INTEGER_TYPES, what="integer type")

    @property
    def name(self) -> str:
        """Short name: ``U8S8``, ``U8U8``, with ``reduced range`` for 7-bit weights."""
        name = INTEGER_TYPES[self.activations] + INTEGER_TYPES[self.weights]
        return f"{name} reduced range" if self.reduce_range else name

    @property
    def weight_steps(self) -> int:
        """Steps of a weight on either side of zero, in the files that take the scheme's weights."""
        return REDUCED_STEPS if self.reduce_range else WEIGHT_STEPS


U8S8 = Int8Scheme(
    reason="the CPU adds products of unsigned and signed bytes straight into 32 bits",
    note="U8S8 with full-range weights saturates on x86 CPUs without VNNI: there the products of "
    "two neighbours are added in 16 bits, and accuracy falls. Export again for such a CPU.",
)
U8S8_REDUCED = Int8Scheme(
    reduce_range=True,
    reason="x86 without VNNI adds two byte products in 16 bits, which 8-bit weights overflow; "
    f"7-bit weights cannot (2 {TIMES} 255 {TIMES} 64 < 2^15), nor can 7-bit activations in PyTorch",
    note="Runs without saturation on every CPU, with one bit less than a CPU with VNNI could use.",
)
U8U8 = Int8Scheme(
    weights="uint8",
    reason="unsigned byte products are widened before they are added, so none saturates",
    note="Exact on every CPU; on x86 it is slower than U8S8.",
)


def int8_scheme(isa: Collection[str] | None = None) -> Int8Scheme:
    """Choose the INT8 scheme that instruction sets ``isa`` (names of `host_facts`) run exactly.

    Those of this machine when omitted.

    Source: https://onnxruntime.ai/docs/performance/model-optimizations/quantization.html
    """
    isa = host_facts()["isa"] if isa is None else isa
    if VNNI & set(isa) or "i8mm" in isa:
        return U8S8
    return U8S8_REDUCED if "avx2" in isa else U8U8
