"""The process that loads, scores and times the artifacts of a plan, and may die of one."""

from __future__ import annotations

import hashlib
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import numpy as np

from edgeopt.agent.conditions import Watch
from edgeopt.agent.journal import Journal
from edgeopt.agent.plan import Job, Plan, read_plan
from edgeopt.agent.rounds import round_order, visit
from edgeopt.agent.session import Session, open_session, session_class
from edgeopt.system.upstream import RuntimeUnavailable

UNDERWAY = "underway"
COMPILED = "compiled"
SCORED = "scored"
TIMED_TOLERANCE = 0.02  # of the largest logit: with other threads a rounding of int8 may flip


def work(folder: Path, *, show: str) -> None:
    """Score and time what the journal does not hold yet."""
    plan, journal = read_plan(folder, verify=False), Journal(folder, show=show)
    shutil.rmtree(folder / COMPILED, ignore_errors=True)  # of a worker that died while it wrote
    Session.compiled = folder / COMPILED if plan.values["keep_compiled"] else None
    for job in plan.jobs:
        with _underway(folder, job.name):
            _try(job, journal)
    for job in _waiting(plan, journal):
        if job.score and not journal.has("scored", job.name):
            with _underway(folder, job.name):
                _score(job, plan, journal)
    sessions: dict[str, Session] = {}
    watch = Watch()
    for number in range(plan.values["rounds"]):
        if not journal.has("lap", number=number):
            _round(number, plan, journal, sessions)
            journal.add("lap", number=number, **watch.lap())


@contextmanager
def _underway(folder: Path, name: str) -> Iterator[None]:
    """Leave word of what is underway, for who finds the process dead."""
    (folder / UNDERWAY).write_text(name, encoding="utf-8")
    yield
    (folder / UNDERWAY).unlink()


def _waiting(plan: Plan, journal: Journal) -> list[Job]:
    return [job for job in plan.jobs if not journal.has("failed", job.name)]


def _try(job: Job, journal: Journal) -> None:
    """Say of a job whose runtime is not here that it failed."""
    if not journal.has("failed", job.name):
        try:
            session_class(job.place)
        except RuntimeUnavailable as error:
            journal.add("failed", job.name, at=-1, error=f"RuntimeUnavailable: {error}")


def _score(job: Job, plan: Plan, journal: Journal) -> None:
    """Record the class of every image, and a digest of the logits."""
    try:
        session = open_session(job.artifact, place=job.place, threads=job.threads)
        batches = plan.batches(job.images, session.scoring_batch)
        logits = np.concatenate([session.score(images) for images in batches])
    except Exception as error:  # whatever a runtime raises becomes this candidate's error
        journal.add("failed", job.name, at=-1, error=f"{type(error).__name__}: {error}")
        return
    kept = plan.folder / SCORED / f"{job.name}.npy"
    kept.parent.mkdir(exist_ok=True)
    np.save(kept, logits[: job.artifact.input_shape[0]])
    digest = hashlib.sha256(np.ascontiguousarray(logits, np.float32)).hexdigest()
    journal.add("scored", job.name, classes=logits.argmax(1).tolist(), digest=digest)


def _round(number: int, plan: Plan, journal: Journal, sessions: dict[str, Session]) -> None:
    """Visit every job that has not failed before, in the round's order."""
    ended = {record["name"]: record["at"] for record in journal.of_kind("failed")}
    jobs = {job.name: job for job in plan.jobs if ended.get(job.name, number) >= number}
    order = round_order([*jobs], number=number, seed=plan.values["seed"])
    for position, name in enumerate(order):
        if journal.has("visit", name, number) or journal.has("failed", name):
            continue
        with _underway(plan.folder, name):
            _visit(jobs[name], number, position, plan, journal, sessions)


def _visit(
    job: Job, number: int, position: int, plan: Plan, journal: Journal, sessions: dict[str, Session]
) -> None:
    batch = next(plan.batches(job.images, job.artifact.input_shape[0]))
    clock: dict[str, int] = {}
    times, error = visit(
        partial(_load_checked, job, batch, _expected(job, plan), clock),
        batch,
        keep=partial(sessions.__setitem__, job.name),
        calls=plan.values["calls_per_round"],
        warmup=plan.values["warmup_calls"],
    )
    journal.add("visit", job.name, number, position=position, times=times, **clock)
    if error:
        journal.add("failed", job.name, at=number, error=error)


def _expected(job: Job, plan: Plan) -> np.ndarray | None:
    kept = plan.folder / SCORED / f"{job.name}.npy"
    return np.load(kept) if kept.exists() else plan.first_logits(job)


def _load_checked(
    job: Job, batch: np.ndarray, expected: np.ndarray | None, clock: dict[str, int]
) -> Session:
    """Load a session; raise ``RuntimeError`` unless it computes what was scored."""
    load: Callable[..., Session] = session_class(job.place)
    start = time.perf_counter_ns()
    session = load(job.artifact, threads=job.threads)
    loaded = time.perf_counter_ns()
    logits = session(batch)
    clock.update(load_ns=loaded - start, first_ns=time.perf_counter_ns() - loaded)
    if session.threads != job.threads:
        raise RuntimeError(f"it computes with {session.threads} threads, not {job.threads}")
    if expected is not None:
        gap = np.abs(logits - expected)
        if not (gap <= TIMED_TOLERANCE * (1 + np.abs(expected).max())).all():
            raise RuntimeError(
                f"timed, its logits are up to {gap.max():.2g} from those that were scored"
            )
    return session
