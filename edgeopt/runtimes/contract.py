"""What every runtime is to edgeopt: the file it loads, the session it gives, and the contract."""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from edgeopt.schema import MIXED, STATIC_INT8, require_known
from edgeopt.system import U8S8, Int8Scheme, RuntimeUnavailable, import_extra

if TYPE_CHECKING:
    import pandas as pd
    from torch import Tensor, nn

    from edgeopt.runtimes.parity import Parity

INPUT, OUTPUT = "images", "logits"
FLOAT32 = np.dtype(np.float32)
INTEGER = "int8"
# Every name that a runtime has for a type of floating-point operands.
FLOATS = {
    **dict.fromkeys(("float32", "float", "f32", "xnn_datatype_fp32"), "fp32"),
    **dict.fromkeys(("float16", "f16", "xnn_datatype_fp16"), "fp16"),
    **dict.fromkeys(("bfloat16", "bf16", "xnn_datatype_bf16"), "bf16"),
}
CALIBRATIONS = {"minmax": "MinMax", "percentile": "Percentile", "entropy": "Entropy"}
SCORING_BATCH = 64


class ExportError(RuntimeError):
    """A network could not be written for a runtime."""


class ArtifactError(RuntimeError):
    """An artifact's file is not the one that was exported, or its runtime rejects it."""


@dataclass(frozen=True)
class Artifact:
    """A file that a runtime loads, and what it is; ``input_shape`` is [B, C, H, W].

    ``parity_difference`` and ``parity_agreement`` are those of :class:`edgeopt.runtimes.Parity`,
    of int8 ONNX for the float graph that was quantized; NaN where nothing was compared.
    """

    path: Path
    runtime: str
    precision: str
    input_shape: tuple[int, ...]
    sha256: str
    size_bytes: int
    parity_difference: float = math.nan
    parity_agreement: float = math.nan

    @property
    def title(self) -> str:
        """The artifact in words, for messages."""
        return f"artifact {self.path.name} ({self.runtime} {self.precision})"


@dataclass(frozen=True)
class Int8Options:
    """How static int8 is made.

    Attributes
    ----------
    calibration : str
        Where the ranges come from; the default is the only one of runtimes that do not take ONNX.
    scheme : Int8Scheme
        Which integers; of ONNX files only.
    float_layers : frozenset of str
        Modules of the network that stay in float, with the tensors that they write.
    """

    calibration: str = "minmax"
    scheme: Int8Scheme = U8S8
    float_layers: frozenset[str] = frozenset()

    def __post_init__(self) -> None:
        """Refuse an unknown calibration method."""
        require_known(self.calibration, allowed=tuple(CALIBRATIONS), what="calibration method")


DEFAULT_OPTIONS = Int8Options()


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


class Session(ABC):
    """A loaded artifact: float32 images [B, C, H, W] -> new float32 logits [B, classes].

    Many images are best scored in multiples of ``scoring_batch``.
    """

    def __init__(self, artifact: Artifact) -> None:
        self.artifact = artifact
        self.input_shape = artifact.input_shape
        self.scoring_batch = math.lcm(SCORING_BATCH, artifact.input_shape[0])

    def __call__(self, images: np.ndarray) -> np.ndarray:
        """Run one batch; raises ``ValueError`` when its shape or dtype is another."""
        with self.bound(images) as call:
            return self._logits(call())

    @contextmanager
    def bound(self, images: np.ndarray) -> Iterator[Callable[[], Any]]:
        """Put one batch in place, set the threads, and give the runtime's own call on it.

        The call takes no argument and returns what the runtime returns: nothing of edgeopt is in
        it, so that its time is the runtime's alone. Raises ``ValueError`` as a call does.
        """
        self._check(images, batch=self.input_shape[0])
        with self._ready(images) as call:
            yield call

    def score(self, images: np.ndarray) -> np.ndarray:
        """Logits [N, classes] of float32 images [N, C, H, W].

        Raises ``ValueError`` when there are none, or when they are of another shape or dtype.
        """
        if not len(images):
            raise ValueError(f"{self.artifact.title}: no images to run; allowed: 1 or more")
        self._check(images, batch=len(images))
        return self._score(images)

    def _check(self, images: np.ndarray, *, batch: int) -> None:
        wanted = (batch, *self.input_shape[1:])
        if images.shape != wanted or images.dtype != FLOAT32:
            raise ValueError(
                f"{self.artifact.title} takes float32 {wanted}, got {images.dtype} {images.shape}"
            )

    def _score(self, images: np.ndarray) -> np.ndarray:
        """Fill up the last batch with its last image, which no dynamic range notices."""
        size = self.input_shape[0]
        padding = np.repeat(images[-1:], -len(images) % size, axis=0)
        padded = np.concatenate([images, padding])
        logits = [self(padded[start : start + size]) for start in range(0, len(padded), size)]
        return np.concatenate(logits)[: len(images)]

    @abstractmethod
    def _ready(self, images: np.ndarray) -> AbstractContextManager[Callable[[], Any]]: ...

    @abstractmethod
    def _logits(self, returned: Any) -> np.ndarray: ...

    @property
    @abstractmethod
    def threads(self) -> int:
        """Threads that the runtime itself says it computes with."""


