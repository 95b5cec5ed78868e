import platform

import yaml

from edgeopt.system import host
from edgeopt.system.host import (
    HOST_IDENTITY,
    NOT_TOLD,
    emulated,
    environment_facts,
    host_facts,
)
from tests.linear_runtime import installed

XEON = """\
processor\t: 0
model name\t: Intel(R) Xeon(R) Platinum 8480+
physical id\t: 0
core id\t\t: 0
flags\t\t: fpu sse4_2 avx2 avx512f avx512_bf16 avx512_vnni amx_bf16 amx_tile amx_int8

processor\t: 1
model name\t: Intel(R) Xeon(R) Platinum 8480+
physical id\t: 0
core id\t\t: 0
flags\t\t: fpu sse4_2 avx2 avx512f avx512_bf16 avx512_vnni amx_bf16 amx_tile amx_int8
"""
PI_5 = """\
processor\t: 0
Features\t: fp asimd evtstrm aes crc32 atomics fphp asimdhp cpuid asimdrdm lrcpc dcpop asimddp
CPU part\t: 0xd0b

processor\t: 1
Features\t: fp asimd evtstrm aes crc32 atomics fphp asimdhp cpuid asimdrdm lrcpc dcpop asimddp
CPU part\t: 0xd0b
"""


EPYC = """\
processor\t: 0
vendor_id\t: AuthenticAMD
cpu family\t: 25
model\t\t: 17
model name\t: AMD EPYC
stepping\t: 1
flags\t\t: fpu avx2 avx512f avx512_vnni
"""


def test_host_facts_tell_designs_of_one_name_apart():
    facts = host_facts(cpuinfo=EPYC)
    assert facts["cpu"] == "AMD EPYC"
    assert [facts[name] for name in ("cpu_family", "cpu_model", "cpu_stepping")] == [
        "25", "17", "1"
    ]  # fmt: skip
    assert facts["cpu_part"] == NOT_TOLD
    assert host_facts(cpuinfo=PI_5)["cpu_part"] == "0xd0b"


def test_host_facts_hold_all_that_makes_a_host():
    assert set(HOST_IDENTITY) <= set(host_facts(cpuinfo=EPYC))
    other = host_facts(cpuinfo=EPYC.replace(": 17", ": 1"))
    assert [n for n in HOST_IDENTITY if other[n] != host_facts(cpuinfo=EPYC)[n]] == ["cpu_model"]


def test_an_x86_server_is_described_from_its_cpuinfo():
    facts = host_facts(cpuinfo=XEON, meminfo="MemTotal:       2048 kB\nMemFree: 1 kB\n")
    assert facts["cpu"] == "Intel(R) Xeon(R) Platinum 8480+"
    assert facts["isa"] == (
        "avx2", "avx512f", "avx512_bf16", "avx512_vnni", "amx_bf16", "amx_int8"
    )  # fmt: skip
    assert (facts["logical_cores"], facts["physical_cores"]) == (2, 1)
    assert facts["memory_bytes"] == 2 * 2**20


def test_an_arm_board_is_described_from_its_cpuinfo():
    facts = host_facts(cpuinfo=PI_5, meminfo="")
    assert facts["cpu"] == "Cortex-A76"
    assert facts["isa"] == ("neon", "asimdhp", "asimddp")
    assert facts["logical_cores"] == 2
    assert facts["physical_cores"].startswith("unavailable:")
    assert facts["memory_bytes"].startswith("unavailable:")


def test_an_unlisted_arm_part_keeps_its_number():
    assert host_facts(cpuinfo="CPU part\t: 0xabc\n")["cpu"] == "Arm CPU part 0xabc"


def test_this_host_says_a_value_or_why_not():
    for name, value in host_facts().items():
        assert value is not None, name
        assert value != "", name
    assert host_facts()["usable_cores"] <= host_facts()["logical_cores"]


def test_a_package_that_is_not_there_is_said_so(monkeypatch):
    monkeypatch.setattr(host, "PACKAGES", ("numpy", "no-such-package"))
    assert environment_facts()["packages"]["no-such-package"] == "not installed"


def test_packages_that_bring_a_runtime_count_with_what_they_require(tmp_path):
    assert "edgeopt-linear" not in environment_facts()["packages"]
    with installed(tmp_path):
        packages = environment_facts()["packages"]
    assert packages["edgeopt-linear"] == "1.0"
    assert packages["PyYAML"] == yaml.__version__


def test_a_kernel_of_another_architecture_is_an_emulated_device(tmp_path, monkeypatch):
    monkeypatch.delenv("EDGEOPT_EMULATED", raising=False)
    monkeypatch.setattr(host, "KERNEL_ARCH", tmp_path / "arch")
    assert not emulated()
    (tmp_path / "arch").write_text(f"{platform.machine()}\n")
    assert not emulated()
    (tmp_path / "arch").write_text("m68k\n")
    assert emulated()
    monkeypatch.setenv("EDGEOPT_EMULATED", "0")
    assert not emulated()
    monkeypatch.setattr(host, "KERNEL_ARCH", tmp_path / "none")
    monkeypatch.setenv("EDGEOPT_EMULATED", "1")
    assert emulated()
