"""What-if estimates for other devices, from a table of sourced constants."""

from importlib.resources import files
from pathlib import Path

import numpy as np
import pandas as pd

from edgeopt.runtimes import runtime_named
from edgeopt.schema import PRECISIONS, require_known

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
RATE_OF_PRECISION = {n: f"macs_per_cycle_{p.arithmetic}" for n, p in PRECISIONS.items()}
CANDIDATE_COLUMNS = (
    "candidate",
    "precision",
    "macs",
    "weight_bytes",
    "peak_activation_bytes",
    "artifact_bytes",
)
OPTIONAL = ("runtime", "over_bound")


def load_devices(path: Path | None = None) -> pd.DataFrame:
    """Read the device table (the package's own by default), a row per device and quantity.

    Columns: device, core, quantity, value, unit, kind (datasheet, measured or assumed), source.
    Rates are MACs per cycle of one core, as a good library sustains them, not peaks.
    """
    source = files("edgeopt") / "assets" / "devices.csv" if path is None else path
    with source.open("r") as file:
        table = pd.read_csv(file)
    return check_devices(table)


def check_devices(devices: pd.DataFrame) -> pd.DataFrame:
    """Return a device table, or raise ``ValueError`` naming what is wrong with it."""
    if missing := set(DEVICE_COLUMNS) - set(devices.columns):
        raise ValueError(f"device table lacks the columns {sorted(missing)}")
    for kind in devices["kind"].unique():
        require_known(kind, allowed=KINDS, what="kind of a device constant")
    for quantity in devices["quantity"].unique():
        require_known(quantity, allowed=(*REQUIRED, *RATES, SWITCHES[1]), what="device quantity")
    for row in devices.itertuples():
        if not isinstance(row.source, str) or not row.source.strip():
            raise ValueError(f"{row.quantity} of {row.device} has no source")
        if not row.value > 0 and row.quantity not in SWITCHES:
            raise ValueError(f"{row.quantity} of {row.device} is {row.value}; it must be above 0")
    _check_complete(devices)
    return devices


def _check_complete(devices: pd.DataFrame) -> None:
    if devices.duplicated(["device", "quantity"]).any():
        twice = devices[devices.duplicated(["device", "quantity"])].iloc[0]
        raise ValueError(f"{twice['quantity']} of {twice['device']} is given twice")
    for device, rows in devices.groupby("device"):
        if missing := set(REQUIRED) - set(rows["quantity"]):
            raise ValueError(f"{device} lacks {', '.join(sorted(missing))}")


def estimate_on_devices(candidates: pd.DataFrame, *, devices: pd.DataFrame) -> pd.DataFrame:
    """Estimate each candidate on one core of each device: a row per pair, ``kind='estimate'``.

    ``candidates`` has the sweep's columns candidate, precision, macs, weight_bytes,
    peak_activation_bytes and artifact_bytes. ``compute_ms`` is MACs over sustained MACs per
    second; ``memory_ms`` moves weights and peak activations once, the least there is to move; the
    latency estimate is the larger of the two, without any overhead of a runtime or of layers that
    do not multiply. RAM holds the peak activations, and the weights too unless the device reads
    them in place from flash; it leaves nothing for a system. ``headroom`` is the share of RAM or
    flash, whichever is scarcer, that is left; below 0 it does not fit. The energy is the power of
    the whole board or chip times the latency. Where a device has no rate for a precision the
    estimate is NaN and ``note`` says so.

    With a column ``over_bound`` (:func:`over_bound`) ``latency_estimate_high_ms`` is the estimate
    times it: as far above the bound as the candidate was measured here. With a column ``runtime``
    the pairs are left out whose runtime needs an operating system that the device has not.
    """
    if missing := set(CANDIDATE_COLUMNS) - set(candidates.columns):
        raise ValueError(f"candidates lack the columns {sorted(missing)}")
    for precision in candidates["precision"].unique():
        require_known(precision, allowed=PRECISIONS, what="precision")
    kept = [*CANDIDATE_COLUMNS, *(name for name in OPTIONAL if name in candidates)]
    pairs = candidates[kept].merge(_wide(devices), how="cross")
    if "runtime" in pairs:
        anywhere = pairs["runtime"].map(lambda name: runtime_named(name).bare_metal)
        pairs = pairs[anywhere | (pairs.get("operating_system", 1) != 0)]
    rate = _rate(pairs)
    in_ram = pairs["weight_bytes"].where(pairs["weights_in_flash"] == 0, 0)
    used_ram = pairs["peak_activation_bytes"] + in_ram
    used_flash = pairs["artifact_bytes"] / pairs["flash_bytes"]
    traffic = pairs["weight_bytes"] + pairs["peak_activation_bytes"]
    pairs = pairs.assign(
        compute_ms=1e3 * pairs["macs"] / (rate * pairs["clock_hz"]),
        memory_ms=traffic / pairs["memory_bandwidth_gbps"] / 1e6,
        fits_ram=used_ram <= pairs["ram_bytes"],
        fits_flash=pairs["artifact_bytes"] <= pairs["flash_bytes"],
        headroom=1 - np.maximum(used_ram / pairs["ram_bytes"], used_flash),
        note=np.where(rate.isna(), "no rate known for " + pairs["precision"], ""),
        kind="estimate",
    )
    return _add_latency(pairs)


def over_bound(candidates: pd.DataFrame, *, ceilings: pd.DataFrame) -> pd.Series:
    """Measured latency of each candidate over the least that this machine's ceilings allow.

    ``candidates`` has the columns of :func:`estimate_on_devices` and ``latency_p50_ms``,
    ``ceilings`` come from :func:`measure_ceilings`; the fastest memory level counts. At least 1.
    """
    compute = ceilings[ceilings["name"] == "compute"].set_index("precision")["value"]
    bandwidth = ceilings.loc[ceilings["name"].isin(["memory", "cache"]), "value"].max()
    rate = candidates["precision"].map(lambda name: compute.get(PRECISIONS[name].arithmetic))
    moved = candidates["weight_bytes"] + candidates["peak_activation_bytes"]
    bound = np.maximum(candidates["macs"] / rate, moved / bandwidth) / 1e6
    return (candidates["latency_p50_ms"] / bound).clip(lower=1)


def _add_latency(pairs: pd.DataFrame) -> pd.DataFrame:
    latency = pairs[["compute_ms", "memory_ms"]].max(axis=1, skipna=False)
    bound = np.where(pairs["compute_ms"] >= pairs["memory_ms"], "compute", "memory")
    result = pairs.assign(
        latency_estimate_ms=latency,
        latency_estimate_high_ms=latency * pairs.get("over_bound", np.nan),
        energy_estimate_j=latency / 1e3 * pairs["power_watts"],
        bound=pd.Series(bound, index=pairs.index).where(latency.notna(), ""),
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
    wide = check_devices(devices).pivot_table(
        index=["device", "core"], columns="quantity", values="value", aggfunc="first", sort=False
    )
    return wide.reset_index()


def _rate(pairs: pd.DataFrame) -> pd.Series:
    """Sustained MACs per cycle of each pair's precision, NaN where the table has none."""
    rate = pd.Series(np.nan, index=pairs.index)
    for precision, column in RATE_OF_PRECISION.items():
        if column in pairs:
            rate = rate.mask(pairs["precision"] == precision, pairs[column])
    return rate
