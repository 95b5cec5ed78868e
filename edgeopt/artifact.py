"""The file that a runtime loads and what it is; nothing heavy is imported here."""

import math
from dataclasses import dataclass
from pathlib import Path

from edgeopt.schema import PRECISIONS_OF_RUNTIME, RUNTIMES, require_known

INPUT, OUTPUT = "images", "logits"


@dataclass(frozen=True)
class Artifact:
    """A file that a runtime loads, and what it is; ``input_shape`` is [B, C, H, W].

    ``parity_difference`` and ``parity_agreement`` are those of :class:`edgeopt.parity.Parity`, of
    int8 ONNX for the float graph that was quantized; NaN where nothing was compared.
    """

    path: Path
    runtime: str
    precision: str
    input_shape: tuple[int, ...]
    sha256: str
    size_bytes: int
    parity_difference: float = math.nan
    parity_agreement: float = math.nan

    def __post_init__(self) -> None:
        """Refuse what no runtime offers."""
        check_target(self.runtime, self.precision, self.input_shape)

    @property
    def title(self) -> str:
        """The artifact in words, for messages."""
        return f"artifact {self.path.name} ({self.runtime} {self.precision})"


def check_target(runtime: str, precision: str, input_shape: tuple[int, ...]) -> None:
    """Raise ``ValueError`` unless the runtime has the precision and the shape is [B, C, H, W]."""
    require_known(runtime, allowed=RUNTIMES, what="runtime")
    known = PRECISIONS_OF_RUNTIME[runtime]
    require_known(precision, allowed=known, what=f"precision of the {runtime} runtime")
    if len(input_shape) != 4 or min(input_shape) < 1:
        raise ValueError(f"input_shape is {tuple(input_shape)}; allowed: [B, C, H, W], each >= 1")
