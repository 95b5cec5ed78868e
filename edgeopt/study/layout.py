"""The files that notebooks hand over to each other and to the report, and who makes each."""

from fnmatch import fnmatch

DATA = "data.json"
SWEEP = "sweep_results.csv"
FRONTIER_TABLE = "pareto_frontier_latency.csv"
FRONTIER_FIGURE = "figures/frontier.png"
CONDITIONS = "conditions.csv"
SUMMARY = "summary.json"
CEILINGS = "ceilings.csv"
OPERATORS = "pick_operators.csv"
MADE_BY = {
    DATA: "01_baseline_training",
    "weights/*-p0-seed*.pt": "01_baseline_training",
    "weights/*.pt": "02_pruning",
    "pruning_accuracy.csv": "02_pruning",
    SWEEP: "04_sweep",
    FRONTIER_TABLE: "04_sweep",
    FRONTIER_FIGURE: "04_sweep",
    CONDITIONS: "04_sweep",
    SUMMARY: "04_sweep",
    "latency_samples.csv": "04_sweep",
    "per_class.csv": "04_sweep",
    "paired_comparison.csv": "04_sweep",
    CEILINGS: "05_hardware_analysis",
    "layerwise_breakdown.csv": "05_hardware_analysis",
}


def maker(name: str) -> str:
    """Name the notebook that makes a file; ``ValueError`` for one that is not handed over."""
    for pattern, notebook in MADE_BY.items():
        if fnmatch(name, pattern):
            return notebook
    raise ValueError(f"file {name!r} is not handed over; allowed: {', '.join(MADE_BY)}")
