"""What is inside a file: the operators that its runtime executes, and what each takes."""

import numpy as np
import pandas as pd

from edgeopt.hardware.layers import MULTIPLYING
from edgeopt.hardware.roofline import PROFILED_RUNS, PROFILED_WARMUP
from edgeopt.runtimes import Artifact, executed_graph, runtime_named
from edgeopt.system import RuntimeUnavailable


def operator_table(artifact: Artifact, *, threads: int = 1) -> pd.DataFrame:
    """List the operators of an artifact in the order of execution.

    Columns: operator, precision, macs, macs_share, measured_ms, share. Operators and times are the
    profiler's; MACs and their precision come from the executed graph and are matched by order. A
    runtime without a profiler gives the graph alone, and where the two have another number of
    multiplying operators (ONNX Runtime tells the float ones' MACs as a sum) MACs stay unknown.
    """
    operations = [op for op in executed_graph(artifact) if op.macs or (op.reads and op.writes)]
    try:
        profile = runtime_named(artifact.runtime).layer_times(
            artifact, threads=threads, repeats=PROFILED_RUNS, warmup=PROFILED_WARMUP
        )
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
