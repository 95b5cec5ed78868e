"""The pages in a headless Chromium, and what five seeds cost against one."""

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from statistics import median

import yaml

from edgeopt.reports import find_run, open_browser
from edgeopt.system import REPORTS_VARIABLE
from tests.browser.synthetic import synthetic_run, synthetic_sweep

USABLE = """() => document.querySelector('#candidates.dataTable')
    && (document.querySelector('#frontier img')?.complete
        || document.querySelector('#frontier .main-svg')) && performance.now()"""
DRAWN = "() => document.querySelector('#frontier .main-svg') && performance.now()"
# From the click to the end of the next frame, which is when its result can be seen.
FILTERING = """async (selector) => {
    const start = performance.now();
    document.querySelector(selector).click();
    await new Promise((done) => requestAnimationFrame(() => setTimeout(done)));
    return performance.now() - start;
}"""
FILTERS = ("input[value=fp32]", "input[value=torch]", "input[name=fits]", "input[name=log]")
SMALL = {
    "notebooks": ["01_baseline_training", "02_pruning", "04_sweep"],
    "pruning_levels": [0.0, 0.5],
    "rounds": 3,
}


def index_page() -> Iterator[str]:
    """Size of the default run's site, and the time until its front page can be used."""
    run = find_run("default")
    index = run.require("index.html")
    parts = [
        *run.root.glob("*.html"),
        *run.path("_static").rglob("*"),
        *run.path("figures").glob("*"),
    ]
    size = sum(path.stat().st_size for path in parts if path.is_file())
    yield f"size: {size / 1e6:.1f} MB (goal: at most 15)"
    with open_browser() as browser:
        usable, drawn = zip(*(_times_to_open(browser, index) for _ in range(5)), strict=True)
    for what, times in (("frontier seen, table sorts", usable), ("chart answers", drawn)):
        spent = f"{median(times) / 1e3:.2f} s, at worst {max(times) / 1e3:.2f}"
        yield f"{what} after {spent} (goal: 1.5)"


def _times_to_open(browser, index: Path) -> list[float]:
    """Measure until the frontier is seen and the table sorts, and until the chart answers."""
    page = browser.new_page()
    page.goto(index.as_uri(), wait_until="commit")
    times = [page.wait_for_function(met, polling=10).json_value() for met in (USABLE, DRAWN)]
    page.close()
    return times


def filter_time() -> Iterator[str]:
    """Time of one filter with 2,000 candidates in the plot and the table."""
    levels = tuple(level / 20 for level in range(20))
    sweep = synthetic_sweep(levels, copies=10).head(2000)
    with tempfile.TemporaryDirectory() as scratch, open_browser() as browser:
        run = synthetic_run(Path(scratch), "large", sweep=sweep)
        page = browser.new_page()
        page.goto(run.path("index.html").as_uri())
        page.wait_for_function(DRAWN)
        times = [page.evaluate(FILTERING, name) for name in FILTERS for _ in range(4)]
    spent = f"a filter takes {median(times):.0f} ms, at worst {max(times):.0f}"
    yield f"{len(sweep)} candidates: {spent} (goal: 200)"


def five_seeds() -> Iterator[str]:
    """Wall time of a small run with five seeds against the same with one."""
    one, five = (_run_seconds(list(range(count))) for count in (1, 5))
    yield f"five seeds / one seed, wall time: {five / one:.2f} (goal: under 4)"
    yield f"one seed took {one:.0f} s, five {five:.0f} s; {SMALL}"


def _run_seconds(seeds: list[int]) -> float:
    with tempfile.TemporaryDirectory() as scratch:
        params = Path(scratch) / f"seeds-{len(seeds)}.yaml"
        params.write_text(yaml.safe_dump({**SMALL, "seeds": seeds}))
        command = [sys.executable, "-m", "edgeopt", "report", "--params", str(params)]
        start = time.perf_counter()
        subprocess.run(command, check=True, env=os.environ | {REPORTS_VARIABLE: scratch})
        return time.perf_counter() - start
