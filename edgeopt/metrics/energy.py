"""Energy per inference in three tiers that are never mixed: proxy, model, measured."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from edgeopt.schema import INT8_PRECISIONS, PRECISIONS, require_at_least, require_known

# 45 nm: Horowitz 2014, doi:10.1109/ISSCC.2014.6757323, as the precisions' own constants.
DRAM_PICOJOULES_PER_BYTE = 1300 / 8  # low end of 1.3-2.6 nJ per 64-bit access

POWERCAP_ROOT = Path("/sys/class/powercap")


def energy_proxy_j(latency_ms: float, *, power_watts: float) -> float:
    """Proxy tier, in joules: latency times an assumed constant power.

    Because the power is a constant, this ranks candidates exactly as their latency does.
    """
    if power_watts <= 0:
        raise ValueError(f"power_watts is {power_watts}; allowed: above 0")
    return latency_ms / 1e3 * power_watts


def energy_model_j(
    *, macs: int, memory_bytes: int, precision: str, int8_mac_share: float = 1.0
) -> float:
    """Model tier, in joules: 45 nm operation energies plus memory traffic.

    ``memory_bytes`` are moved from or to DRAM. Of an int8 precision, the MACs beyond
    ``int8_mac_share`` are charged as fp32. Constants: Horowitz 2014,
    doi:10.1109/ISSCC.2014.6757323.
    """
    require_known(precision, allowed=PRECISIONS, what="precision")
    require_at_least(0, macs=macs, memory_bytes=memory_bytes)
    share = int8_mac_share if precision in INT8_PRECISIONS else 1.0
    per_mac = (
        share * PRECISIONS[precision].mac_picojoules
        + (1 - share) * PRECISIONS["fp32"].mac_picojoules
    )
    return (macs * per_mac + memory_bytes * DRAM_PICOJOULES_PER_BYTE) * 1e-12


def measured_energy_unavailable() -> str | None:
    """Why RAPL cannot be read here, or None when it can."""
    try:
        if not _read_microjoules():
            return f"unavailable: no RAPL on this host (no intel-rapl package in {POWERCAP_ROOT})"
    except PermissionError as error:
        return (
            f"unavailable: RAPL on this host is not readable ({error.filename}: permission denied)"
        )
    except OSError as error:  # as in a container, whose links lead nowhere
        return f"unavailable: RAPL on this host is not readable ({error})"
    return None


def measured_energy_j(call: Callable[[], Any], *, calls: int) -> float | str:
    """Measured tier: joules per call of all CPU packages, or the reason why there are none.

    Whatever else runs on the packages is in the number, idle power too. The counters advance
    about once a millisecond and wrap after minutes to hours: choose ``calls`` so that the whole
    takes a few seconds. Source: docs.kernel.org/power/powercap/powercap.html.
    """
    require_at_least(1, calls=calls)
    if reason := measured_energy_unavailable():
        return reason
    before = _read_microjoules()
    for _ in range(calls):
        call()
    after = _read_microjoules()
    ranges = {p: int((p / "max_energy_range_uj").read_text()) for p in before}
    spent = sum((after[p] - before[p]) % ranges[p] for p in before)  # a counter may have wrapped
    return spent * 1e-6 / calls


def _read_microjoules() -> dict[Path, int]:
    """Energy counter of every CPU package."""
    # intel-rapl:N is a package; intel-rapl:N:M (core, dram) is a part of it, and psys contains it.
    domains = sorted(p for p in POWERCAP_ROOT.glob("intel-rapl:*") if p.name.count(":") == 1)
    packages = [p for p in domains if (p / "name").read_text().startswith("package")]
    return {package: int((package / "energy_uj").read_text()) for package in packages}
