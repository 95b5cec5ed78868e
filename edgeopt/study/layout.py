"""The files that notebooks hand over to each other and to the report, and who makes each."""

from fnmatch import fnmatch

from edgeopt.schema import file_stem

DATA = "data.json"
STORE = "artifacts/sweep"
SWEEP = "sweep_results.csv"
FRONTIER_TABLE = "pareto_frontier_latency.csv"
FRONTIER_FIGURE = "figures/frontier.png"
CONDITIONS = "conditions.csv"
DEVICES = "devices.json"
CALL_FLOORS = "call_floors.csv"
HOST_ANSWERS = "host_answers.csv"
RIGHT_ANSWERS = "right_answers.csv"
RECALLS = "per_class.csv"
SAMPLES = "latency_samples.csv"
BUNDLE = "bundle.pyz"
MEASURED = "measured"
# Of each device whose results were taken in, in a folder of its own below devices/.
ROWS, COMPARISON, FACTS = "rows.csv", "comparison.csv", "facts.json"
DECIDED = "decided.json"
SUMMARY = "summary.json"
CEILINGS = "ceilings.csv"
OPERATORS = "pick_operators.csv"
SHIP = "ship"
SHIP_ZIP = "ship.zip"
MODEL_CARD = f"{SHIP}/MODEL_CARD.md"
MADE_BY = {
    DATA: "01_baseline_training",
    "weights/*-p0-seed*.pt": "01_baseline_training",
    "weights/*.pt": "02_pruning",
    "pruning_accuracy.csv": "02_pruning",
    SWEEP: "04_sweep",
    FRONTIER_TABLE: "04_sweep",
    FRONTIER_FIGURE: "04_sweep",
    CONDITIONS: "04_sweep",
    DEVICES: "04_sweep",
    SUMMARY: "04_sweep",
    SAMPLES: "04_sweep",
    CALL_FLOORS: "04_sweep",
    HOST_ANSWERS: "04_sweep",
    RIGHT_ANSWERS: "04_sweep",
    "device_comparison.csv": "04_sweep",
    RECALLS: "04_sweep",
    "paired_comparison.csv": "04_sweep",
    CEILINGS: "05_hardware_analysis",
    OPERATORS: "05_hardware_analysis",
    "layerwise_breakdown.csv": "05_hardware_analysis",
    SHIP_ZIP: "index",
    MODEL_CARD: "index",
}

# Notebooks whose files another one reads.
NEEDS = {
    "02_pruning": ("01_baseline_training",),
    "03_quantization": ("01_baseline_training",),
    "04_sweep": ("01_baseline_training", "02_pruning"),
    "05_hardware_analysis": ("04_sweep",),
    "06_backbone_sweep": ("02_pruning", "04_sweep"),
    "07_devices": ("04_sweep",),
    "08_search": ("01_baseline_training",),
}


def needed_by(notebook: str) -> list[str]:
    """List the notebooks whose files a notebook reads, and those that these need."""
    direct = NEEDS.get(notebook, ())
    return sorted({*direct, *(own for other in direct for own in needed_by(other))})


def measured_file(stage: str, device: str) -> str:
    """Name the file of what a stage of the run measured on a device, record by record."""
    return f"{MEASURED}/{stage}-{file_stem(device)}.json"


def maker(name: str) -> str:
    """Name the notebook that makes a file; ``ValueError`` for one that is not handed over."""
    for pattern, notebook in MADE_BY.items():
        if fnmatch(name, pattern):
            return notebook
    raise ValueError(f"file {name!r} is not handed over; allowed: {', '.join(MADE_BY)}")
