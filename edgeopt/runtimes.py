"""Artifact -> callable session of its runtime, with a fixed number of threads.

Each runtime is imported when its first session is made, so that a process holds no other.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from functools import cache, partial
from types import ModuleType
from typing import TYPE_CHECKING, Any

import numpy as np

from edgeopt._upstream import (
    RuntimeUnavailable,
    import_extra,
    known_noise_silenced,
    native_stderr_logged,
)
from edgeopt.artifact import INPUT, OUTPUT, Artifact
from edgeopt.files import file_sha256
from edgeopt.host import usable_cores

if TYPE_CHECKING:
    from onnxruntime import SessionOptions
    from torch import Tensor

FLOAT32 = np.dtype(np.float32)
SCORING_BATCH = 64


class ArtifactError(RuntimeError):
    """An artifact's file is not the one that was exported, or its runtime rejects it."""


class Session(ABC):
    """A loaded artifact: float32 images [B, C, H, W] -> new float32 logits [B, classes]."""

    def __init__(self, artifact: Artifact) -> None:
        self.artifact = artifact
        self.runtime = artifact.runtime
        self.precision = artifact.precision
        self.input_shape = artifact.input_shape

    def __call__(self, images: np.ndarray) -> np.ndarray:
        """Run one batch; raises ``ValueError`` when its shape or dtype is another."""
        self._check(images)
        return self._run(images)

    @contextmanager
    def bound(self, images: np.ndarray) -> Iterator[Callable[[], Any]]:
        """Put one batch in place, set the threads, and give the runtime's own call on it.

        The call takes no argument and returns what the runtime returns: nothing of edgeopt is in
        it, so that its time is the runtime's alone. Raises ``ValueError`` as a call does.
        """
        self._check(images)
        with self._ready(images) as call:
            yield call

    def _check(self, images: np.ndarray) -> None:
        if images.shape != self.input_shape or images.dtype != FLOAT32:
            raise ValueError(
                f"{self.artifact.title} takes float32 {self.input_shape}, "
                f"got {images.dtype} {images.shape}"
            )

    @abstractmethod
    def _run(self, images: np.ndarray) -> np.ndarray: ...

    @abstractmethod
    def _ready(self, images: np.ndarray) -> AbstractContextManager[Callable[[], Any]]: ...

    def score(self, images: np.ndarray) -> np.ndarray:
        """Logits [N, classes] of images [N, C, H, W], in batches of the session's own size.

        The last batch is filled up with its last image, which no dynamic range notices.
        """
        size = self.input_shape[0]
        padding = np.repeat(images[-1:], -len(images) % size, axis=0)
        padded = np.concatenate([images, padding])
        logits = [self(padded[start : start + size]) for start in range(0, len(padded), size)]
        return np.concatenate(logits)[: len(images)]

    @property
    @abstractmethod
    def threads(self) -> int:
        """Threads that the runtime itself says it computes with."""


class TorchSession(Session):
    """TorchScript in torch, whose thread count is set while it is called or bound only."""

    def __init__(self, artifact: Artifact, *, threads: int) -> None:
        import torch

        super().__init__(artifact)
        with known_noise_silenced(), native_stderr_logged():
            self._module = torch.jit.load(artifact.path, map_location="cpu")
        self._torch = torch
        self._pinned = _TorchThreads(torch, threads)
        self._dtype = torch.float16 if artifact.precision == "fp16" else torch.float32

    def _run(self, images: np.ndarray) -> np.ndarray:
        with self._pinned:
            return self._infer(self._torch.tensor(images))

    @contextmanager
    def _ready(self, images: np.ndarray) -> Iterator[Callable[[], Any]]:
        tensor = self._torch.tensor(images).to(self._dtype)
        with self._pinned, self._torch.inference_mode():
            yield partial(self._module, tensor)

    def score(self, images: np.ndarray) -> np.ndarray:
        """Logits of any number of images, in large batches on all of torch's own threads.

        TorchScript, unlike the other runtimes' files, takes any batch size; what is timed is held
        to these logits afterwards (:func:`edgeopt.measuring.measure_candidates`).
        """
        batches = self._torch.from_numpy(images).split(SCORING_BATCH)
        return np.concatenate([self._infer(batch) for batch in batches])

    def _infer(self, images: "Tensor") -> np.ndarray:
        with self._torch.inference_mode():
            return self._module(images.to(self._dtype)).float().numpy()

    @property
    def threads(self) -> int:
        """Threads that torch computes with inside a call."""
        with self._pinned:
            return self._torch.get_num_threads()


class _TorchThreads:
    """Sets torch's thread count, which is one per process, and puts it back."""

    def __init__(self, torch: ModuleType, threads: int) -> None:
        self._torch = torch
        self._threads = threads
        self._before = threads

    def __enter__(self) -> None:
        self._before = self._torch.get_num_threads()
        self._torch.set_num_threads(self._threads)

    def __exit__(self, *exception: object) -> None:
        self._torch.set_num_threads(self._before)


class OnnxRuntimeSession(Session):
    """ONNX Runtime's CPU provider, operators one after the other."""

    def __init__(self, artifact: Artifact, *, threads: int) -> None:
        import onnxruntime

        super().__init__(artifact)
        options = onnx_session_options(threads=threads)
        self._session = onnxruntime.InferenceSession(
            artifact.path, options, providers=["CPUExecutionProvider"]
        )
        self._outputs = [OUTPUT]

    def _run(self, images: np.ndarray) -> np.ndarray:
        return self._session.run(self._outputs, {INPUT: images})[0]

    @contextmanager
    def _ready(self, images: np.ndarray) -> Iterator[Callable[[], Any]]:
        yield partial(self._session.run, self._outputs, {INPUT: images})

    @property
    def threads(self) -> int:
        """Threads inside an operator, from the session's own options."""
        return self._session.get_session_options().intra_op_num_threads


