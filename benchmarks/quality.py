"""What the default run reached, read from its files: mean of three seeds, test split."""

from collections.abc import Iterator

from edgeopt.data import load_splits
from edgeopt.model import load_small_cnn
from edgeopt.recipes import Recipe, accuracy_table
from edgeopt.rundir import open_run

GOALS = {0.25: 0.5, 0.5: 1.0, 0.7: 2.5}
SEEDS = (0, 1, 2)


def default_run() -> Iterator[str]:
    """Test accuracy of baseline, pruned and from-scratch networks; int8 against its parent."""
    folder = open_run("default")
    splits = load_splits("fashion-mnist-20k")
    kinds = ("one-shot", "fine-tuned", "scratch")
    recipes = [Recipe(0.0, "baseline", seed) for seed in SEEDS]
    recipes += [Recipe(level, kind, seed) for level in GOALS for kind in kinds for seed in SEEDS]
    networks = {recipe: load_small_cnn(folder.require(recipe.file_name)) for recipe in recipes}
    means = (
        accuracy_table(networks, splits.test)
        .groupby(["pruning_level", "recipe"])["accuracy"]
        .mean()
    )
    base = means[0.0, "baseline"]
    yield f"baseline: {base:.4f} (goal: 0.88)"
    for level, goal in GOALS.items():
        drop = {kind: 100 * (base - means[level, kind]) for kind in kinds}
        words = ", ".join(f"{kind} {points:.2f}" for kind, points in drop.items())
        yield f"level {level:g}, points lost: {words} (goal for fine-tuned: {goal})"
    paired = folder.read_table("paired_comparison.csv", made_by="04_sweep").set_index("candidate")
    sweep = folder.read_table("sweep_results.csv", made_by="04_sweep").set_index("candidate")
    int8 = [name for name in paired.index if "int8" in name]
    change = sweep["test_accuracy"][int8] - sweep["test_accuracy"].loc[paired["parent"][int8]].array
    yield (
        f"worst int8 against its own fp32 parent: {change.idxmin()} "
        f"{100 * change.min():+.2f} points (goal: within 0.5)"
    )
