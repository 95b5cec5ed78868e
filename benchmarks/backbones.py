"""What the backbones reach over three seeds: int8 against fp32, pruning, diagnosis and recovery.

Trained weights come from the data folder where `make report RUN=backbones` or an earlier call left
them; the seeds that are missing are trained first.
"""

import tempfile
import time
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
from torch import nn

from benchmarks.runtimes import medians
from edgeopt.config import load_config
from edgeopt.experiments import (
    Recipe,
    accuracy_table,
    candidate_table,
    diagnose,
    grid,
    prepare_candidates,
    pruned_recipes,
    recover_int8,
    score,
    with_test,
)
from edgeopt.experiments.candidates.candidate import Candidate
from edgeopt.experiments.recovery.remedies import DIAGNOSIS_IMAGES, Rewrites
from edgeopt.experiments.recovery.repairs import recover_candidate
from edgeopt.runtimes import RUNTIMES, export_artifact, load_session
from edgeopt.study import Study, open_study
from edgeopt.system import process_pool, project_root

SEEDS = (0, 1, 2)
LEVEL = 0.25  # leaves more than half of the MACs
INT8_DROP = 0.005
BUDGETS_S = {"diagnosis": 120, "recovery": 360}


def backbones() -> Iterator[str]:
    """Train what is not trained yet, then all that the backbones owe, on the test split."""
    study = open_study(load_config(project_root() / "params/backbones.yaml", seeds=list(SEEDS)))
    with process_pool() as pool:
        networks = study.networks(study.train(study.baselines(), executor=pool))
    with tempfile.TemporaryDirectory(prefix="edgeopt-") as scratch:
        yield from int8_quality(networks, study, Path(scratch))
        yield from durations(networks, study, Path(scratch))
        yield from pruned(study.config.models[0], networks, study, Path(scratch))


def int8_quality(
    networks: Mapping[Recipe, nn.Module], study: Study, scratch: Path
) -> Iterator[str]:
    """Best int8 artifact, chosen on validation, against fp32 of its runtime; mean over seeds."""
    rows = []
    for recipe, network in networks.items():
        candidates = prepared(recipe, network, study, scratch)
        splits = study.splits[recipe.model]
        int8 = [c for c in candidates if c.spec.precision == "int8" and not c.error]
        fp32 = {c.spec.runtime: c for c in candidates if c.spec.precision == "fp32"}
        best = max(int8, key=lambda candidate: candidate.facts["macro_f1"])
        if best.facts["macro_f1"] < fp32[best.spec.runtime].facts["macro_f1"] - INT8_DROP:
            rewrites = Rewrites(network, calibration=splits.calibration.loader(64))
            options = {"directory": scratch, "max_drop": INT8_DROP, "rounds": 0}
            best = recover_candidate(best.spec, rewrites, splits.validation, **options).candidate
        parent = fp32[best.spec.runtime]
        both, named = [best, parent], {"class_names": study.class_names}
        predicted = score(both, study.role("test"))
        table = with_test(candidate_table(both), predicted, labels=study.labels("test"), **named)
        f1 = table.set_index("candidate")["test_macro_f1"]
        ratio = parent.artifact.size_bytes / best.artifact.size_bytes
        rows.append((recipe.model, best.name, 100 * (f1[best.name] - f1[parent.name]), ratio))
    table = pd.DataFrame(rows, columns=["model", "best", "points", "ratio"])
    for name, found in table.groupby("model", sort=False):
        yield f"{name}: best int8 {', '.join(sorted(set(found['best'])))}"
        yield (
            f"{name}: macro-F1 on test, int8 - fp32: {found['points'].mean():+.2f} points, worst "
            f"seed {found['points'].min():+.2f} (goal: within 0.5); fp32 / int8 file: "
            f"{found['ratio'].min():.2f} (goal: 3.3)"
        )


def prepared(recipe: Recipe, network: nn.Module, study: Study, scratch: Path) -> list[Candidate]:
    """Make the fp32 and static int8 candidates of every runtime, scored on validation."""
    named = {"model": recipe.model, "seed": recipe.seed}
    options = {**study.preparation("artifacts/benchmark"), "directory": scratch}
    with process_pool() as pool:
        return prepare_candidates(
            grid([0.0], ["fp32", "int8"], RUNTIMES, **named),
            executor=pool,
            models={recipe.network: network},
            **options,
        )


def durations(networks: Mapping[Recipe, nn.Module], study: Study, scratch: Path) -> Iterator[str]:
    """Diagnosis and all remedies but QAT, as shares of what they may take."""
    for recipe, network in networks.items():
        if recipe.seed != SEEDS[0]:
            continue
        name, splits = recipe.model, study.splits[recipe.model]
        some = splits.validation.first(DIAGNOSIS_IMAGES)
        start = time.perf_counter()
        diagnose(network, some)
        yield share_of_budget(name, "diagnosis", start)
        start = time.perf_counter()
        options = {
            "folder": scratch / f"{name}-recovery",
            "runtime": "onnxruntime",
            "exhaustive": True,
            "max_drop": INT8_DROP,
            "calibration": splits.calibration.loader(64),
        }
        recover_int8(network, validation=splits.validation, **options)
        yield share_of_budget(name, "recovery", start)


def share_of_budget(name: str, what: str, start: float) -> str:
    budget = BUDGETS_S[what]
    share = (time.perf_counter() - start) / budget
    return f"{name}: {what} takes {share:.2f} of its {budget / 60:.0f} minutes (goal: under 1)"


def pruned(
    model: str, networks: Mapping[Recipe, nn.Module], study: Study, scratch: Path
) -> Iterator[str]:
    """A quarter of the channels less by Taylor: accuracy at the trained size, latency at 224."""
    kinds = ("fine-tuned", "scratch")
    recipes = pruned_recipes([model], [LEVEL], SEEDS, kinds=kinds, criteria=["taylor"])
    with process_pool() as pool:
        small = study.networks(study.train(recipes, executor=pool))
    own = {recipe: network for recipe, network in networks.items() if recipe.model == model}
    table = accuracy_table(own | small, study.role("test"))
    macs = table.groupby("recipe")["macs"].first()
    means = 100 * table.groupby("recipe")["accuracy"].mean()
    tuned, fresh = (means[kind] - means["baseline"] for kind in kinds)
    yield (
        f"{model} with {macs['fine-tuned'] / macs['baseline']:.0%} of the MACs, accuracy on test "
        f"against fp32: fine-tuned {tuned:+.2f} points (goal: within 2), from scratch {fresh:+.2f}"
    )
    yield f"full / pruned, ONNX Runtime fp32 at 224x224: {speedup(own, small, scratch):.2f}"


def speedup(
    full: Mapping[Recipe, nn.Module], small: Mapping[Recipe, nn.Module], scratch: Path
) -> float:
    shape = (1, 3, 224, 224)
    target = {"runtime": "onnxruntime", "precision": "fp32", "input_shape": shape}
    files = {
        word: export_artifact(next(iter(of.values())), scratch / f"{word}-224", **target)
        for word, of in (("full", full), ("pruned", small))
    }
    loaders = {word: partial(load_session, file) for word, file in files.items()}
    p50 = medians(loaders, np.random.default_rng(0).random(shape, np.float32))
    return p50["full"] / p50["pruned"]
