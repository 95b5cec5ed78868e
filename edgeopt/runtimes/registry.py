"""The runtimes by name: edgeopt's own, and those that other packages register."""

from functools import cache
from importlib.metadata import EntryPoint, entry_points

from edgeopt.runtimes.contract import Artifact, ArtifactError, Runtime, Session
from edgeopt.schema import require_known
from edgeopt.system import RuntimeUnavailable, file_sha256, usable_cores

GROUP = "edgeopt.runtimes"
OWN = {
    "torch": "edgeopt.runtimes.torch:TorchRuntime",
    "onnxruntime": "edgeopt.runtimes.onnxruntime:OnnxRuntime",
    "executorch": "edgeopt.runtimes.executorch:ExecuTorchRuntime",
    "openvino": "edgeopt.runtimes.openvino:OpenVINORuntime",
}
RUNTIMES = tuple(OWN)  # the default of a run, in the order of tables


@cache
def registered() -> dict[str, EntryPoint]:
    """Runtimes by name, edgeopt's own first; nothing is imported yet."""
    own = {name: EntryPoint(name, value, GROUP) for name, value in OWN.items()}
    return own | {entry.name: entry for entry in entry_points(group=GROUP)}


@cache
def runtime_named(name: str) -> Runtime:
    """Import a runtime; raises ``ValueError`` naming those that there are."""
    require_known(name, allowed=tuple(registered()), what="runtime")
    return registered()[name].load()()


def require_precision(name: str, precision: str) -> None:
    """Raise ``ValueError`` unless the runtime has the precision."""
    runtime = runtime_named(name)
    if not runtime.runs(precision):
        require_known(
            precision, allowed=runtime.precisions, what=f"precision of the {name} runtime"
        )


def load_session(artifact: Artifact, *, threads: int = 1) -> Session:
    """Load an artifact into its runtime.

    Raises
    ------
    ValueError
        When ``threads`` is below 1 or above the cores that this process may use, or the runtime has
        no such precision.
    ArtifactError
        When the file is not the one that was exported, or the runtime cannot load it.
    RuntimeUnavailable
        When the runtime is not installed, or the CPU lacks the precision.
    """
    require_precision(artifact.runtime, artifact.precision)
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
        return runtime_named(artifact.runtime).session(artifact, threads=threads)
    except RuntimeUnavailable as error:
        raise RuntimeUnavailable(f"{artifact.title}: {error}") from error
    except Exception as error:  # runtimes raise whatever they like
        raise ArtifactError(f"{artifact.title} cannot be loaded: {error}") from error
