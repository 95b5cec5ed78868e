"""Whether the machine was quiet while it was timed."""

import pandas as pd

# A round counts as slowed when its reference kernel took this much longer than in a quiet round,
# which the fastest quarter of the rounds stands for.
SLOWED = 1.10
BUSY_ROUNDS = 0.1  # share of the rounds
BUSY_CORES = 0.25  # cores that other processes used, on average
BUSY_STEAL = 0.02  # share of the machine's time that the hypervisor gave to others


CLOCK_FELL = 0.95  # of the highest clock of the measurement


def with_clock_falls(conditions: pd.DataFrame) -> pd.DataFrame:
    """Mark the rounds in which the clock was below 95% of its highest, in ``clock_fell``.

    Where the machine does not tell its clock, none is marked.
    """
    if "clock_mhz" not in conditions:
        return conditions.assign(clock_fell=False)
    clock = conditions["clock_mhz"]
    return conditions.assign(clock_fell=clock < CLOCK_FELL * clock.max())


def disturbance(conditions: pd.DataFrame) -> str:
    """Say in one sentence that the machine was busy and by how much; empty when it was quiet."""
    slowdown = conditions["reference_ms"] / conditions["reference_ms"].quantile(0.25)
    slow = slowdown[slowdown > SLOWED]
    other, steal = conditions["other_cores"].mean(), conditions["steal_share"].mean()
    said = []
    if len(slow) > BUSY_ROUNDS * len(conditions):
        said.append(
            f"in {len(slow)} of {len(conditions)} rounds the reference kernel took "
            f"{slow.min() - 1:.0%} to {slow.max() - 1:.0%} longer than in a quiet one"
        )
    fell = int(with_clock_falls(conditions)["clock_fell"].sum())
    if fell > BUSY_ROUNDS * len(conditions):
        said.append(f"in {fell} of {len(conditions)} rounds the clock fell by more than 5%")
    if other > BUSY_CORES:
        said.append(f"other processes used {other:.1f} cores")
    if steal > BUSY_STEAL:
        said.append(f"the hypervisor took {steal:.0%} of the time")
    return f"The machine was busy while latency was measured: {'; '.join(said)}." if said else ""
