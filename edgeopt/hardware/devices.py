"""What-if estimates for other devices, from a table of sourced constants."""

from importlib.resources import files

import numpy as np
import pandas as pd

from edgeopt.runtimes import runtime_named
from edgeopt.schema import PRECISIONS, require_columns, require_known

DEVICE_COLUMNS = ("device", "core", "quantity", "value", "unit", "kind", "source")
KINDS = ("datasheet", "measured", "assumed")
REQUIRED = (
    "clock_hz",
    "memory_bandwidth_gbps",
    "ram_bytes",
    "flash_bytes",
    "power_watts",
    "weights_in_flash",
)
SWITCHES = ("weights_in_flash", "operating_system")
RATES = ("macs_per_cycle_fp32", "macs_per_cycle_fp16", "macs_per_cycle_int8")
CANDIDATE_COLUMNS = [
    "candidate",
    "precision",
    "macs",
    "weight_bytes",
    "peak_activation_bytes",
    "artifact_bytes",
]


def load_devices() -> pd.DataFrame:
    """Read the device table of the package, a row per device and quantity.

    Columns: device, core, quantity, value, unit, kind (datasheet, measured or assumed), source.
    Rates are MACs per cycle of one core, as a good library sustains them, not peaks.
    """
    with (files("edgeopt") / "assets" / "devices.csv").open("r") as file:
        return pd.read_csv(file)


def estimate_on_devices(
    candidates: pd.DataFrame, *, devices: pd.DataFrame, ceilings: pd.DataFrame | None = None
) -> pd.DataFrame:
    """Estimate each candidate on one core of each device: a row per pair, ``kind='estimate'``.

    ``candidates`` has the sweep's columns candidate, precision, macs, weight_bytes,
    peak_activation_bytes and artifact_bytes; ``devices`` are like :func:`load_devices`.
    ``compute_ms`` is MACs over sustained MACs per second; ``memory_ms`` moves weights and peak
    activations once, the least there is to move; the latency estimate is the larger of the two,
    without any overhead of a runtime or of layers that do not multiply. RAM holds the peak
    activations, and the weights too unless the device reads them in place from flash; it leaves
    nothing for a system. ``headroom`` is the share of RAM or flash, whichever is scarcer, that is
    left; below 0 it does not fit. The energy is the power of the whole board or chip times the
    latency. Where a device has no rate for a precision the estimate is NaN and ``note`` says so.

    With this machine's ``ceilings`` (:func:`measure_ceilings`) and the candidates' measured
    ``latency_p50_ms``, ``latency_estimate_high_ms`` is the estimate times as much as the candidate
    took here over the least that the ceilings allow, else NaN. With a column ``runtime`` the pairs
    are left out whose runtime needs an operating system that the device has not.

    Raises ``ValueError`` naming a column, precision, quantity or constant that is missing or wrong.
    """
    needed = CANDIDATE_COLUMNS if ceilings is None else [*CANDIDATE_COLUMNS, "latency_p50_ms"]
    require_columns(candidates, needed, what="estimate_on_devices")
    for precision in candidates["precision"].unique():
        require_known(precision, allowed=PRECISIONS, what="precision")
    over_bound = np.nan if ceilings is None else _over_bound(candidates, ceilings)
    kept = candidates.filter(items=[*CANDIDATE_COLUMNS, "runtime"])
    pairs = kept.assign(over_bound=over_bound).merge(_wide(devices), how="cross")
    if "runtime" in pairs:
        anywhere = pairs["runtime"].map(lambda name: runtime_named(name).bare_metal)
        pairs = pairs[anywhere | (pairs.get("operating_system", 1) != 0)]
    return _add_latency(_add_memory(pairs))


def _add_memory(pairs: pd.DataFrame) -> pd.DataFrame:
    in_ram = pairs["weight_bytes"].where(pairs["weights_in_flash"] == 0, 0)
    used_ram = (pairs["peak_activation_bytes"] + in_ram) / pairs["ram_bytes"]
    used_flash = pairs["artifact_bytes"] / pairs["flash_bytes"]
    return pairs.assign(
        fits_ram=used_ram <= 1,
        fits_flash=used_flash <= 1,
        headroom=1 - np.maximum(used_ram, used_flash),
    )


