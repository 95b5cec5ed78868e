"""A model on a machine: measured latency against the roofline of its ceilings."""

from collections.abc import Iterable, Mapping

import numpy as np
import pandas as pd
from torch import nn

from edgeopt.hardware.layers import join_profile, layerwise_breakdown, measure_layers
from edgeopt.runtimes import Artifact, runtime_named
from edgeopt.schema import PRECISIONS, require_known
from edgeopt.system import RuntimeUnavailable

PROFILED_RUNS, PROFILED_WARMUP = 100, 10
PROFILE_COLUMNS = ("candidate", "layer", "measured_ms", "share", "macs_share", "op")


def count_layers(
    networks: Mapping[str, nn.Module], *, shapes: Mapping[str, tuple[int, ...]]
) -> tuple[pd.DataFrame, dict[str, str]]:
    """Count the layers of every network, and say why one cannot be counted.

    Returns :func:`layerwise_breakdown` of each with its ``model`` as first column, and the reasons
    by model.
    """
    tables, reasons = [], {}
    for model, network in networks.items():
        try:
            breakdown = layerwise_breakdown(network, input_shape=shapes[model])
            tables.append(_of_model(breakdown, model))
        except ValueError as error:
            reasons[model] = str(error)
    columns = ["model", "layer", "kind", "output_shape", "parameters", "macs"]
    empty = pd.DataFrame(columns=[*columns, "arithmetic_intensity"])
    return pd.concat(tables, ignore_index=True) if tables else empty, reasons


def measure_networks(
    models: Iterable[str],
    networks: Mapping[str, nn.Module],
    *,
    shapes: Mapping[str, tuple[int, ...]],
    threads: int = 1,
) -> pd.DataFrame:
    """Time the layers of the named networks in eager torch: :func:`measure_layers` of each."""
    tables = [
        _of_model(measure_layers(networks[m], input_shape=shapes[m], threads=threads), m)
        for m in models
    ]
    columns = ["model", "layer", "macs", "measured_ms", "measured_share"]
    return pd.concat(tables, ignore_index=True) if tables else pd.DataFrame(columns=columns)


def _of_model(table: pd.DataFrame, model: str) -> pd.DataFrame:
    return pd.concat([pd.Series(model, index=table.index, name="model"), table], axis=1)


def profile_candidates(
    artifacts: Mapping[str, Artifact],
    counted: pd.DataFrame,
    *,
    owners: Mapping[str, str],
    threads: int = 1,
) -> tuple[pd.DataFrame, dict[str, str]]:
    """Ask each artifact's runtime for the time of every layer, beside its share of the MACs.

    ``counted`` is :func:`count_layers`, ``owners`` names each candidate's model. Returns the
    profiles, with the candidate's name, and by candidate why there is none.
    """
    tables, reasons = [], {}
    for name, artifact in artifacts.items():
        breakdown = counted[counted["model"] == owners[name]]
        if breakdown.empty:
            reasons[name] = f"the layers of {owners[name]} could not be counted"
            continue
        try:
            profile = join_profile(
                breakdown,
                runtime_named(artifact.runtime).layer_times(
                    artifact, threads=threads, repeats=PROFILED_RUNS, warmup=PROFILED_WARMUP
                ),
            )
            tables.append(profile.assign(candidate=name)[[*PROFILE_COLUMNS]])
        except (RuntimeUnavailable, ValueError) as error:
            reasons[name] = str(error)
    empty = pd.DataFrame(columns=[*PROFILE_COLUMNS])
    return pd.concat(tables, ignore_index=True) if tables else empty, reasons


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
    require_known(precision, allowed=PRECISIONS, what="precision")
    if not latency_ms > 0:
        raise ValueError(f"latency_ms of {candidate!r} is {latency_ms!r}; it must be above 0")
    totals = breakdown[["parameters", "parameter_bytes", "activation_bytes", "macs"]].sum()
    memory_bytes = totals["parameter_bytes"] + totals["activation_bytes"]
    level = _memory_level(breakdown, ceilings=ceilings, cache_bytes=cache_bytes)
    bandwidth = _ceiling(ceilings, name="cache" if level == "cache" else "memory")
    compute = _ceiling(ceilings, name="compute", precision=PRECISIONS[precision].arithmetic)
    row = {
        "candidate": candidate,
        "precision": precision,
        **totals,
        "memory_bytes": memory_bytes,
        "latency_ms": latency_ms,
        "achieved_bandwidth_gbps": memory_bytes / latency_ms / 1e6,
        "achieved_gmacs": totals["macs"] / latency_ms / 1e6,
        "memory_level": level,
        "bandwidth_ceiling_gbps": bandwidth["value"],
        "bandwidth_ceiling_kind": bandwidth["kind"],
        "compute_ceiling_gmacs": compute["value"],
        "compute_ceiling_kind": compute["kind"],
        "arithmetic_intensity": totals["macs"] / memory_bytes,
        "ridge_point": compute["value"] / bandwidth["value"],
    }
    return pd.DataFrame([row]).pipe(_add_utilization)


def _add_utilization(row: pd.DataFrame) -> pd.DataFrame:
    left_of_ridge = row["arithmetic_intensity"] < row["ridge_point"]
    return row.assign(
        bandwidth_utilization=row["achieved_bandwidth_gbps"] / row["bandwidth_ceiling_gbps"],
        compute_utilization=row["achieved_gmacs"] / row["compute_ceiling_gmacs"],
        bound=np.where(left_of_ridge, "memory", "compute"),
    )


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
