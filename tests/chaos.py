"""`make chaos`: faults on purpose, many of each kind; what was lost, left behind or told badly?"""

import argparse
import contextlib
import json
import logging
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pandas as pd
import yaml

from edgeopt.config import ConfigError, load_config
from edgeopt.reports import verify
from edgeopt.reports.records.stamps import read_record
from edgeopt.study import RunFolder, needed_by
from edgeopt.system import usable_cores

ROOT = Path(__file__).parents[1]
TINY = {
    "notebooks": ["01_baseline_training", "02_pruning", "04_sweep"],
    "train_subset": 300,
    "val_subset": 100,
    "test_subset": 100,
    "epochs": 1,
    "finetune_epochs": 1,
    "pruning_levels": [0.0, 0.5],
    "pruning_criteria": ["l1"],
    "precisions": ["fp32", "int8"],
    "runtimes": ["torch", "onnxruntime"],
    "rounds": 2,
    "calls_per_round": 3,
}
LONGEST = 3000  # characters of a message; an unknown key is told with all that are known
KILLS = ("SIGKILL of the group", "SIGTERM", "SIGINT", "SIGKILL of the kernel")
SETTLED = 8  # seconds for what belongs to a dead run to end
UNHURT = 9  # seconds that a run has on average until the next kill: it takes several of them


class Run:
    """A tiny run in a folder of its own, whose processes can be told from all others."""

    def __init__(self, home: Path, **parameters: object) -> None:
        self.home, self.mark = home, f"EDGEOPT_CHAOS={uuid.uuid4()}"
        self.file = home / "tiny.yaml"
        values = {**TINY, "data_dir": str(home / "data"), **parameters}
        self.file.write_text(yaml.safe_dump(values))
        name, value = self.mark.split("=")
        self.environment = {
            **os.environ,
            name: value,
            "EDGEOPT_REPORTS": str(home / "reports"),
            "HOME": str(home / "home"),
            "TMPDIR": str(home / "tmp"),
            "OMP_NUM_THREADS": "1",
        }
        for folder in ("home", "tmp", "reports"):
            (home / folder).mkdir(exist_ok=True)

    def start(self, *, before: str = "", **environment: str) -> subprocess.Popen:
        """Begin the report; ``before`` is shell code that its process runs first."""
        command = f"{before}\nexec {sys.executable} -m edgeopt report --params {self.file}"
        return subprocess.Popen(
            ["bash", "-c", command],
            cwd=ROOT,
            env={**self.environment, **environment},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )

    def report(self, **options: str) -> tuple[int, str]:
        """Make the report to its end: exit status and all that was said."""
        process = self.start(**options)
        said = process.communicate()[0]
        return process.returncode, said

    @property
    def processes(self) -> list[int]:
        """Processes of this run that are alive."""
        found = []
        for folder in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):
                marked = self.mark.encode() in (folder / "environ").read_bytes().split(b"\0")
                if marked and "State:\tZ" not in (folder / "status").read_text():
                    found.append(int(folder.name))
        return found

    @property
    def finished(self) -> dict[str, str]:
        """Digests of the notebooks that ended well, by name."""
        paths = sorted(self.folder.glob("[0-9]*.ipynb"))
        records = {path.stem: read_record(path) for path in paths}
        return {n: r.content for n, r in records.items() if r and r.status == "done"}

    @property
    def lingering(self) -> list[int]:
        """Processes that are alive still when there was time to end."""
        until = time.monotonic() + SETTLED
        while (alive := self.processes) and time.monotonic() < until:
            time.sleep(0.2)
        return alive

    @property
    def folder(self) -> Path:
        """Where the report is."""
        return self.home / "reports" / "tiny"

    @property
    def verified(self) -> bool:
        """Whether every file is as the manifest says."""
        return verify(RunFolder(self.folder)).empty

    def makers_and_readers(self, path: Path) -> set[str]:
        """Notebooks that made a file of the run, and those that need them."""
        name = path.relative_to(self.home).as_posix().removeprefix("reports/tiny/")
        records = {own.stem: read_record(own) for own in self.folder.glob("[0-9]*.ipynb")}
        made = {notebook: {f"{notebook}.ipynb", *own.outputs} for notebook, own in records.items()}
        makers = {notebook for notebook, names in made.items() if name in names}
        return makers | {notebook for notebook in made if makers & {*needed_by(notebook)}}

    @property
    def half_files(self) -> list[str]:
        """Files of the run that lie there without having been finished."""
        return [p.name for p in (self.home / "reports").rglob(".*.tmp")]