def _add_latency(pairs: pd.DataFrame) -> pd.DataFrame:
    rate = _rate(pairs)
    compute = 1e3 * pairs["macs"] / (rate * pairs["clock_hz"])
    traffic = pairs["weight_bytes"] + pairs["peak_activation_bytes"]
    memory = traffic / pairs["memory_bandwidth_gbps"] / 1e6
    latency = np.maximum(compute, memory)
    bound = pd.Series(np.where(compute >= memory, "compute", "memory"), index=pairs.index)
    result = pairs.assign(
        latency_estimate_ms=latency,
        latency_estimate_high_ms=latency * pairs["over_bound"],
        compute_ms=compute,
        memory_ms=memory,
        bound=bound.where(latency.notna(), ""),
        energy_estimate_j=latency / 1e3 * pairs["power_watts"],
        kind="estimate",
        note=np.where(rate.isna(), "no rate known for " + pairs["precision"], ""),
    )
    return result[
        [
            "candidate",
            "precision",
            "device",
            "core",
            "latency_estimate_ms",
            "latency_estimate_high_ms",
            "compute_ms",
            "memory_ms",
            "bound",
            "energy_estimate_j",
            "fits_ram",
            "fits_flash",
            "headroom",
            "kind",
            "note",
        ]
    ]


def _wide(devices: pd.DataFrame) -> pd.DataFrame:
    """One row per device, in the table's order; a quantity that a device lacks is NaN."""
    _check(devices)
    wide = devices.pivot_table(
        index=["device", "core"], columns="quantity", values="value", aggfunc="first", sort=False
    )
    return wide.reset_index()


def _check(devices: pd.DataFrame) -> None:
    require_columns(devices, DEVICE_COLUMNS, what="the device table")
    for row in devices.itertuples():
        require_known(row.kind, allowed=KINDS, what="kind of a device constant")
        allowed = (*REQUIRED, *RATES, "operating_system")
        require_known(row.quantity, allowed=allowed, what="device quantity")
        if not isinstance(row.source, str) or not row.source.strip():
            raise ValueError(f"{row.quantity} of {row.device} has no source")
        if not row.value > 0 and row.quantity not in SWITCHES:
            raise ValueError(f"{row.quantity} of {row.device} is {row.value}; it must be above 0")
    for device, quantities in devices.groupby("device")["quantity"]:
        if quantities.duplicated().any():
            twice = quantities[quantities.duplicated()].iloc[0]
            raise ValueError(f"{twice} of {device} is given twice")
        if missing := set(REQUIRED) - set(quantities):
            raise ValueError(f"{device} lacks {', '.join(sorted(missing))}")


def _rate(pairs: pd.DataFrame) -> pd.Series:
    """Sustained MACs per cycle of each pair's precision, NaN where the table has none."""
    rate = pd.Series(np.nan, index=pairs.index)
    for name, precision in PRECISIONS.items():
        column = f"macs_per_cycle_{precision.arithmetic}"
        if column in pairs:
            rate = rate.mask(pairs["precision"] == name, pairs[column])
    return rate


def _over_bound(candidates: pd.DataFrame, ceilings: pd.DataFrame) -> pd.Series:
    """Measured latency over the least that the ceilings allow; the fastest memory level counts."""
    compute = ceilings[ceilings["name"] == "compute"].set_index("precision")["value"]
    bandwidth = ceilings.loc[ceilings["name"].isin(["memory", "cache"]), "value"].max()
    rate = candidates["precision"].map(lambda name: compute.get(PRECISIONS[name].arithmetic))
    moved = candidates["weight_bytes"] + candidates["peak_activation_bytes"]
    bound = np.maximum(candidates["macs"] / rate, moved / bandwidth) / 1e6
    return (candidates["latency_p50_ms"] / bound).clip(lower=1)
