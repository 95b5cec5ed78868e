"""Workers: results in order, and a process that dies takes down its own job alone."""

import os
import signal
import subprocess
import sys
import time
from concurrent.futures import BrokenExecutor
from contextlib import nullcontext
from pathlib import Path

import pytest

from edgeopt.system import process_pool, run_in_order, run_when_ready


def halved(number: int) -> float:
    """End the process on 13, as a runtime does that reads where it must not."""
    if number == 13:
        os.kill(os.getpid(), signal.SIGSEGV)
    return number / 2


def dies_once(number: int, mark: str) -> int:
    """Square a number; 2 ends the process of its first attempt."""
    if number == 2 and not os.path.exists(mark):
        open(mark, "w").close()
        os.kill(os.getpid(), signal.SIGKILL)
    return number * number


def named(number: int) -> str:
    return f"{number} died"


def test_results_come_in_the_order_of_the_jobs_with_and_without_workers() -> None:
    jobs = [4, 2, 6]
    with process_pool(2) as pool:
        assert [*run_in_order(halved, jobs, executor=pool)] == [2, 1, 3]
    assert [*run_in_order(halved, jobs, executor=None)] == [2, 1, 3]


def test_a_job_that_ends_its_process_is_told_and_the_others_run() -> None:
    jobs = [2, 13, 4, 13, 6, 8]
    with process_pool(2) as pool:
        found = [*run_in_order(halved, jobs, executor=pool, died=named)]
        assert found == [1, "13 died", 2, "13 died", 3, 4]
        assert [*run_in_order(halved, [10], executor=pool)] == [5]


@pytest.mark.parametrize("workers", [0, 2])
def test_a_job_starts_once_what_it_needs_was_taken(workers: int) -> None:
    needs = {"whole": {"left", "right"}, "left": {"first"}, "right": set(), "first": set()}
    found = {"first": 16.0, "right": 2.0}  # each job halves the sum of what it needs
    taken = []

    def arguments(key: str) -> tuple[float]:
        return (sum(found[own] for own in needs[key]) or 2 * found.pop(key),)

    with process_pool(2) if workers else nullcontext() as pool:
        jobs = run_when_ready(halved, needs, arguments=arguments, executor=pool, desc="jobs")
        for key, result in jobs:
            found[key] = result
            taken.append(key)
    assert found == {"first": 16, "right": 2, "left": 8, "whole": 5}
    assert taken.index("first") < taken.index("left") < taken.index("whole")
    assert taken[-1] == "whole"


def test_jobs_whose_workers_die_run_once_more_one_by_one(tmp_path: Path) -> None:
    needs = {number: set() for number in range(4)}
    with process_pool(2) as pool:
        jobs = run_when_ready(
            dies_once,
            needs,
            arguments=lambda number: (number, str(tmp_path / f"{number}")),
            executor=pool,
            desc="jobs",
        )
        assert dict(jobs) == {0: 0, 1: 1, 2: 4, 3: 9}


def test_a_job_that_ends_its_process_is_an_error_where_nothing_takes_its_place() -> None:
    with process_pool(1) as pool, pytest.raises(BrokenExecutor):
        [*run_in_order(halved, [13], executor=pool)]


def interrupted() -> str:
    os.kill(os.getpid(), signal.SIGINT)
    return "went on"


def test_an_interrupt_does_not_reach_workers() -> None:
    with process_pool(1) as pool:
        assert pool.submit(interrupted).result() == "went on"


PARENT = """
import time
from edgeopt.system import process_pool
if __name__ == "__main__":
    with process_pool(2) as pool:
        jobs = [pool.submit(time.sleep, 600) for _ in range(2)]
        pool.submit(abs, 1)
        print("began", flush=True)
        time.sleep(600)
"""


def group(leader: int) -> list[int]:
    found = subprocess.run(["pgrep", "-g", str(leader)], capture_output=True, text=True)
    return [int(word) for word in found.stdout.split()]


def test_nothing_stays_behind_when_the_process_that_asked_is_killed(tmp_path) -> None:
    script = tmp_path / "parent.py"
    script.write_text(PARENT)
    parent = subprocess.Popen(
        [sys.executable, script], stdout=subprocess.PIPE, text=True, start_new_session=True
    )
    assert parent.stdout.readline() == "began\n"
    for _ in range(100):
        if len(group(parent.pid)) >= 4:  # itself, the workers' server, two workers
            break
        time.sleep(0.1)
    assert len(group(parent.pid)) >= 4
    parent.kill()
    parent.wait()
    parent.stdout.close()
    for _ in range(100):
        if not group(parent.pid):
            break
        time.sleep(0.1)
    assert group(parent.pid) == []


def slow(number: int, folder: Path) -> int:
    if not number:
        raise ValueError("no zero")
    time.sleep(0.2)
    (folder / str(number)).touch()
    return number


def test_what_waits_is_not_run_after_an_error(tmp_path) -> None:
    jobs = {number: set() for number in range(20)}
    with process_pool(1) as pool:
        made = run_when_ready(slow, jobs, arguments=lambda n: (n, tmp_path), executor=pool, desc="")
        with pytest.raises(ValueError, match="no zero"):
            list(made)
    assert len([*tmp_path.iterdir()]) < 10
