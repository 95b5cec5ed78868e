"""In which arithmetic an artifact computes, read from the graph that its runtime executes.

Counted are the multiply-accumulates of convolutions and matrix products; everything else in these
networks is a few per cent of the work.
"""

from collections import Counter
from dataclasses import replace
from functools import lru_cache

from edgeopt.agent.session import Artifact, ArtifactError
from edgeopt.runtimes.contract import INTEGER, Operation
from edgeopt.runtimes.registry import runtime_named
from edgeopt.schema import INT8_PRECISIONS, MIXED, PRECISIONS, STATIC_INT8

LABEL_SHARE = 0.95  # of the MACs; a runtime may leave a small layer in another type
WHOLE = set(PRECISIONS) - {MIXED, "int8-dynamic"}


class LabelError(ArtifactError):
    """An artifact is not what its precision says."""


@lru_cache(maxsize=1)
def executed_graph(artifact: Artifact) -> tuple[Operation, ...]:
    """Return the operators that the runtime executes for one batch, input first, output last."""
    return tuple(runtime_named(artifact.runtime).operations(artifact))


def executed_macs(artifact: Artifact) -> list[Operation]:
    """Every convolution and matrix product that the runtime executes for one batch.

    Their precision is the type in which the runtime hands the tensors to its kernel. How the kernel
    accumulates inside is not told by any of them.
    """
    found = [operation for operation in executed_graph(artifact) if operation.macs]
    if not found:
        raise LabelError(f"{artifact.title} executes no convolution and no matrix product")
    return found


def mac_shares(artifact: Artifact) -> dict[str, float]:
    """Share, 0 to 1, of the multiply-accumulates by the precision that they execute in."""
    macs: Counter[str] = Counter()
    for operation in executed_macs(artifact):
        macs[operation.precision] += operation.macs
    return {precision: macs[precision] / macs.total() for precision in sorted(macs)}


def labelled(artifact: Artifact) -> Artifact:
    """Name a static int8 artifact what it is: ``int8-mixed`` below 95% of its MACs in integers."""
    share = mac_shares(artifact).get(INTEGER, 0.0)
    mixed = artifact.precision in STATIC_INT8 and 0 < share < LABEL_SHARE
    return replace(artifact, precision=MIXED) if mixed else artifact


def verify_label(artifact: Artifact) -> float:
    """Return the int8 share of an artifact that computes in the precision of its label.

    Raises ``LabelError`` when an int8 artifact computes no MAC in integers, one called ``int8`` or
    a float one less than 95% of its MACs in its own type.
    """
    shares, precision = mac_shares(artifact), artifact.precision
    if precision in INT8_PRECISIONS and not shares.get(INTEGER):
        raise LabelError(f"{artifact.title} computes no MAC in integers: it is not int8")
    own = PRECISIONS[precision].arithmetic
    if precision in WHOLE and shares.get(own, 0.0) < LABEL_SHARE:
        found = ", ".join(f"{share:.1%} in {name}" for name, share in shares.items())
        raise LabelError(
            f"{artifact.title} computes its MACs {found}: it is not {precision}, which takes "
            f"at least {LABEL_SHARE:.0%}"
        )
    return shares.get(INTEGER, 0.0)
