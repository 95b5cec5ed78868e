# %% [markdown]
# # 2. How many channels can go, and does pruning beat a small network trained from scratch?
#
# Removing whole filters makes a network that is smaller on any runtime, with no sparse kernels
# needed. What it costs in accuracy depends on what is done afterwards; the control that papers tend
# to skip is to train the same small architecture from new weights for just as long.

# %% tags=["parameters"]
run = "quick"
dataset = "fashion-mnist-20k"
data_dir = "data"
train_subset = 4000
calibration_subset = 640
val_subset = 1000
batch_size = 64
seeds = [0]
epochs = 6
finetune_epochs = 2
learning_rate = 0.003
pruning_levels = [0.0, 0.5, 0.7]
pruning_criteria = ["l1", "l2", "taylor", "random"]

# %%
import pandas as pd

from edgeopt import plots
from edgeopt.config import ExperimentConfig
from edgeopt.data import load_splits
from edgeopt.footprint import weight_bytes
from edgeopt.metrics import wilson_interval
from edgeopt.model import dump_weights, load_small_cnn
from edgeopt.pruning import count_macs, structured_channel_prune
from edgeopt.recipes import Recipe, Schedule, accuracy_table
from edgeopt.recipes import process_pool, study_recipes, train_recipes
from edgeopt.rundir import open_run

# %%
config = ExperimentConfig.from_namespace(globals())
folder = open_run(config.run)
plots.use_style()

# %%
splits = load_splits(
    config.dataset,
    train_subset=config.train_subset,
    calibration_subset=config.calibration_subset,
    val_subset=config.val_subset,
    data_dir=config.data_folder,
    image_size=28,
    channels=1,
)

# %%
unpruned = {
    recipe: load_small_cnn(folder.require(recipe.file_name))
    for seed in config.seeds
    for recipe in (Recipe(0.0, "pretrained", seed), Recipe(0.0, "baseline", seed))
}
baselines = {recipe: net for recipe, net in unpruned.items() if recipe.kind == "baseline"}
baseline = unpruned[Recipe(0.0, "baseline", config.seeds[0])]

# %% [markdown]
# ## What a level removes
#
# At level 0.5 each convolution keeps the half of its filters with the largest L1 norm (Li et al.,
# 2017, arXiv:1608.08710). Both the second convolution's outputs and its inputs shrink, so that its
# weights and multiply-accumulates (MACs) fall with the square of what is kept.

# %%
pruned = {level: structured_channel_prune(baseline, level) for level in config.pruning_levels}

# %%
sizes = pd.DataFrame(
    {
        "pruning_level": level,
        "conv1_channels": network.conv1.out_channels,
        "conv2_channels": network.conv2.out_channels,
        "parameters": sum(p.numel() for p in network.parameters()),
        "macs": count_macs(network, example_input=splits.validation.images[:1]),
        "weight_bytes": weight_bytes(network),
    }
    for level, network in pruned.items()
)
folder.write_table("pruning_sizes.csv", sizes)
sizes

# %% [markdown]
# The ranking decides which filters go. If all dots lay at one height, the criterion would have
# nothing to tell them apart by, and any choice would do.

# %% tags=["nbval-ignore-output"]
norms = pd.DataFrame(
    (layer, index, norm)
    for layer in ("conv1", "conv2")
    for index, norm in enumerate(
        baseline.get_submodule(layer).weight.abs().sum(dim=(1, 2, 3)).tolist()
    )
)
norms.columns = ["layer", "filter", "l1_norm"]
ax = plots.filter_norms(norms)
alt = "L1 norm of every filter of both convolutions, sorted; the lowest are pruned first."
folder.save_figure("filter_norms", ax, alt=alt, numbers=norms)

# %% [markdown]
# ## One-shot, fine-tuned, from scratch
#
# *One-shot* removes and stops. *Fine-tuned* trains on for a few epochs. *Scratch* starts the same
# small architecture from new weights. All have as many epochs behind them as the baseline: fine-tuning
# starts from the network of notebook 1's first stage, one-shot from the baseline itself, and scratch is
# trained for both stages. What is lost below is lost by pruning, not by less training.

# %%
schedule = config.part(Schedule)
recipes = study_recipes(config.pruning_levels, config.seeds)

