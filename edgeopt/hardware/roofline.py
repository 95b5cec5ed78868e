"""A model on a machine: measured latency against the roofline of its ceilings."""

from collections.abc import Mapping

import pandas as pd
from torch import nn

from edgeopt.hardware.layers import layerwise_breakdown
from edgeopt.schema import PRECISIONS


def place_on_roofline(
    candidates: pd.DataFrame,
    networks: Mapping[str, nn.Module],
    *,
    shapes: Mapping[str, tuple[int, ...]],
    ceilings: pd.DataFrame,
    cache_bytes: int | None = None,
) -> pd.DataFrame:
    """Return one row of :func:`hardware_summary` per unpruned candidate.

    ``candidates`` has ``candidate, model, precision, latency_ms``.
    """
    rows = [
        hardware_summary(
            layerwise_breakdown(
                networks[row.model], input_shape=shapes[row.model], precision=row.precision
            ),
            candidate=row.candidate,
            precision=row.precision,
            latency_ms=row.latency_ms,
            ceilings=ceilings,
            cache_bytes=cache_bytes,
        )
        for row in candidates.itertuples()
    ]
    return pd.concat(rows, ignore_index=True) if rows else pd.DataFrame()


def hardware_summary(
    breakdown: pd.DataFrame,
    *,
    candidate: str,
    precision: str,
    latency_ms: float,
    ceilings: pd.DataFrame,
    cache_bytes: int | None = None,
) -> pd.DataFrame:
    """Place one candidate on the roofline of a machine: a table of one row.

    ``breakdown`` is counted at ``precision``; ``latency_ms`` is the measured latency of the same
    input shape; ``ceilings`` come from `measure_ceilings`, perhaps through `configure_ceilings`.
    Bandwidths are GB/s, rates GMAC/s, intensities MACs per byte.

    ``bound`` is ``memory`` left of the ridge point, else ``compute``. When weights and the widest
    layer fit into ``cache_bytes`` and a ``cache`` ceiling is there, ``memory_level`` is ``cache``:
    the memory in question is then the cache and not DRAM, which a warm model of this size never
    touches. A low utilisation of both ceilings means that neither binds and overhead does.

    Source: Williams et al., Roofline, doi:10.1145/1498765.1498785
    """
    if not latency_ms > 0:
        raise ValueError(f"latency_ms of {candidate!r} is {latency_ms!r}; it must be above 0")
    totals = breakdown[["parameters", "parameter_bytes", "activation_bytes", "macs"]].sum()
    memory_bytes = totals["parameter_bytes"] + totals["activation_bytes"]
    level = _memory_level(breakdown, ceilings=ceilings, cache_bytes=cache_bytes)
    bandwidth = _ceiling(ceilings, name="cache" if level == "cache" else "memory")
    compute = _ceiling(ceilings, name="compute", precision=PRECISIONS[precision].arithmetic)
    gbps, gmacs = memory_bytes / latency_ms / 1e6, totals["macs"] / latency_ms / 1e6
    intensity, ridge = totals["macs"] / memory_bytes, compute["value"] / bandwidth["value"]
    row = {
        "candidate": candidate,
        "precision": precision,
        **totals,
        "memory_bytes": memory_bytes,
        "latency_ms": latency_ms,
        "achieved_bandwidth_gbps": gbps,
        "achieved_gmacs": gmacs,
        "memory_level": level,
        "bandwidth_ceiling_gbps": bandwidth["value"],
        "bandwidth_ceiling_kind": bandwidth["kind"],
        "compute_ceiling_gmacs": compute["value"],
        "compute_ceiling_kind": compute["kind"],
        "arithmetic_intensity": intensity,
        "ridge_point": ridge,
        "bandwidth_utilization": gbps / bandwidth["value"],
        "compute_utilization": gmacs / compute["value"],
        "bound": "memory" if intensity < ridge else "compute",
    }
    return pd.DataFrame([row])


def _memory_level(
    breakdown: pd.DataFrame, *, ceilings: pd.DataFrame, cache_bytes: int | None
) -> str:
    """Where the working set lives: all weights, and the input and output of the widest layer."""
    working_set = breakdown["parameter_bytes"].sum() + breakdown["activation_bytes"].max()
    fits = cache_bytes is not None and working_set <= cache_bytes
    return "cache" if fits and "cache" in set(ceilings["name"]) else "DRAM"


def _ceiling(ceilings: pd.DataFrame, *, name: str, precision: str = "") -> pd.Series:
    rows = ceilings[(ceilings["name"] == name) & (ceilings["precision"] == precision)]
    if len(rows) != 1:
        known = ", ".join((ceilings["name"] + " " + ceilings["precision"]).str.strip())
        raise ValueError(f"{len(rows)} ceilings are '{name} {precision}'; there are: {known}")
    return rows.iloc[0]
