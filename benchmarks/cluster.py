"""Dask's workers against this machine's processes: the same trainings and candidates."""

import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import Executor
from contextlib import contextmanager
from pathlib import Path

import torch
from distributed import Client

from edgeopt.config import load_config
from edgeopt.experiments import Recipe, Training, grid, prepare_candidates, train_networks
from edgeopt.study import Study, open_study
from edgeopt.system import Store, open_scheduler, process_pool, project_root

KILLS = 20


def cluster() -> Iterator[str]:
    """Trainings over 1 and 2 workers of one thread, against processes; then candidates."""
    study = _study(epochs=3, seeds=12)
    recipes = study.baselines(kind="pretrained")
    seconds: dict[str, float] = {}
    for name, count in (("one", 1), ("two", 2)):
        with _scheduler(count) as address, open_scheduler(address) as executor:
            _trained(study, recipes[:count], executor)  # imports, and images to each worker
            seconds[name], there = _trained(study, recipes, executor)
            if count == 2:
                seconds["prepare"], made = _prepared(study, there, executor)
    with process_pool(1) as executor:
        _trained(study, recipes[:1], executor)
        seconds["process"], _ = _trained(study, recipes, executor)
    with process_pool(2) as executor:
        _trained(study, recipes[:2], executor)
        seconds["processes"], here = _trained(study, recipes, executor)
        seconds["prepare here"], same = _prepared(study, there, executor)
    gain = seconds["one"] / seconds["two"]
    yield f"{len(recipes)} trainings, 1 worker over 2 workers: {gain:.2f} (goal: 1.8 or more)"
    gain = seconds["process"] / seconds["processes"]
    yield f"the same, 1 process over 2 processes: {gain:.2f} (goal: none)"
    over = seconds["two"] / seconds["processes"] - 1
    yield f"trainings, Dask over processes: {over:+.1%} (goal: below +5%)"
    over = seconds["prepare"] / seconds["prepare here"] - 1
    yield f"{len(made)} candidates, Dask over processes: {over:+.1%} (goal: below +5%)"
    same_all = _equal(here, there), made == same
    yield f"weights equal, artifacts equal: {same_all} (goal: True, True)"
    each = seconds["one"] / len(recipes), 2 * seconds["prepare"] / len(made)
    yield f"of one worker: a training {each[0]:.2f} s, a candidate {each[1]:.2f} s (goal: none)"


def worker_kills() -> Iterator[str]:
    """Kill a random worker twenty times in the middle of trainings: nothing lost, none twice."""
    study = _study(epochs=2, seeds=40)
    recipes = study.baselines(kind="pretrained")
    torch.set_num_threads(1)  # as workers have
    _, wanted = _trained(study, recipes, None)
    with _scheduler(2) as address, open_scheduler(address) as executor:
        ended = threading.Event()
        killer = threading.Thread(target=_kill_workers, args=(address, ended))
        with tempfile.TemporaryDirectory(prefix="edgeopt-") as scratch:
            store = Store(Path(scratch), Training)
            killer.start()
            made = train_networks(recipes, study.plans, store=store, executor=executor)
            ended.set()
            killer.join()
            kept = len([*Path(scratch).iterdir()])
    yield f"{kept} of {len(recipes)} trainings kept, equal to those without kills: "
    yield f"{_equal(made, wanted)} (goal: True)"


def _study(*, epochs: int, seeds: int) -> Study:
    options = {"epochs": epochs, "seeds": tuple(range(seeds)), "train_subset": 4000}
    return open_study(load_config(project_root() / "params/default.yaml", **options))


def _trained(
    study: Study, recipes: Sequence[Recipe], executor: Executor | None
) -> tuple[float, dict[Recipe, Training]]:
    with tempfile.TemporaryDirectory(prefix="edgeopt-") as scratch:
        store, start = Store(Path(scratch), Training), time.perf_counter()
        made = train_networks(recipes, study.plans, store=store, executor=executor)
        return time.perf_counter() - start, made


def _prepared(
    study: Study, trained: dict[Recipe, Training], executor: Executor
) -> tuple[float, list[str]]:
    """Prepare every runtime's candidates of four networks; seconds, and digests of the files."""
    networks = {recipe.network: own for recipe, own in study.networks(trained).items()}
    specs = [
        spec
        for seed in range(4)
        for spec in grid([0.0], ["fp32", "int8"], study.config.runtimes, seed=seed)
    ]
    options = study.preparation("artifacts")
    with tempfile.TemporaryDirectory(prefix="edgeopt-") as scratch:
        options |= {"directory": Path(scratch), "models": networks, "executor": executor}
        prepare_candidates(specs[:2], **options)
        start = time.perf_counter()
        made = prepare_candidates(specs, **options)
        return time.perf_counter() - start, [own.artifact.sha256 for own in made]


def _equal(some: dict[Recipe, Training], others: dict[Recipe, Training]) -> bool:
    return all(
        torch.equal(own.state[name], tensor)
        for recipe, own in some.items()
        for name, tensor in others[recipe].state.items()
    )


@contextmanager
def _scheduler(workers: int) -> Iterator[str]:
    """Start a scheduler and workers of one thread, each in a process of its own."""
    with tempfile.TemporaryDirectory(prefix="edgeopt-") as scratch:
        file = Path(scratch, "scheduler.json")
        own = ["--no-dashboard", "--host", "127.0.0.1", "--port", "0", "--scheduler-file", file]
        started = [_quiet([sys.executable, "-m", "distributed.cli.dask_scheduler", *own])]
        while not file.is_file():
            time.sleep(0.1)
        address = json.loads(file.read_text())["address"]
        command = [sys.executable, "-m", "distributed.cli.dask_worker", address]
        each = ["--nthreads", "1", "--no-dashboard", "--local-directory", scratch]
        started += [_quiet([*command, *each]) for _ in range(workers)]
        with Client(address, set_as_default=False) as client:
            client.wait_for_workers(workers, timeout=60)
        try:
            yield address
        finally:
            for process in reversed(started):
                process.terminate()
                process.wait()


def _quiet(command: list) -> subprocess.Popen:
    return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def _kill_workers(address: str, ended: threading.Event) -> None:
    draw = random.Random(0)
    with Client(address, set_as_default=False) as client:
        for _ in range(KILLS):
            if ended.wait(draw.uniform(0.5, 3)):
                raise RuntimeError("the trainings ended before all kills")
            client.wait_for_workers(1)
            os.kill(draw.choice([*client.run(os.getpid).values()]), signal.SIGKILL)
