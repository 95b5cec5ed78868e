"""Energy per inference in three tiers that are never mixed: proxy, model, measured."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from edgeopt.schema import INT8_PRECISIONS, PRECISIONS, require_known

# 45 nm: Horowitz 2014, doi:10.1109/ISSCC.2014.6757323, as the precisions' own constants.
DRAM_PICOJOULES_PER_BYTE = 1300 / 8  # low end of 1.3-2.6 nJ per 64-bit access
CACHE_PICOJOULES_PER_BYTE = 100 / 8  # 1 MB cache, 100 pJ per 64-bit access

POWERCAP_ROOT = Path("/sys/class/powercap")


def energy_proxy_j(latency_ms: float, *, power_watts: float) -> float:
    """Proxy tier, in joules: latency times an assumed constant power.

    Because the power is a constant, this ranks candidates exactly as their latency does.
    """
    if power_watts <= 0:
        raise ValueError(f"power_watts is {power_watts}; allowed: above 0")
    return latency_ms / 1e3 * power_watts


def energy_model_j(
    *,
    macs: int,
    memory_bytes: int,
    precision: str,
    cache_bytes: int = 0,
    int8_mac_share: float = 1.0,
) -> float:
    """Model tier, in joules: 45 nm operation energies plus memory traffic.

    ``memory_bytes`` are bytes moved from or to DRAM, ``cache_bytes`` bytes moved from or to an
    on-chip cache of 1 MB. Of an int8 precision, the MACs beyond ``int8_mac_share`` are charged as
    fp32. Constants: Horowitz 2014, doi:10.1109/ISSCC.2014.6757323.
    """
    require_known(precision, allowed=PRECISIONS, what="precision")
    counts = {"macs": macs, "memory_bytes": memory_bytes, "cache_bytes": cache_bytes}
    for name, value in counts.items():
        if value < 0:
            raise ValueError(f"{name} is {value}; allowed: 0 or more")
    share = int8_mac_share if precision in INT8_PRECISIONS else 1.0
    per_mac = (
        share * PRECISIONS[precision].mac_picojoules
        + (1 - share) * PRECISIONS["fp32"].mac_picojoules
    )
    operations = macs * per_mac
    traffic = memory_bytes * DRAM_PICOJOULES_PER_BYTE + cache_bytes * CACHE_PICOJOULES_PER_BYTE
    return (operations + traffic) * 1e-12


def measured_energy_unavailable(*, powercap_root: Path = POWERCAP_ROOT) -> str | None:
    """Why RAPL cannot be read here, or None when it can."""
    packages = _rapl_packages(powercap_root)
    if not packages:
        return f"unavailable: no RAPL on this host (no intel-rapl package in {powercap_root})"
    try:
        _read_microjoules(packages)
    except PermissionError as error:
        return (
            f"unavailable: RAPL on this host is not readable ({error.filename}: permission denied)"
        )
    return None


def measured_energy_j(
    call: Callable[[], Any], *, calls: int, powercap_root: Path = POWERCAP_ROOT
) -> float | str:
    """Measured tier: joules per call of all CPU packages, or the reason why there are none.

    Whatever else runs on the packages is in the number, idle power too. The counters advance
    about once a millisecond and wrap after minutes to hours: choose ``calls`` so that the whole
    takes a few seconds. Source: docs.kernel.org/power/powercap/powercap.html.
    """
    if calls < 1:
        raise ValueError(f"calls is {calls}; allowed: 1 or more")
    if reason := measured_energy_unavailable(powercap_root=powercap_root):
        return reason
    packages = _rapl_packages(powercap_root)
    before = _read_microjoules(packages)
    for _ in range(calls):
        call()
    after = _read_microjoules(packages)
    spent = sum(
        _counter_difference(before[package], after[package], package=package)
        for package in packages
    )
    return spent * 1e-6 / calls


def _rapl_packages(root: Path) -> list[Path]:
    # intel-rapl:N is a package; intel-rapl:N:M (core, dram) is a part of it, and psys contains it.
    domains = sorted(path for path in root.glob("intel-rapl:*") if path.name.count(":") == 1)
    return [path for path in domains if (path / "name").read_text().startswith("package")]


def _read_microjoules(packages: list[Path]) -> dict[Path, int]:
    return {package: int((package / "energy_uj").read_text()) for package in packages}


def _counter_difference(before: int, after: int, *, package: Path) -> int:
    if after >= before:
        return after - before
    return after - before + int((package / "max_energy_range_uj").read_text())
