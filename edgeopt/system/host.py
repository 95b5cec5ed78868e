"""What this machine is: CPU, instruction sets, caches, memory, packages."""

from __future__ import annotations

import math
import os
import platform
import re
from importlib import metadata
from pathlib import Path
from typing import Any

CPUINFO = Path("/proc/cpuinfo")
MEMINFO = Path("/proc/meminfo")
CGROUP = Path("/sys/fs/cgroup")
CPU0 = Path("/sys/devices/system/cpu/cpu0")
KERNEL_ARCH = Path("/proc/sys/kernel/arch")

# Linux flag -> the name used in tables; only what an inference library dispatches on.
X86_FLAGS = ("avx2", "avx512f", "avx512_vnni", "avx_vnni", "avx512_bf16", "amx_int8", "amx_bf16")
ARM_FLAGS = ("neon", "asimdhp", "asimddp", "i8mm")
ISA_OF_FLAG = {
    **{flag: flag for flag in (*X86_FLAGS, *ARM_FLAGS)},
    "asimd": "neon",
    "bf16": "arm_bf16",
}
NOT_TOLD = "unavailable: not in /proc/cpuinfo"
# x86 and Arm tell which design a CPU is under other names; a name like "AMD EPYC" does not.
IDENTIFIERS = {
    "cpu_family": "cpu family",
    "cpu_model": "model",
    "cpu_stepping": "stepping",
    "cpu_part": "CPU part",
}
# What makes two hosts the same design; how fast each was is a run's measured ceilings.
HOST_IDENTITY = ("cpu", *IDENTIFIERS, "architecture", "isa", "l2_bytes", "l3_bytes")
# Main ID Register part numbers, for Arm kernels that print no model name.
ARM_PARTS = {
    "0xd03": "Cortex-A53",
    "0xd07": "Cortex-A57",
    "0xd08": "Cortex-A72",
    "0xd0b": "Cortex-A76",
}
RUNTIME_GROUP = "edgeopt.runtimes"  # the entry points of runtimes that other packages bring
REQUIRED_NAME = re.compile(r"[A-Za-z0-9._-]+")
PACKAGES = (
    "torch",
    "torchvision",
    "torch-pruning",
    "torchao",
    "onnx",
    "onnxruntime",
    "executorch",
    "openvino",
    "ai-edge-litert",
    "numpy",
    "pandas",
    "scipy",
    "statsmodels",
    "scikit-learn",
    "matplotlib",
    "plotly",
    "papermill",
    "myst-nb",
)


def host_facts(*, cpuinfo: str | None = None, meminfo: str | None = None) -> dict[str, object]:
    """Describe this host for a run's manifest; texts of ``/proc`` files may be given instead.

    Bytes are bytes; what the host does not tell is a string that starts with ``unavailable:``.
    """
    text = _read(CPUINFO) if cpuinfo is None else cpuinfo
    return {
        "cpu": _cpu_name(text),
        **{fact: (_field(text, name) or [NOT_TOLD])[0] for fact, name in IDENTIFIERS.items()},
        "architecture": platform.machine(),
        "emulated": emulated(),
        "isa": _instruction_sets(text),
        "logical_cores": len(re.findall(r"^processor\s*:", text, re.M)) or os.cpu_count(),
        "physical_cores": _physical_cores(text),
        "usable_cores": usable_cores(),
        "l2_bytes": _cache_bytes(2),
        "l3_bytes": _cache_bytes(3),
        "memory_bytes": _memory_bytes(_read(MEMINFO) if meminfo is None else meminfo),
        "governor": _read(CPU0 / "cpufreq" / "scaling_governor").strip()
        or "unavailable: this host does not show its frequency governor",
        "system": f"{platform.system()} {platform.release()}",
    }


def emulated() -> bool:
    """Whether the kernel is of another architecture than this program, as under QEMU.

    ``EDGEOPT_EMULATED=1`` says so where the kernel, before Linux 6.1, does not tell.
    """
    if os.environ.get("EDGEOPT_EMULATED"):
        return os.environ["EDGEOPT_EMULATED"] != "0"
    kernel = KERNEL_ARCH.read_text().strip() if KERNEL_ARCH.exists() else platform.machine()
    return kernel != platform.machine()


def _read(path: Path) -> str:
    return path.read_text() if path.exists() else ""


def _field(text: str, name: str) -> list[str]:
    return re.findall(rf"^{name}[ \t]*:[ \t]*(.+?)[ \t]*$", text, re.M)


def _cpu_name(text: str) -> str:
    if names := _field(text, "model name"):
        return names[0]
    if parts := _field(text, "CPU part"):
        return ARM_PARTS.get(parts[0], f"Arm CPU part {parts[0]}")
    return platform.processor() or f"unavailable: no CPU name in {CPUINFO}"


def _instruction_sets(text: str) -> tuple[str, ...]:
    flags = " ".join(_field(text, "flags")[:1] + _field(text, "Features")[:1]).split()
    return tuple(dict.fromkeys(ISA_OF_FLAG[flag] for flag in flags if flag in ISA_OF_FLAG))


def _physical_cores(text: str) -> int | str:
    pairs = set(zip(_field(text, "physical id"), _field(text, "core id")))
    return len(pairs) or f"unavailable: no core ids in {CPUINFO}"


def usable_cores() -> int:
    """Count the cores this process may run on; a container can hold fewer than the machine."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _cache_bytes(level: int) -> int | str:
    for index in sorted(CPU0.glob("cache/index*")):
        if _read(index / "level").strip() == str(level):
            size = _read(index / "size").strip().removesuffix("K")
            return int(size) * 1024 if size else f"unavailable: {index}/size is not told"
    return f"unavailable: {CPU0}/cache lists no level {level}"


def _memory_bytes(meminfo: str) -> int | str:
    total = re.search(r"^MemTotal:\s+(\d+) kB", meminfo, re.M)
    return int(total[1]) * 1024 if total else f"unavailable: no MemTotal in {MEMINFO}"


def status_bytes(field: str) -> int:
    """Read a size of this process from ``/proc/self/status``, e.g. ``VmRSS``; Linux only."""
    found = re.search(rf"^{field}:\s+(\d+) kB$", Path("/proc/self/status").read_text(), re.M)
    if found is None:
        raise RuntimeError(f"/proc/self/status has no {field}")
    return int(found[1]) * 1024


def available_bytes() -> float:
    """Memory that programs could still take: the kernel's estimate, or less in a container.

    Infinite where neither is told. Source: https://docs.kernel.org/admin-guide/cgroup-v2.html
    """
    told = re.search(r"^MemAvailable:\s+(\d+) kB", _read(MEMINFO), re.M)
    free = int(told[1]) * 1024 if told else math.inf
    limit = _read(CGROUP / "memory.max").strip()
    return min(free, int(limit)) if limit.isdecimal() else free


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "not installed"


def environment_facts() -> dict[str, Any]:
    """Return what measured numbers depend on besides code and parameters: versions and CPU."""
    names = dict.fromkeys([*PACKAGES, *_plugins()])
    packages = {"python": platform.python_version(), **{name: _version(name) for name in names}}
    return {"packages": packages, "cpu": _cpu_name(_read(CPUINFO))}


def _plugins() -> list[str]:
    """List the packages that bring a runtime of their own, and what these require."""
    found = [entry.dist for entry in metadata.entry_points(group=RUNTIME_GROUP) if entry.dist]
    required = [REQUIRED_NAME.match(line) for dist in found for line in dist.requires or ()]
    return [*(dist.name for dist in found), *(match[0] for match in required if match)]
