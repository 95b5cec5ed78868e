"""What the default run reached, read from its files: mean of three seeds, test split."""

from collections.abc import Iterator

from edgeopt.config import load_config
from edgeopt.experiments import accuracy_table, pruned_recipes
from edgeopt.study import open_study
from edgeopt.system import project_root

GOALS = {0.25: 0.5, 0.5: 1.0, 0.7: 2.5}


def default_run() -> Iterator[str]:
    """Test accuracy of baseline, pruned and from-scratch networks; int8 against its parent."""
    study = open_study(load_config(project_root() / "params/default.yaml"))
    config, folder = study.config, study.folder
    recipes = pruned_recipes(config.models, GOALS, config.seeds)
    kinds = dict.fromkeys(recipe.kind for recipe in recipes)
    networks = study.kept(study.baselines())
    networks |= study.kept(recipes)
    accuracies = accuracy_table(networks, study.role("test"))
    means = accuracies.groupby(["pruning_level", "recipe"])["accuracy"].mean()
    base = means[0.0, "baseline"]
    yield f"baseline: {base:.4f} (goal: 0.88)"
    for level, goal in GOALS.items():
        drop = {kind: 100 * (base - means[level, kind]) for kind in kinds}
        words = ", ".join(f"{kind} {points:.2f}" for kind, points in drop.items())
        yield f"level {level:g}, points lost: {words} (goal for fine-tuned: {goal})"
    paired = folder.read_table("paired_comparison.csv").set_index("candidate")
    sweep = folder.read_sweep().set_index("candidate")
    int8 = [name for name in paired.index if "int8" in name]
    change = sweep["test_accuracy"][int8] - sweep["test_accuracy"].loc[paired["parent"][int8]].array
    yield (
        f"worst int8 against its own fp32 parent: {change.idxmin()} "
        f"{100 * change.min():+.2f} points (goal: within 0.5)"
    )