def traceback_in(said: str) -> bool:
    return "Traceback (most recent call last)" in said


def kills(count: int, draw: random.Random, scratch: Path) -> Iterator[dict[str, object]]:
    """Kill runs at random moments, a fourth each in another way, and let them go on.

    Kills come as a Poisson process, so that no moment of a run is spared. As many runs as there are
    cores go on side by side, each from where its last kill left it; one that came to its end is
    verified and begins anew.
    """
    homes = [scratch / f"run{number}" for number in range(usable_cores())]
    shares = [range(number, count, len(homes)) for number in range(len(homes))]
    seeds = [draw.random() for _ in homes]
    for home in homes:
        home.mkdir()
    with ThreadPoolExecutor(len(homes)) as threads:
        for rows in threads.map(_killed_again_and_again, shares, seeds, homes):
            yield from rows


def _killed_again_and_again(numbers: range, seed: float, home: Path) -> list[dict[str, object]]:
    run, draw, rows = Run(home), random.Random(seed), []
    _made_whole(run)
    for number in numbers:
        fault = KILLS[number % len(KILLS)]
        process = run.start()
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(draw.expovariate(1 / UNHURT))
        before, alive = run.finished, process.poll() is None
        if alive:
            _strike(process, fault, run)
        said = process.communicate()[0]
        row = {"fault": fault if alive else "none: it came to its end", "left": len(run.lingering)}
        row["lost"] = sum(run.finished.get(name) != own for name, own in before.items())
        row["half"] = 0 if fault.startswith("SIGKILL of the g") else len(run.half_files)
        row["traceback"] = traceback_in(said) and "kernel" not in fault
        row["wrong"] = not alive and (process.returncode != 0 or not run.verified)
        if row["wrong"] or row["traceback"] or row["lost"] or row["left"]:
            logging.error("%s: %s", row, said[-1500:])
        if not alive:
            shutil.rmtree(run.folder)
        rows.append(row)
    rows.append({"fault": "none: let go on to its end", "wrong": not _finished(run)})
    return rows


def _made_whole(run: Run) -> None:
    """Make a run that nothing strikes; its data and trainings stay."""
    status, said = run.report()
    assert status == 0, said
    shutil.rmtree(run.folder)


def _finished(run: Run) -> bool:
    return run.report()[0] == 0 and run.verified


def _strike(process: subprocess.Popen, fault: str, run: Run) -> None:
    with contextlib.suppress(ProcessLookupError):
        if fault == "SIGKILL of the group":
            os.killpg(process.pid, signal.SIGKILL)
        elif fault == "SIGKILL of the kernel":
            for own in run.processes:
                if own != process.pid and os.getsid(own) == own:
                    os.kill(own, signal.SIGKILL)
        else:
            process.send_signal(getattr(signal, fault))


BAD = (
    *(None, True, -1, 0, 0.5, 10**12, 1e30, float("nan"), float("inf"), "", "x" * 10**5),
    *(
        [],
        [[]],
        {},
        {"a": 1},
        [1, 1],
        [0.0, 0.0],
        ["fp32", "fp32"],
        "../..",
        "!",
        [None],
        "folder:",
    ),
)
TEXTS = (
    *(
        "[]",
        "0",
        "false",
        "''",
        "a: b: c",
        "\t",
        "seeds: [0",
        "epochs: 1\nepochs: 2",
        "epochs: !!int ''",
    ),
    *(
        "seeds: &a [0]\nmodels: *a",
        "? [a]\n: 1",
        "self: 1",
        "epochs: " + "9" * 5000,
        "[" * 5000,
        "\0",
    ),
    *(
        "epochs: !!timestamp x",
        "dataset: !!python/name:os.system",
        "run: 12:30:00",
        "%YAML 9.9\n---\n",
    ),
)


