import numpy as np
import pandas as pd
import pytest

from edgeopt.metrics.conditions import Watch, disturbance, reference_kernel_ms


def conditions(reference, **others):
    quiet = {"other_cores": 0.0, "steal_share": 0.0}
    return pd.DataFrame({"reference_ms": reference, **quiet, **others})


def stat_line(*ticks):
    """user, nice, system, idle, iowait, irq, softirq, steal; guests and single cores follow."""
    return f"cpu  {' '.join(map(str, ticks))} 7 7\ncpu0 1 1 1 1\n"


@pytest.fixture
def watched(tmp_path, monkeypatch):
    """A watch over a recorded file, 100 ticks a second; clock and own CPU time are given."""
    path = tmp_path / "stat"
    path.write_text(stat_line(1000, 10, 20, 5000, 30, 40, 50, 100))
    clock, own = iter([10.0, 14.0]), iter([1.0, 3.0])
    monkeypatch.setattr("edgeopt.metrics.conditions.time.perf_counter", lambda: next(clock))
    monkeypatch.setattr("edgeopt.metrics.conditions.time.process_time", lambda: next(own))
    monkeypatch.setattr("edgeopt.metrics.conditions.os.sysconf", lambda _: 100)
    monkeypatch.setattr("edgeopt.metrics.conditions.os.getloadavg", lambda: (1.5, 0.7, 0.2))
    monkeypatch.setattr("edgeopt.metrics.conditions.PROC_STAT", path)
    return path, Watch()


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


def test_watch_says_nan_where_the_system_does_not_tell(tmp_path, monkeypatch):
    monkeypatch.setattr("edgeopt.metrics.conditions.PROC_STAT", tmp_path / "none")
    lap = Watch().lap()
    assert np.isnan(lap["other_cores"])
    assert lap["reference_ms"] > 0


def test_reference_kernel_takes_time_of_its_own():
    assert reference_kernel_ms() > 0


def test_disturbance_says_in_how_many_rounds_and_by_how_much():
    reference = np.ones(20)
    reference[[5, 6, 19]] = [1.3, 1.6, 1.45]
    said = disturbance(conditions(reference))
    assert said == (
        "The machine was busy while latency was measured: in 3 of 20 rounds the reference kernel "
        "took 30% to 60% longer than in a quiet one."
    )


@pytest.mark.parametrize("slow", [[], [1.3], [1.3, 1.6], [1.09] * 10])
def test_disturbance_is_silent_when_few_rounds_are_a_little_slower(slow):
    reference = np.ones(20)
    reference[: len(slow)] = slow
    assert disturbance(conditions(reference)) == ""


def test_disturbance_names_other_processes_and_the_hypervisor():
    said = disturbance(conditions(np.ones(10), other_cores=0.8, steal_share=0.05))
    assert "other processes used 0.8 cores" in said
    assert "the hypervisor took 5% of the time" in said


def test_disturbance_goes_by_the_kernel_alone_where_counters_are_missing():
    unknown = conditions(np.ones(10), other_cores=np.nan, steal_share=np.nan)
    assert disturbance(unknown) == ""
    unknown["reference_ms"] = [1.0] * 5 + [2.0] * 5
    assert "in 5 of 10 rounds" in disturbance(unknown)
