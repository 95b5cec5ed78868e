from types import SimpleNamespace

import numpy as np
import pytest

from edgeopt.agent import conditions
from edgeopt.agent.conditions import (
    Watch,
    clock_mhz,
    reference_kernel_ms,
    temperature_c,
    throttling,
)


def stat_line(*ticks):
    """user, nice, system, idle, iowait, irq, softirq, steal; guests and single cores follow."""
    return f"cpu  {' '.join(map(str, ticks))} 7 7\ncpu0 1 1 1 1\n"


@pytest.fixture
def watched(tmp_path, monkeypatch):
    """A watch over a recorded file, 100 ticks a second; clock and own CPU time are given."""
    path = tmp_path / "stat"
    path.write_text(stat_line(1000, 10, 20, 5000, 30, 40, 50, 100))
    clock, own = iter([10.0, 14.0]), iter([1.0, 3.0])
    monkeypatch.setattr("edgeopt.agent.conditions.time.perf_counter", lambda: next(clock))
    monkeypatch.setattr("edgeopt.agent.conditions.time.process_time", lambda: next(own))
    monkeypatch.setattr("edgeopt.agent.conditions.os.sysconf", lambda _: 100)
    monkeypatch.setattr("edgeopt.agent.conditions.os.getloadavg", lambda: (1.5, 0.7, 0.2))
    monkeypatch.setattr(conditions, "PROC_STAT", path)
    return path, Watch()


@pytest.fixture
def machine(tmp_path, monkeypatch):
    """The folders of a machine that tells nothing yet, and a way to write its files."""
    monkeypatch.setattr(conditions, "CPUS", tmp_path / "cpu")
    monkeypatch.setattr(conditions, "THERMAL", tmp_path / "thermal")
    monkeypatch.setattr(conditions, "RASPBERRY_THROTTLED", tmp_path / "get_throttled")

    def tell(place, text):
        (tmp_path / place).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / place).write_text(f"{text}\n")

    return tell


def test_watch_counts_other_cores_and_steal_from_recorded_counters(watched):
    path, watch = watched
    path.write_text(stat_line(1300, 60, 130, 5100, 90, 100, 130, 140))
    lap = watch.lap()
    # In 4 s the machine was busy for 3 + 0.5 + 1.1 + 0.6 + 0.8 = 6 s of CPU time, 2 s of it ours,
    # idle or waiting for 1 + 0.6 s, and 0.4 s were taken: one core by others.
    assert (lap["seconds"], lap["load_1min"]) == (4.0, 1.5)
    assert lap["other_cores"] == pytest.approx((6 - 2) / 4)
    assert lap["steal_share"] == pytest.approx(0.4 / (6 + 1.6 + 0.4))
    assert lap["reference_ms"] > 0


def test_watch_says_zero_where_no_tick_has_passed(watched):
    lap = watched[1].lap()
    assert (lap["other_cores"], lap["steal_share"]) == (0.0, 0.0)


def test_watch_says_nan_where_the_system_does_not_tell(machine, tmp_path, monkeypatch):
    monkeypatch.setattr(conditions, "PROC_STAT", tmp_path / "none")
    lap = Watch().lap()
    unknown = [lap[name] for name in ("other_cores", "clock_mhz", "temperature_c")]
    assert np.isnan(unknown).all()
    assert lap["reference_ms"] > 0


def test_reference_kernel_is_the_median_of_30_products_of_96_by_96(monkeypatch):
    ticks = iter([tick for n in range(1, 31) for tick in (7, 7 + n * 1_000_000)])  # ns
    clock, shapes = SimpleNamespace(perf_counter_ns=lambda: next(ticks)), []
    monkeypatch.setattr(conditions, "time", clock)
    monkeypatch.setattr(
        np, "einsum", lambda _, *pair: shapes.extend((m.shape, m.dtype) for m in pair)
    )
    assert reference_kernel_ms() == 15.5  # of 1, 2 ... 30 ms
    assert shapes == [((96, 96), np.float32)] * 60


def test_clock_is_that_of_the_fastest_core_in_mhz(machine):
    assert np.isnan(clock_mhz())
    machine("cpu/cpu0/cpufreq/scaling_cur_freq", 1_200_000)  # kHz
    machine("cpu/cpu1/cpufreq/scaling_cur_freq", 1_800_000)
    machine("cpu/cpuidle/cpufreq/scaling_cur_freq", 9_000_000)
    assert clock_mhz() == 1800


def test_temperature_is_that_of_the_hottest_sensor_that_is_on(machine):
    assert np.isnan(temperature_c())
    machine("thermal/thermal_zone0/temp", 45_000)  # thousandths of a degree
    machine("thermal/thermal_zone1/temp", 61_500)
    machine("thermal/thermal_zone2/temp", "off")
    assert temperature_c() == 61.5


def test_throttling_is_what_the_system_counts_or_the_firmware_says(machine):
    assert throttling() == "unavailable: not told"
    machine("cpu/cpu0/thermal_throttle/core_throttle_count", 3)
    machine("cpu/cpu1/thermal_throttle/core_throttle_count", 4)
    assert throttling() == "core_throttle_count=7"
    machine("get_throttled", "50005")
    assert throttling() == "get_throttled=50005"