def parameters(count: int, draw: random.Random, scratch: Path) -> Iterator[dict[str, object]]:
    """Random bad parameter files: one short error each, or a run that is valid indeed."""
    keys = [*yaml.safe_load((ROOT / "params/quick.yaml").read_text()), "unknown"]
    for number in range(count):
        path = scratch / f"p{number}.yaml"
        if number % 5:
            chosen = draw.sample(keys, draw.randint(1, 3))
            path.write_text(yaml.safe_dump({key: draw.choice(BAD) for key in chosen}))
        else:
            content = draw.choice(TEXTS).encode()
            path.write_bytes(content + bytes(draw.choices(range(256), k=draw.choice([0, 0, 3]))))
        row = {"fault": "a bad parameter file", "traceback": False, "wrong": False}
        try:
            load_config(path)
        except ConfigError as error:
            row["wrong"] = str(path) not in str(error) or len(str(error)) > LONGEST
            if row["wrong"]:
                logging.error("%s", error)
        except Exception:
            logging.exception("%s: %s", path, path.read_bytes()[:300])
            row["traceback"] = True
        path.unlink()
        yield row


def corruption(count: int, draw: random.Random, scratch: Path) -> Iterator[dict[str, object]]:
    """Break a file of a finished run: it is named, and made again, and no other is."""
    run = Run(scratch)
    assert run.report()[0] == 0
    folder = run.folder
    for _ in range(count):
        manifest = json.loads((folder / "manifest.json").read_text())
        kept = [*(scratch / "data").rglob("*.training"), *(scratch / "data").rglob("*.prepared")]
        own = [folder / name for name in manifest["artifacts"]]
        path = draw.choice(draw.choice([kept, own, own]))
        fault = draw.choice(["flipped", "cut", "deleted", "emptied"])
        may_run = run.makers_and_readers(path)
        _break(path, fault, draw)
        found = verify(RunFolder(folder))["file"]
        noticed = path in kept or path.relative_to(folder).as_posix() in {*found}
        status, said = run.report()
        needless = {*re.findall(r"^(\d\w+): running", said, re.M)} - may_run
        row = {"fault": f"a file {fault}", "traceback": traceback_in(said)}
        row["wrong"] = not noticed or status != 0 or not run.verified or bool(needless)
        if row["wrong"]:
            how = (path, fault, noticed, status, needless, said)
            logging.error("%s %s: noticed %s, status %d, needlessly %s: %s", *how)
        yield row


def _break(path: Path, fault: str, draw: random.Random) -> None:
    content = bytearray(path.read_bytes())
    if fault == "deleted" or not content:
        path.unlink()
    elif fault == "emptied":
        path.write_bytes(b"")
    elif fault == "cut":
        path.write_bytes(content[: draw.randrange(len(content))])
    else:
        content[draw.randrange(len(content))] ^= 1 << draw.randrange(8)
        path.write_bytes(content)


def surroundings(count: int, draw: random.Random, scratch: Path) -> Iterator[dict[str, object]]:
    """Surroundings that lack something: what cannot go on says so in a line, and later does."""
    root = os.geteuid() == 0
    faults = {
        "HOME that is a file": {"HOME": "/etc/hostname"},
        "no HOME": {"before": "unset HOME"},
        "TMPDIR that is not there": {"TMPDIR": "/nowhere"},
        "24 open files": {"before": "ulimit -n 24"},
        "256 open files": {"before": "ulimit -n 256"},
        "2 GB of address space": {"before": "ulimit -v 2000000"},
        "1 GB of address space": {"before": "ulimit -v 1000000"},
    }
    for number, (fault, options) in enumerate([*faults.items()][:count]):
        home = scratch / f"around{number}"
        home.mkdir()
        yield _surrounded(fault, Run(home), **options)
    for number, own in enumerate((_held, _beside, _clock_set_back)):
        home = scratch / f"other{number}"
        home.mkdir()
        yield own(Run(home))
    if not (root and shutil.which("mount")):
        return
    yield _mounted("a folder that is read-only", scratch / "fixed", "ro", "cannot")
    for number in range(min(10, count)):
        size = f"size={draw.randint(100, 4000)}k"
        yield _mounted("a full disk", scratch / f"full{number}", size, "No space left")


