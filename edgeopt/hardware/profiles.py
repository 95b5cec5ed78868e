"""The runtimes' own profiles: what each layer takes inside them, and what is inside a file."""

from collections.abc import Mapping

import numpy as np
import pandas as pd

from edgeopt.runtimes import Artifact, executed_graph, runtime_named
from edgeopt.system import RuntimeUnavailable

# Runtimes fuse, rename and reorder nearly everything but the layers that multiply.
MULTIPLYING = r"(?i)^\w*(?:conv(?!ert)|gemm|matmul|fully ?connected)"
PROFILE_COLUMNS = ["candidate", "layer", "measured_ms", "share", "macs_share", "op"]


def profile_candidates(
    artifacts: Mapping[str, Artifact],
    counted: pd.DataFrame,
    *,
    owners: Mapping[str, str],
    threads: int = 1,
) -> tuple[pd.DataFrame, dict[str, str]]:
    """Ask each artifact's runtime for the time of every layer, beside its share of the MACs.

    ``counted`` is :func:`edgeopt.hardware.count_layers`, ``owners`` names each candidate's model.
    Returns the profiles, with the candidate's name, and by candidate why there is none.
    """
    tables, reasons = [], {}
    for name, artifact in artifacts.items():
        breakdown = counted[counted["model"] == owners[name]]
        if breakdown.empty:
            reasons[name] = f"the layers of {owners[name]} could not be counted"
            continue
        try:
            times = runtime_named(artifact.runtime).layer_times(artifact, threads=threads)
            profile = join_profile(breakdown, times)
            tables.append(profile.assign(candidate=name)[PROFILE_COLUMNS])
        except (RuntimeUnavailable, ValueError) as error:
            reasons[name] = str(error)
    empty = pd.DataFrame(columns=PROFILE_COLUMNS)
    return pd.concat(tables, ignore_index=True) if tables else empty, reasons


def join_profile(breakdown: pd.DataFrame, profile: pd.DataFrame) -> pd.DataFrame:
    """Put the profiled time of each multiplying layer beside its estimate, matched by order.

    ``breakdown`` (``layerwise_breakdown``) keeps its rows that have MACs and gets
    runtime_layer, op, measured_ms, share and macs_share. A last row ``everything else`` holds the
    other operators' time (and no MACs).

    Raises
    ------
    ValueError
        When the runtime ran another number of multiplying layers than the model has, because then
        the order matches nothing.
    """
    layers = breakdown[breakdown["macs"] > 0].reset_index(drop=True)
    multiplying = profile["op"].str.contains(MULTIPLYING)
    timed = profile[multiplying].rename(columns={"layer": "runtime_layer"}).reset_index(drop=True)
    if len(layers) != len(timed):
        raise ValueError(
            f"{len(timed)} multiplying operators were profiled ({', '.join(timed['op'].unique())}) "
            f"but the model has {len(layers)} layers with MACs; they cannot be matched"
        )
    rest = profile.loc[~multiplying, ["measured_ms", "share"]].sum()
    other = pd.DataFrame([{"layer": "everything else", "op": "", "macs": 0, **rest}])
    joined = pd.concat([layers.join(timed), other], ignore_index=True)
    return joined.assign(macs_share=joined["macs"] / joined["macs"].sum())


def operator_table(artifact: Artifact, *, threads: int = 1) -> pd.DataFrame:
    """List the operators of an artifact in the order of execution.

    Columns: operator, precision, macs, macs_share, measured_ms, share. Operators and times are the
    profiler's; MACs and their precision come from the executed graph and are matched by order. A
    runtime without a profiler gives the graph alone, and where the two have another number of
    multiplying operators (ONNX Runtime tells the float ones' MACs as a sum) MACs stay unknown.
    """
    operations = [op for op in executed_graph(artifact) if op.macs or (op.reads and op.writes)]
    try:
        profile = runtime_named(artifact.runtime).layer_times(artifact, threads=threads)
    except RuntimeUnavailable:
        rows = [(op.name, op.precision, op.macs or np.nan) for op in operations]
        table = pd.DataFrame(rows, columns=["operator", "precision", "macs"])
        return _with_share(table.assign(measured_ms=np.nan, share=np.nan))
    counted = [op for op in operations if op.macs]
    multiplying = profile["op"].str.contains(MULTIPLYING)
    alone = {operation.precision for operation in counted}
    table = profile.rename(columns={"op": "operator"}).assign(precision="", macs=np.nan)
    table.loc[multiplying, "precision"] = alone.pop() if len(alone) == 1 else ""
    if multiplying.sum() == len(counted):
        table.loc[multiplying, "macs"] = [float(op.macs) for op in counted]
        table.loc[multiplying, "precision"] = [op.precision for op in counted]
    return _with_share(table)


def _with_share(table: pd.DataFrame) -> pd.DataFrame:
    table = table.assign(macs_share=table["macs"] / table["macs"].sum(min_count=1))
    return table[["operator", "precision", "macs", "macs_share", "measured_ms", "share"]]
