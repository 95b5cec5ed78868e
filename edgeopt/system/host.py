"""What this machine is: CPU, instruction sets, caches, memory, packages, and the INT8 it suits."""

import os
import platform
import re
from collections.abc import Collection
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

from edgeopt.schema import require_known

CPUINFO = Path("/proc/cpuinfo")
MEMINFO = Path("/proc/meminfo")
CPU0 = Path("/sys/devices/system/cpu/cpu0")

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
VNNI = frozenset({"avx512_vnni", "avx_vnni", "amx_int8"})
# Main ID Register part numbers, for Arm kernels that print no model name.
ARM_PARTS = {
    "0xd03": "Cortex-A53",
    "0xd07": "Cortex-A57",
    "0xd08": "Cortex-A72",
    "0xd0b": "Cortex-A76",
}
PACKAGES = (
    "torch",
    "torchvision",
    "torch-pruning",
    "torchao",
    "onnx",
    "onnxruntime",
    "executorch",
    "openvino",
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


INTEGER_TYPES = {"uint8": "U8", "int8": "S8"}


@dataclass(frozen=True)
class Int8Scheme:
    """Integer types that a CPU multiplies exactly, why, and what happens elsewhere."""

    reason: str
    note: str
    activations: str = "uint8"
    weights: str = "int8"
    reduce_range: bool = False

    def __post_init__(self) -> None:
        for value in (self.activations, self.weights):
            require_known(value, allowed=INTEGER_TYPES, what="integer type")

    @property
    def name(self) -> str:
        """Short name: ``U8S8``, ``U8U8``, with ``reduced range`` for 7-bit weights."""
        name = INTEGER_TYPES[self.activations] + INTEGER_TYPES[self.weights]
        return f"{name} reduced range" if self.reduce_range else name


U8S8 = Int8Scheme(
    reason="the CPU adds unsigned x signed byte products straight into 32 bits",
    note="U8S8 with full-range weights saturates on x86 CPUs without VNNI: there the products of "
    "two neighbours are added in 16 bits, and accuracy falls. Export again for such a CPU.",
)
U8S8_REDUCED = Int8Scheme(
    reduce_range=True,
    reason="x86 without VNNI adds two byte products in 16 bits, which 8-bit weights overflow; "
    "7-bit weights cannot (2 x 255 x 64 < 2^15)",
    note="Runs without saturation on every CPU, with one bit less in the weights than a CPU with "
    "VNNI could use.",
)
U8U8 = Int8Scheme(
    weights="uint8",
    reason="unsigned byte products are widened before they are added, so none saturates",
    note="Exact on every CPU; on x86 it is slower than U8S8.",
)


def int8_scheme(isa: Collection[str]) -> Int8Scheme:
    """Choose the INT8 scheme that instruction sets ``isa`` (names of `host_facts`) run exactly.

    Source: https://onnxruntime.ai/docs/performance/model-optimizations/quantization.html
    """
    if VNNI & set(isa) or "i8mm" in isa:
        return U8S8
    return U8S8_REDUCED if "avx2" in isa else U8U8


def host_facts(*, cpuinfo: str | None = None, meminfo: str | None = None) -> dict[str, object]:
    """Describe this host for a run's manifest; texts of ``/proc`` files may be given instead.

    Bytes are bytes; what the host does not tell is a string that starts with ``unavailable:``.
    """
    text = _read(CPUINFO) if cpuinfo is None else cpuinfo
    return {
        "cpu": _cpu_name(text),
        **{fact: (_field(text, name) or [NOT_TOLD])[0] for fact, name in IDENTIFIERS.items()},
        "architecture": platform.machine(),
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
    pairs = set(zip(_field(text, "physical id"), _field(text, "core id"), strict=True))
    return len(pairs) or f"unavailable: no core ids in {CPUINFO}"


def usable_cores() -> int:
    """Count the cores this process may run on; a container can hold fewer than the machine."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _cache_bytes(level: int) -> int | str:
    for index in sorted(CPU0.glob("cache/index*")):
        if _read(index / "level").strip() == str(level):
            return int(_read(index / "size").strip().removesuffix("K")) * 1024
    return f"unavailable: {CPU0}/cache lists no level {level}"


def _memory_bytes(meminfo: str) -> int | str:
    total = re.search(r"^MemTotal:\s+(\d+) kB", meminfo, re.M)
    return int(total[1]) * 1024 if total else f"unavailable: no MemTotal in {MEMINFO}"


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "not installed"


def environment_facts() -> dict[str, Any]:
    """Return what measured numbers depend on besides code and parameters: versions and CPU."""
    packages = {"python": platform.python_version(), **{name: _version(name) for name in PACKAGES}}
    return {"packages": packages, "cpu": _cpu_name(_read(CPUINFO))}
