"""What every runtime is to edgeopt: the contract that all of them keep."""

import math
from abc import ABC, abstractmethod
from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, NamedTuple

from edgeopt.agent.session import Artifact as Artifact
from edgeopt.agent.session import ArtifactError as ArtifactError
from edgeopt.agent.session import Session as Session
from edgeopt.schema import MIXED, STATIC_INT8, require_known
from edgeopt.system import Int8Scheme, RuntimeUnavailable, import_extra, int8_scheme

if TYPE_CHECKING:
    import pandas as pd
    from torch import Tensor, nn

INTEGER = "int8"
# Every name that a runtime has for a type of floating-point operands.
FLOATS = {
    **dict.fromkeys(("float32", "float", "f32", "xnn_datatype_fp32"), "fp32"),
    **dict.fromkeys(("float16", "f16", "xnn_datatype_fp16"), "fp16"),
    **dict.fromkeys(("bfloat16", "bf16", "xnn_datatype_bf16"), "bf16"),
}
CALIBRATIONS = {"minmax": "MinMax", "percentile": "Percentile", "entropy": "Entropy"}


class ExportError(RuntimeError):
    """A network could not be written for a runtime."""


@dataclass(frozen=True)
class Int8Options:
    """How static int8 is made.

    Attributes
    ----------
    calibration : str
        Where the ranges come from; the default is the only one of runtimes that do not take ONNX.
    scheme : Int8Scheme, optional
        Which integers, of runtimes that take a scheme; torch takes whether the range is reduced.
    float_layers : frozenset of str
        Modules of the network that stay in float, with the tensors that they write.
    float_alone : frozenset of str
        Modules that compute in float, and whose results are quantized; of ONNX files only.
    """

    calibration: str = "minmax"
    scheme: Int8Scheme | None = None
    float_layers: frozenset[str] = frozenset()
    float_alone: frozenset[str] = frozenset()

    def __post_init__(self) -> None:
        """Refuse an unknown calibration method."""
        require_known(self.calibration, allowed=tuple(CALIBRATIONS), what="calibration method")

    @property
    def integers(self) -> Int8Scheme:
        """The scheme, or the one that suits this machine's CPU."""
        return self.scheme or int8_scheme()


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


class Parity(NamedTuple):
    """How an exported model's logits compare with torch's, on the images of the check.

    ``difference`` is the largest |logit difference| over the largest |logit|, ``agreement`` the
    share of images [0, 1] with the same class; NaN where nothing was compared.
    """

    difference: float = math.nan
    agreement: float = math.nan


class Runtime(ABC):
    """All that edgeopt knows of one runtime, in a file of its own and that of its session.

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
    session : str
        Place of its :class:`edgeopt.agent.session.Session`, ``module:Class``; made of an artifact
        and a number of ``threads``, by the agent on the device.
    packages : tuple of str
        What a device has to have installed to run its files, NumPy aside.
    package : str
        Optional package that it needs.
    takes_int8_options : bool
        Whether its static int8 is made as :class:`Int8Options` say.
    takes_scheme : bool
        Whether its static int8 depends on the CPU that will run it: ``Int8Options.scheme``.
    any_batch : bool
        Whether one file takes batches of any size.
    bare_metal : bool
        Whether it runs where there is no operating system.
    """

    name: ClassVar[str]
    title: ClassVar[str]
    marker: ClassVar[str]
    suffix: ClassVar[str]
    precisions: ClassVar[tuple[str, ...]]
    session: ClassVar[str]
    packages: ClassVar[tuple[str, ...]]
    package: ClassVar[str] = ""
    takes_int8_options: ClassVar[bool] = False
    takes_scheme: ClassVar[bool] = False
    any_batch: ClassVar[bool] = True
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
    ) -> Parity:
        """Quantize the model, which is the runtime's to change, and write its file.

        ``calibration`` is empty unless the precision is int8. Returns how the file's logits
        compare with torch's; raises what its exporter raises.
        """

    def simulated(
        self,
        model: "nn.Module",
        *,
        calibration: Sequence[tuple["Tensor", "Tensor"]],
        options: Int8Options,
    ) -> "nn.Module | None":
        """Return the static int8 network as torch computes it; None where writing a file is fast.

        It tells where int8 falls before seconds are spent on a file, whose own logits decide. It
        takes batches of any size.
        """
        return None

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
