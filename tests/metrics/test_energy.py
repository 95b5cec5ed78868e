"""Energy tiers: arithmetic by hand, RAPL on a recorded powercap tree."""

import os

import pytest

from edgeopt.metrics.energy import (
    energy_model_j,
    energy_proxy_j,
    measured_energy_j,
    measured_energy_unavailable,
)

RANGE = 262_143_328_850


@pytest.fixture
def powercap(tmp_path, monkeypatch):
    """A powercap tree as Linux shows it on a server: two packages, a part, and psys."""
    monkeypatch.setattr("edgeopt.metrics.energy.POWERCAP_ROOT", tmp_path)
    domains = {
        "intel-rapl:0": ("package-0", 1_000),
        "intel-rapl:0:0": ("dram", 500),
        "intel-rapl:1": ("package-1", RANGE - 10_000),
        "intel-rapl:2": ("psys", 9_000),
    }
    for domain, (name, energy) in domains.items():
        (tmp_path / domain).mkdir()
        (tmp_path / domain / "name").write_text(f"{name}\n")
        (tmp_path / domain / "energy_uj").write_text(f"{energy}\n")
        (tmp_path / domain / "max_energy_range_uj").write_text(f"{RANGE}\n")
    (tmp_path / "intel-rapl").mkdir()
    return tmp_path


def spend(root, domain, microjoules):
    counter = root / domain / "energy_uj"
    counter.write_text(str((int(counter.read_text()) + microjoules) % RANGE))


def test_proxy_is_seconds_times_watts():
    assert energy_proxy_j(20.0, power_watts=5.0) == pytest.approx(0.1)
    assert energy_proxy_j(20.0, power_watts=0.5) == pytest.approx(0.01)


def test_proxy_refuses_no_power():
    with pytest.raises(ValueError, match="power_watts is 0; allowed: above 0"):
        energy_proxy_j(1.0, power_watts=0)


@pytest.mark.parametrize(
    ("precision", "picojoules"),
    list({"fp32": 4.6, "fp16": 1.5, "bf16": 1.5, "int8": 0.3, "int8-dynamic": 0.3}.items()),
)
def test_model_charges_a_multiplication_and_an_addition(precision, picojoules):
    energy = energy_model_j(macs=1_000_000, memory_bytes=0, precision=precision)
    assert energy == pytest.approx(picojoules * 1e-6)


def test_model_charges_what_is_not_in_integers_as_fp32():
    energy = energy_model_j(macs=1_000, memory_bytes=0, precision="int8", int8_mac_share=0.75)
    assert 1e12 * energy == pytest.approx(1_000 * (0.75 * 0.3 + 0.25 * 4.6))


@pytest.mark.usefixtures("powercap")
def test_a_counter_that_stands_still_has_spent_nothing():
    assert measured_energy_j(lambda: None, calls=1) == 0


def test_model_charges_the_traffic_of_the_memory():
    dram = energy_model_j(macs=0, memory_bytes=8, precision="int8")
    assert 1e12 * dram == pytest.approx(1300)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"precision": "int4"}, "unknown precision 'int4'; allowed: fp32, fp16, bf16, int8"),
        ({"macs": -1}, "macs is -1; allowed: 0 or more"),
        ({"memory_bytes": -1}, "memory_bytes is -1; allowed: 0 or more"),
    ],
)
def test_model_refuses(arguments, message):
    with pytest.raises(ValueError, match=message):
        energy_model_j(**{"macs": 1, "memory_bytes": 1, "precision": "fp32", **arguments})


def test_measured_energy_sums_packages_and_survives_a_wrap(powercap):
    def call():
        spend(powercap, "intel-rapl:0", 2_000)
        spend(powercap, "intel-rapl:0:0", 700)  # inside package 0: not counted again
        spend(powercap, "intel-rapl:1", 4_000)  # wraps on the third call
        spend(powercap, "intel-rapl:2", 8_000)  # psys contains the packages

    assert measured_energy_j(call, calls=5) == pytest.approx(0.006)
    assert int((powercap / "intel-rapl:1" / "energy_uj").read_text()) == 10_000  # it did wrap


@pytest.mark.usefixtures("powercap")
def test_measured_energy_is_available_on_a_readable_tree():
    assert measured_energy_unavailable() is None


def test_no_rapl_is_a_reasoned_string_and_nothing_is_called(tmp_path, monkeypatch):
    monkeypatch.setattr("edgeopt.metrics.energy.POWERCAP_ROOT", tmp_path)
    calls = []
    answer = measured_energy_j(lambda: calls.append(1), calls=3)
    assert answer == f"unavailable: no RAPL on this host (no intel-rapl package in {tmp_path})"
    assert calls == []


def test_unreadable_rapl_is_a_reasoned_string(powercap, monkeypatch):
    read_text = type(powercap).read_text

    def refuse(path, *arguments, **options):
        if path.name == "energy_uj":
            raise PermissionError(13, "Permission denied", str(path))
        return read_text(path, *arguments, **options)

    monkeypatch.setattr(type(powercap), "read_text", refuse)
    reason = measured_energy_unavailable()
    assert reason.startswith("unavailable: RAPL on this host is not readable (")
    assert reason.endswith(f"intel-rapl:0{os.sep}energy_uj: permission denied)")


def test_measured_energy_refuses_no_calls():
    with pytest.raises(ValueError, match="calls is 0; allowed: 1 or more"):
        measured_energy_j(lambda: None, calls=0)


def test_links_that_lead_nowhere_as_in_a_container_are_said(tmp_path, monkeypatch):
    (tmp_path / "intel-rapl:0").symlink_to(tmp_path / "masked")
    monkeypatch.setattr("edgeopt.metrics.energy.POWERCAP_ROOT", tmp_path)
    assert measured_energy_unavailable().startswith("unavailable: RAPL on this host")
