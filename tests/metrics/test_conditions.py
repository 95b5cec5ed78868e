import numpy as np
import pandas as pd
import pytest

from edgeopt.metrics.conditions import disturbance, with_clock_falls


def conditions(reference, **others):
    quiet = {"other_cores": 0.0, "steal_share": 0.0}
    return pd.DataFrame({"reference_ms": reference, **quiet, **others})


def test_disturbance_says_in_how_many_rounds_and_by_how_much():
    reference = np.ones(20)
    reference[[5, 6, 19]] = [1.3, 1.6, 1.45]
    said = disturbance(conditions(0.5 * reference))
    assert said == (
        "The machine was busy while latency was measured: in 3 of 20 rounds the reference kernel "
        "took 30% to 60% longer than in a quiet one."
    )


@pytest.mark.parametrize("slow", [[], [1.3], [1.3, 1.6], [1.10] * 10])
def test_disturbance_is_silent_when_few_rounds_are_a_little_slower(slow):
    reference = np.ones(20)
    reference[: len(slow)] = slow
    assert disturbance(conditions(reference)) == ""


def test_disturbance_names_other_processes_and_the_hypervisor():
    said = disturbance(conditions(np.ones(10), other_cores=0.8, steal_share=0.05))
    assert "other processes used 0.8 cores" in said
    assert "the hypervisor took 5% of the time" in said
    assert disturbance(conditions(np.ones(1), other_cores=0.25, steal_share=0.02)) == ""


def test_disturbance_goes_by_the_kernel_alone_where_counters_are_missing():
    unknown = conditions(np.ones(10), other_cores=np.nan, steal_share=np.nan)
    assert disturbance(unknown) == ""
    unknown["reference_ms"] = [1.0] * 5 + [2.0] * 5
    assert "in 5 of 10 rounds" in disturbance(unknown)


def test_rounds_in_which_the_clock_fell_are_marked_and_told():
    clock = [2400.0, 2280.0, 2279.0, 1200.0]  # 95% of the highest is 2280
    quiet = {"reference_ms": 1.0, "other_cores": 0.0, "steal_share": 0.0}
    conditions = pd.DataFrame({"clock_mhz": clock}).assign(**quiet)
    assert with_clock_falls(conditions)["clock_fell"].tolist() == [False, False, True, True]
    assert "in 2 of 4 rounds the clock fell" in disturbance(conditions)
    untold = conditions.assign(clock_mhz=float("nan"))
    assert not with_clock_falls(untold)["clock_fell"].any()
    assert disturbance(untold) == ""