# %%
with process_pool() as pool:
    networks = train_recipes(recipes, unpruned, splits.train, schedule=schedule, executor=pool)
networks |= baselines
print(f"{len(recipes)} networks pruned or trained anew, beside {len(baselines)} baseline(s)")

# %% tags=["nbval-ignore-output"]
accuracies = accuracy_table(networks, splits.validation)
images = len(splits.validation)
intervals = [wilson_interval(round(share * images), images) for share in accuracies["accuracy"]]
accuracies[["accuracy_low", "accuracy_high"]] = intervals

# %% tags=["nbval-ignore-output"]
folder.write_table("pruning_accuracy.csv", accuracies)
by_recipe = accuracies.pivot_table(index="pruning_level", columns="recipe", values="accuracy")
by_recipe.round(3)

# %% tags=["nbval-ignore-output"]
ax = plots.pruning_curves(accuracies)
alt = "Validation accuracy against pruning level: one-shot, fine-tuned and from scratch, with bars."
folder.save_figure("pruning_curves", ax, alt=alt, numbers=accuracies)

# %% [markdown]
# Bars are the range over seeds; with one seed, Wilson's interval over images. Compare *fine-tuned* with
# *scratch*: where the bars overlap, the inherited weights bought nothing that training time would not
# have (Liu et al., 2019, arXiv:1810.05270).
#
# ## Does the criterion matter?
#
# L1 and L2 rank filters by their weights, Taylor by what removing them would do to the loss
# (Molchanov et al., 2019, arXiv:1906.10771). Random is the control. All keep the same number of
# channels in every layer, so that only the choice of channels differs, and are fine-tuned alike.

# %%
levels = [level for level in config.pruning_levels if level > 0]
rivals = [
    Recipe(level, kind, config.seeds[0], criterion)
    for level in levels
    for criterion in config.pruning_criteria
    for kind in ("one-shot", "fine-tuned")
]

# %%
with process_pool() as pool:
    contest = train_recipes(rivals, unpruned, splits.train, schedule=schedule, executor=pool)
print(f"{len(contest)} networks: {len(config.pruning_criteria)} criteria at {len(levels)} levels")

# %% tags=["nbval-ignore-output"]
criteria = accuracy_table(contest, splits.validation)
folder.write_table("pruning_criteria.csv", criteria)
columns, sizes_of = ["recipe", "criterion"], ["pruning_level", "channels", "macs"]
criteria.pivot_table(index=sizes_of, columns=columns, values="accuracy").round(3)

# %% [markdown]
# ## Handing over
#
# The sweep works on the fine-tuned networks; all are kept.

# %%
for recipe, network in networks.items():
    folder.write_bytes(recipe.file_name, dump_weights(network))
print(f"{len(list(folder.path('weights').iterdir()))} files of weights")

# %% [markdown]
# ## Conclusion

# %% tags=["nbval-ignore-output"]
full = by_recipe.loc[0.0, "baseline"]
for level in levels:
    gain = ((by_recipe.loc[level] - full) * 100).round(1) + 0.0  # no -0.0
    kept = sizes.set_index("pruning_level").loc[level, "macs"] / sizes["macs"].max()
    print(
        f"Level {level:g} keeps {kept:.0%} of the MACs; accuracy changes by {gain['one-shot']:+.1f} "
        f"points one-shot, {gain['fine-tuned']:+.1f} fine-tuned, {gain['scratch']:+.1f} from scratch."
    )

# %% tags=["nbval-ignore-output"]
ends = accuracies.pivot_table(["accuracy_low", "accuracy_high"], "pruning_level", "recipe")
apart = ends.get(("accuracy_low", "fine-tuned"), 0) > ends.get(("accuracy_high", "scratch"), 1)
clear = [level for level in levels if apart[level]]
print(
    "Fine-tuning beats training from scratch beyond the images' noise at level(s):", clear or "none"
)
tuned = criteria[criteria["recipe"] == "fine-tuned"]
ahead = tuned.groupby("criterion")["accuracy"].mean().sort_values(ascending=False)
words = [f"{name} {share:.1%}" for name, share in ahead.items()]
print("Mean accuracy over the levels after fine-tuning, by criterion:", ", ".join(words) or "none")
