"""What-if estimates for other devices, from a table of sourced constants."""

from importlib.resources import files
from pathlib import Path

import numpy as np
import pandas as pd

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
        require_known(quantity, allowed=REQUIRED + RATES, what="device quantity")
    for row in devices.itertuples():
        if not isinstance(row.source, str) or not row.source.strip():
            raise ValueError(f"{row.quantity} of {row.device} has no source")
        if not row.value > 0 and row.quantity != "weights_in_flash":
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
    them in place from flash; it leaves nothing for a system. The energy is the power of the whole
    board or chip times the latency. Where a device has no rate for a precision the estimate is NaN
    and ``note`` says so.
    """
    if missing := set(CANDIDATE_COLUMNS) - set(candidates.columns):
        raise ValueError(f"candidates lack the columns {sorted(missing)}")
    for precision in candidates["precision"].unique():
        require_known(precision, allowed=PRECISIONS, what="precision")
    pairs = candidates[list(CANDIDATE_COLUMNS)].merge(_wide(devices), how="cross")
    rate = _rate(pairs)
    in_ram = pairs["weight_bytes"].where(pairs["weights_in_flash"] == 0, 0)
    traffic = pairs["weight_bytes"] + pairs["peak_activation_bytes"]
    pairs = pairs.assign(
        compute_ms=1e3 * pairs["macs"] / (rate * pairs["clock_hz"]),
        memory_ms=traffic / pairs["memory_bandwidth_gbps"] / 1e6,
        fits_ram=pairs["peak_activation_bytes"] + in_ram <= pairs["ram_bytes"],
        fits_flash=pairs["artifact_bytes"] <= pairs["flash_bytes"],
        note=np.where(rate.isna(), "no rate known for " + pairs["precision"], ""),
        kind="estimate",
    )
    return _add_latency(pairs)


def _add_latency(pairs: pd.DataFrame) -> pd.DataFrame:
    latency = pairs[["compute_ms", "memory_ms"]].max(axis=1, skipna=False)
    bound = np.where(pairs["compute_ms"] >= pairs["memory_ms"], "compute", "memory")
    result = pairs.assign(
        latency_estimate_ms=latency,
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
            "compute_ms",
            "memory_ms",
            "bound",
            "energy_estimate_j",
            "fits_ram",
            "fits_flash",
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
