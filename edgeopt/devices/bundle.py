"""The bundle that a device measures: a plan, and the files that it names, each by its SHA-256."""

import hashlib
import io
import json
import shutil
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from edgeopt.agent.plan import FILES, FORMAT, PLAN, Plan, read_plan
from edgeopt.agent.rounds import WARMUP_CALLS
from edgeopt.data import Split, per_channel
from edgeopt.runtimes import Artifact, runtime_named
from edgeopt.schema import require_at_least


@dataclass(frozen=True, eq=False)
class Task:
    """One artifact to measure.

    Attributes
    ----------
    name : str
        What its results are known by.
    images : str
        Key of the images that it is called with.
    threads : int
        That the runtime computes with.
    score : bool
        Whether it answers all images there, or is only timed on the first.
    logits : ndarray, optional
        Float32 [B, classes] that the first batch has to give where it is not scored.
    """

    name: str
    artifact: Artifact
    images: str
    threads: int = 1
    score: bool = False
    logits: np.ndarray | None = None


def write_bundle(
    folder: Path,
    tasks: Sequence[Task],
    *,
    images: Mapping[str, Split],
    rounds: int,
    calls_per_round: int,
    warmup_calls: int = WARMUP_CALLS,
    seed: int = 0,
    memory: bool = True,
    keep_compiled: bool = True,
) -> Plan:
    """Write the plan of a measurement and all its files into an empty folder.

    The same tasks give the same bytes. ``memory`` asks for the resident memory of each task, in a
    process of its own; ``keep_compiled`` lets runtimes keep what they compile from one round to the
    next, so that only the first loading takes its full time. Raises ``ValueError`` when there is no
    task, or two have one name.
    """
    names = [task.name for task in tasks]
    if not names or len({*names}) < len(names):
        raise ValueError(f"tasks are {names}; allowed: 1 or more, each name once")
    require_at_least(1, rounds=rounds, calls_per_round=calls_per_round)
    require_at_least(0, warmup_calls=warmup_calls)
    files = folder / FILES
    files.mkdir(parents=True, exist_ok=True)
    values = {
        "format": FORMAT,
        "rounds": rounds,
        "calls_per_round": calls_per_round,
        "warmup_calls": warmup_calls,
        "seed": seed,
        "memory": memory,
        "keep_compiled": keep_compiled,
        "packages": _packages(tasks),
        "images": {key: _write_images(files, images[key]) for key in _keys(tasks)},
        "artifacts": [_write_task(files, task) for task in tasks],
    }
    (folder / PLAN).write_text(json.dumps(values, indent=1) + "\n", encoding="utf-8")
    return read_plan(folder, verify=False)


def _packages(tasks: Iterable[Task]) -> list[str]:
    runtimes = dict.fromkeys(task.artifact.runtime for task in tasks)
    named = [package for name in runtimes for package in runtime_named(name).packages]
    return [*dict.fromkeys(["numpy", *named])]


def _keys(tasks: Iterable[Task]) -> list[str]:
    return [*dict.fromkeys(task.images for task in tasks)]


def _write_task(files: Path, task: Task) -> dict[str, Any]:
    artifact = task.artifact
    name = artifact.sha256 + artifact.path.suffix
    if not (files / name).exists():
        shutil.copyfile(artifact.path, files / name)
    logits = "" if task.logits is None else _write_array(files, task.logits.astype(np.float32))
    return {
        "name": task.name,
        "file": name,
        "size_bytes": artifact.size_bytes,
        "runtime": artifact.runtime,
        "precision": artifact.precision,
        "input_shape": list(artifact.input_shape),
        "place": runtime_named(artifact.runtime).session,
        "images": task.images,
        "threads": task.threads,
        "score": task.score,
        "logits": logits,
    }


def _write_images(files: Path, split: Split) -> dict[str, Any]:
    """Write the pixels as they are stored, which is a quarter of their float32."""
    pixels = split.pixels[split.positions].numpy()
    return {"file": _write_array(files, pixels), "converted": conversion(split)}


def conversion(split: Split) -> dict[str, Any]:
    """Arguments with which :func:`edgeopt.agent.pixels.converted` makes a split's images."""
    channels = split.shape[0]
    numbers = {
        name: _numbers(per_channel(getattr(split, name), name=name, channels=channels))
        for name in ("mean", "std")
    }
    return {"channels": channels, **numbers}


def _numbers(values: Sequence[float] | None) -> list[float] | None:
    return [float(value) for value in values] if values else None


def _write_array(files: Path, array: np.ndarray) -> str:
    content = io.BytesIO()
    np.save(content, np.ascontiguousarray(array))
    name = hashlib.sha256(content.getbuffer()).hexdigest() + ".npy"
    (files / name).write_bytes(content.getbuffer())
    return name