class ExecuTorchSession(Session):
    """ExecuTorch with XNNPACK; its thread pool is one per process, set at the latest loading."""

    def __init__(self, artifact: Artifact, *, threads: int) -> None:
        import torch

        super().__init__(artifact)
        # The same objects as portable_lib's, without its import of the whole exporter.
        self._native = import_extra("executorch.extension.pybindings._C", extra="executorch")
        with native_stderr_logged():
            self._native._unsafe_reset_threadpool(threads)
            self._module = self._native._load_for_executorch(str(artifact.path))
            self._module.method_meta("forward")
        self._input = np.zeros(artifact.input_shape, dtype=FLOAT32)
        self._inputs = (torch.from_numpy(self._input),)

    def _run(self, images: np.ndarray) -> np.ndarray:
        np.copyto(self._input, images)
        return self._module.forward(self._inputs)[0].numpy()

    @contextmanager
    def _ready(self, images: np.ndarray) -> Iterator[Callable[[], Any]]:
        np.copyto(self._input, images)
        yield partial(self._module.forward, self._inputs)

    @property
    def threads(self) -> int:
        """Threads of the process-wide pool."""
        return self._native._threadpool_get_thread_count()


@cache
def openvino_core() -> Any:
    """OpenVINO's core, one for the process.

    Its CPU plugin sets an alternate signal stack for every core and frees it with the core; freed
    in the order in which they were made, the next signal (a child that ends) would run on freed
    memory and kill the process.
    """
    return import_extra("openvino", extra="openvino").Core()


class OpenVINOSession(Session):
    """OpenVINO's CPU plugin, compiled for the batch size of the artifact, for low latency."""

    def __init__(self, artifact: Artifact, *, threads: int) -> None:
        super().__init__(artifact)
        core = openvino_core()
        capabilities = core.get_property("CPU", "OPTIMIZATION_CAPABILITIES")
        if artifact.precision == "bf16" and "BF16" not in capabilities:
            raise RuntimeUnavailable("this CPU has no bf16 instructions")
        model = core.read_model(artifact.path)
        model.reshape(list(artifact.input_shape))
        settings = {
            "INFERENCE_NUM_THREADS": threads,
            "NUM_STREAMS": 1,
            "PERFORMANCE_HINT": "LATENCY",
            "INFERENCE_PRECISION_HINT": "bf16" if artifact.precision == "bf16" else "f32",
        }
        self.compiled = core.compile_model(model, "CPU", settings)
        self._bind()

    def _bind(self) -> None:
        openvino = import_extra("openvino", extra="openvino")
        self._input = np.zeros(self.input_shape, dtype=FLOAT32)
        self._request = self.compiled.create_infer_request()
        self._request.set_input_tensor(openvino.Tensor(self._input, shared_memory=True))
        self._output = self._request.get_output_tensor(0).data

    def _run(self, images: np.ndarray) -> np.ndarray:
        np.copyto(self._input, images)
        self._request.infer()
        return self._output.copy()

    @contextmanager
    def _ready(self, images: np.ndarray) -> Iterator[Callable[[], Any]]:
        np.copyto(self._input, images)
        yield self._request.infer

    @property
    def threads(self) -> int:
        """Threads that the compiled model was given."""
        return self.compiled.get_property("INFERENCE_NUM_THREADS")


SESSIONS = {
    "torch": TorchSession,
    "onnxruntime": OnnxRuntimeSession,
    "executorch": ExecuTorchSession,
    "openvino": OpenVINOSession,
}


def load_session(artifact: Artifact, *, threads: int = 1) -> Session:
    """Load an artifact into its runtime.

    Raises
    ------
    ValueError
        When ``threads`` is below 1 or above the cores that this process may use.
    ArtifactError
        When the file is not the one that was exported, or the runtime cannot load it.
    RuntimeUnavailable
        When the runtime is not installed, or the CPU lacks the precision.
    """
    cores = usable_cores()
    if not 1 <= threads <= cores:
        raise ValueError(f"{artifact.title}: threads is {threads}; allowed: 1 to {cores} (cores)")
    found = file_sha256(artifact.path)
    if found != artifact.sha256:
        raise ArtifactError(
            f"{artifact.title} is corrupt: its SHA-256 is {found}, at export it was "
            f"{artifact.sha256}"
        )
    try:
        return SESSIONS[artifact.runtime](artifact, threads=threads)
    except RuntimeUnavailable as error:
        raise RuntimeUnavailable(f"{artifact.title}: {error}") from error
    except Exception as error:  # runtimes raise whatever they like
        raise ArtifactError(f"{artifact.title} cannot be loaded: {error}") from error


def session_logits(session: Session, images: np.ndarray) -> np.ndarray:
    """Logits [N, classes] of float32 images [N, C, H, W].

    Raises ``ValueError`` when there are none, or when they are of another shape or dtype.
    """
    if not len(images):
        raise ValueError(f"{session.artifact.title}: no images to run; allowed: 1 or more")
    wanted = session.input_shape[1:]
    if images.shape[1:] != wanted or images.dtype != FLOAT32:
        raise ValueError(
            f"{session.artifact.title} takes float32 images {wanted}, "
            f"got {images.dtype} {images.shape[1:]}"
        )
    return session.score(images)


def onnx_session_options(*, threads: int) -> "SessionOptions":
    """Options of ONNX Runtime for ``threads`` threads inside an operator and one beside."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.execution_mode = onnxruntime.ExecutionMode.ORT_SEQUENTIAL
    options.log_severity_level = 3
    return options
