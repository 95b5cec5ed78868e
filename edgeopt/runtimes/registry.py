"""The runtimes by name: edgeopt's own, and those that other packages register."""

from functools import cache
from importlib.metadata import EntryPoint, entry_points

from edgeopt.agent.session import Artifact, Session, open_session
from edgeopt.runtimes.contract import Runtime
from edgeopt.schema import require_known
from edgeopt.system import RUNTIME_GROUP

OWN = {
    "torch": "edgeopt.runtimes.torch:TorchRuntime",
    "onnxruntime": "edgeopt.runtimes.onnxruntime:OnnxRuntime",
    "executorch": "edgeopt.runtimes.executorch:ExecuTorchRuntime",
    "openvino": "edgeopt.runtimes.openvino:OpenVINORuntime",
    "litert": "edgeopt.runtimes.litert:LiteRTRuntime",
}
ASKED_FOR = "litert"  # whose converter has an environment of its own
RUNTIMES = tuple(name for name in OWN if name != ASKED_FOR)  # of a run, in the order of tables


@cache
def registered() -> dict[str, EntryPoint]:
    """Runtimes by name, edgeopt's own first; nothing is imported yet."""
    own = {name: EntryPoint(name, value, RUNTIME_GROUP) for name, value in OWN.items()}
    return own | {entry.name: entry for entry in entry_points(group=RUNTIME_GROUP)}


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
    """Load an artifact into its runtime, in this process.

    Raises what :func:`edgeopt.agent.session.open_session` raises, and ``ValueError`` when the
    runtime has no such precision.
    """
    require_precision(artifact.runtime, artifact.precision)
    place = runtime_named(artifact.runtime).session
    return open_session(artifact, place=place, threads=threads)