def _held(run: Run) -> dict[str, object]:
    """A second run in the same folder is told who holds it."""
    first = run.start()
    while not (run.folder / ".lock").exists():
        time.sleep(0.1)
    status, said = run.report()
    row = {"fault": "a second run in one folder", "traceback": traceback_in(said)}
    row["wrong"] = (status, f"process {first.pid} on" in said) != (2, True)
    row["wrong"] |= first.communicate()[0] is None or first.returncode != 0
    return row


def _beside(run: Run) -> dict[str, object]:
    """Two runs that share their data, side by side."""
    home = run.home / "second"
    home.mkdir()
    other = Run(home, data_dir=str(run.home / "data"))
    with ThreadPoolExecutor(2) as threads:
        ended = [*threads.map(Run.report, (run, other))]
    row = {"fault": "two runs beside each other"}
    row["traceback"] = any(traceback_in(said) for _, said in ended)
    row["wrong"] = any(status for status, _ in ended) or not (run.verified and other.verified)
    return row


def _clock_set_back(run: Run) -> dict[str, object]:
    """What was made an hour from now, by this clock, is as good as before."""
    assert run.report()[0] == 0
    before = run.finished
    for path in [*run.home.rglob("*")]:
        times = (path.stat().st_atime + 3600, path.stat().st_mtime + 3600)
        os.utime(path, times, follow_symlinks=False)
    status, said = run.report()
    row = {"fault": "a clock set back by an hour", "traceback": traceback_in(said)}
    row["wrong"] = status != 0 or run.finished != before or not run.verified
    return row


def _mounted(fault: str, home: Path, option: str, word: str) -> dict[str, object]:
    """A file system of its own: what it cannot take is told in a line; later the run goes on."""
    home.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "x", home], check=True)
    try:
        run = Run(home, ignore_estimates=True)  # which would not let it begin
        subprocess.run(["mount", "-o", f"remount,{option}", home], check=True)
        status, said = run.report()
        row = {"fault": fault, "traceback": traceback_in(said)}
        subprocess.run(["mount", "-o", "remount,rw,size=1g", home], check=True)
        row["wrong"] = not _finished(run) or (status != 0 and word not in said)
        if row["traceback"] or row["wrong"]:
            logging.error("%s, %s: status %d: %s", fault, option, status, said[-600:])
        return row
    finally:
        subprocess.run(["umount", "-l", home], check=True)


def _surrounded(fault: str, run: Run, **options: str) -> dict[str, object]:
    status, said = run.report(**options)
    row = {"fault": fault, "left": len(run.processes), "traceback": traceback_in(said)}
    row["wrong"] = not _finished(run)
    if row["traceback"] or row["wrong"]:
        logging.error("%s: status %d: %s", fault, status, said[-600:])
    return row


Ensemble = Callable[[int, random.Random, Path], Iterator[dict[str, object]]]
ENSEMBLES: dict[str, tuple[Ensemble, int]] = {
    "parameters": (parameters, 1000),
    "surroundings": (surroundings, 17),
    "corruption": (corruption, 60),
    "kills": (kills, 200),
}


def main() -> int:
    """Run the ensembles, print a table, and return 1 when anything was lost, left or wrong."""
    parser = argparse.ArgumentParser(prog="make chaos", description=__doc__)
    parser.add_argument("names", nargs="*", default=[*ENSEMBLES], help=", ".join(ENSEMBLES))
    parser.add_argument("--share", type=float, default=1, help="of each ensemble's faults")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    logging.basicConfig(level=logging.ERROR, format="%(message)s")
    rows = []
    for name in options.names:
        ensemble, count = ENSEMBLES[name]
        with tempfile.TemporaryDirectory(prefix="edgeopt-chaos-") as scratch:
            number = max(1, round(options.share * count))
            rows += ensemble(number, random.Random(options.seed), Path(scratch))
    table = pd.DataFrame(rows, columns=["fault", "left", "lost", "half", "traceback", "wrong"])
    found = (
        table.fillna(0)
        .groupby("fault", sort=False)
        .agg(
            faults=("wrong", "size"),
            **{name: (name, "sum") for name in table.columns[1:]},
        )
    )
    sys.stdout.write(found.astype(int).to_string() + "\n")
    return int(found[["left", "lost", "half", "traceback", "wrong"]].to_numpy().any())


if __name__ == "__main__":
    sys.exit(main())
