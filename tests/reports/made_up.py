"""Results of a run that was never made, from a sweep alone."""

import pandas as pd

from edgeopt.decision.choice import decide
from edgeopt.decision.gates import Gates
from edgeopt.reports.records.results import Results
from edgeopt.study.folder import RunFolder, open_run
from tests.browser.synthetic import synthetic_sweep

FACTS = {
    "notebooks": {"04_sweep": {"status": "done", "title": "Sweep", "finished": "2026-01-02T03:04"}},
    "data": {"name": "invented", "checksum": "0" * 64, "counts": {"test": 5000}},
    "parameters": {"threads": 1},
    "git": {"commit": "c0ffee", "dirty": False},
    "packages": {"torch": "2"},
    "host": {"cpu": "Z80", "isa": ["none"], "usable_cores": 2},
    "int8_scheme": {"name": "U8S8", "reason": "it is exact here", "note": "Elsewhere not."},
    "threads": 1,
}


def results_of(root, sweep: pd.DataFrame | None = None, *, facts=None, **changes) -> Results:
    """Results with the decision of ``sweep``; ``changes`` are made to the decision."""
    run: RunFolder = open_run("made-up", root=root)
    sweep = synthetic_sweep() if sweep is None else sweep
    decided = decide(sweep, gates=Gates())
    sweep = sweep.merge(decided.standings, "left", "candidate")
    return Results(run, FACTS | (facts or {}), decided.to_dict() | changes, sweep, ())
