"""The plan of a measurement, checked before it runs: which artifacts and images, how often."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from edgeopt.agent.pixels import converted
from edgeopt.agent.session import Artifact
from edgeopt.system.files import file_sha256

PLAN, FILES = "plan.json", "files"
FORMAT = 1
FILE_NAME = re.compile(r"[0-9a-f]{64}(\.\w{1,8})?")
FIELDS = (
    *("format", "rounds", "calls_per_round", "warmup_calls", "seed"),
    *("memory", "keep_compiled", "packages"),
)


class PlanError(ValueError):
    """A plan, or a file that it names, is not what was written."""


@dataclass(frozen=True)
class Job:
    """One artifact of a plan, and what to do with it.

    Attributes
    ----------
    place : str
        Of its session class, ``module:Class``.
    images : str
        Key of the plan's images.
    score : bool
        Whether all images are scored, or only the first batch is held to ``logits``.
    logits : str
        File of the logits [B, classes] that the first batch must give; may be empty.
    """

    name: str
    artifact: Artifact
    place: str
    images: str
    threads: int
    score: bool
    logits: str


@dataclass(frozen=True)
class Plan:
    """A folder with ``plan.json`` and, below ``files/``, what it names, each by its SHA-256."""

    folder: Path
    values: dict[str, Any]
    digest: str

    def file(self, name: str) -> Path:
        """Where a file of the plan lies; ``PlanError`` unless it is named by a SHA-256."""
        if not FILE_NAME.fullmatch(name):
            raise PlanError(f"the plan names the file {name!r}; allowed: a SHA-256 and a suffix")
        return self.folder / FILES / name

    @property
    def jobs(self) -> list[Job]:
        """The artifacts in their order."""
        return [self._job(**entry) for entry in self.values["artifacts"]]

    def _job(self, **entry: Any) -> Job:
        path = self.file(entry["file"])
        artifact = Artifact(
            path=path,
            runtime=entry["runtime"],
            precision=entry["precision"],
            input_shape=tuple(entry["input_shape"]),
            sha256=path.stem,
            size_bytes=entry["size_bytes"],
        )
        names = ("name", "place", "images", "threads", "score", "logits")
        return Job(artifact=artifact, **{name: entry[name] for name in names})

    def files(self) -> list[Path]:
        """Every file that the plan names, once."""
        named = [entry["file"] for entry in self.values["images"].values()]
        for entry in self.values["artifacts"]:
            named += [entry["file"], *filter(None, [entry["logits"]])]
        return [self.file(name) for name in dict.fromkeys(named)]

    def batches(self, key: str, size: int) -> Iterator[np.ndarray]:
        """Yield float32 images [B, C, H, W], ``size`` at a time, as the networks expect them."""
        images = self.values["images"][key]
        pixels = np.load(self.file(images["file"]), mmap_mode="r")
        for start in range(0, len(pixels), size):
            yield converted(pixels[start : start + size], **images["converted"])

    def first_logits(self, job: Job) -> np.ndarray | None:
        """Logits [B, classes] that the first batch must give, where the plan has them."""
        return np.load(self.file(job.logits)) if job.logits else None


def read_plan(folder: Path, *, verify: bool = True) -> Plan:
    """Read the plan of a folder and, unless told not to ``verify``, check every file it names.

    Raises ``PlanError`` with the first thing that is missing or was changed.
    """
    content = (folder / PLAN).read_bytes()
    try:
        values = json.loads(content)
        missing = [name for name in (*FIELDS, "artifacts", "images") if name not in values]
    except (ValueError, TypeError, RecursionError) as error:
        raise PlanError(f"{folder / PLAN} is not a plan: {error}") from error
    if missing or values["format"] != FORMAT:
        raise PlanError(f"{folder / PLAN} is not a plan of format {FORMAT}; missing: {missing}")
    plan = Plan(folder, values, hashlib.sha256(content).hexdigest())
    for file in plan.files() if verify else ():
        if not file.is_file():
            raise PlanError(f"the bundle lacks {file}")
        if (found := file_sha256(file)) != file.stem:
            raise PlanError(f"{file} was changed: its SHA-256 is {found}")
    return plan