class Runtime(ABC):
    """All that edgeopt knows of one runtime; one file holds it, and one contract test its promises.

    Attributes
    ----------
    name, title : str
        As tables and as figures say it.
    marker : str
        Matplotlib's marker in every figure.
    suffix : str
        Of its files.
    precisions : tuple of str
        What it runs, of :data:`edgeopt.schema.PRECISIONS`.
    session : type
        Of its sessions, made of an artifact and a number of ``threads``.
    package : str
        Optional package that it needs.
    takes_int8_options : bool
        Whether its static int8 is made as :class:`Int8Options` say.
    bare_metal : bool
        Whether it runs where there is no operating system.
    """

    name: ClassVar[str]
    title: ClassVar[str]
    marker: ClassVar[str]
    suffix: ClassVar[str]
    precisions: ClassVar[tuple[str, ...]]
    session: ClassVar[type[Session]]
    package: ClassVar[str] = ""
    takes_int8_options: ClassVar[bool] = False
    bare_metal: ClassVar[bool] = False

    def runs(self, precision: str) -> bool:
        """Whether it has a precision; with static int8 it has what that may turn out to be."""
        return precision in self.precisions or (
            precision == MIXED and set(STATIC_INT8) & set(self.precisions) != set()
        )

    def unavailable(self) -> str:
        """Say why the runtime cannot be used here; empty when it can."""
        try:
            if self.package:
                import_extra(self.package)
        except RuntimeUnavailable as error:
            return str(error)
        return ""

    @abstractmethod
    def write(
        self,
        model: "nn.Module",
        path: Path,
        *,
        precision: str,
        input_shape: tuple[int, ...],
        calibration: Sequence[tuple["Tensor", "Tensor"]],
        tolerance: float,
        options: Int8Options,
    ) -> "Parity":
        """Quantize the model, which is the runtime's to change, and write its file.

        ``calibration`` is empty unless the precision is int8. Returns how the file's logits
        compare with torch's; raises what its exporter raises.
        """

    @abstractmethod
    def operations(self, artifact: Artifact) -> Iterable[Operation]:
        """Yield the operators executed for one batch, as the runtime itself tells of them.

        The input comes first and the output last. They prove the label and count activations.
        """

    @abstractmethod
    def weight_bytes(self, artifact: Artifact) -> int:
        """Count the bytes of the tensors stored in the artifact, as they lie in the file."""

    def layer_times(self, artifact: Artifact, *, threads: int) -> "pd.DataFrame":
        """Time every executed operator with the runtime's own profiler, a row each, in order.

        Columns: layer, op, measured_ms, share. Raises ``RuntimeUnavailable`` where there is none.
        """
        raise RuntimeUnavailable(f"unavailable: {self.title} has no layer profiler")
