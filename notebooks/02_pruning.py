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
scheduler = None
train_subset = 4000
calibration_images = None
val_subset = 1000
test_subset = 1500
batch_size = 64
seeds = [0]
image_size = None
channels = None
resize = "stretch"
interpolation = "bilinear"
mean = None
std = None
class_names = None
max_image_pixels = 89478485
devices = ["host"]
decide_on = None
device_python = "python3"
device_wheels = "fetch"
models = ["small_cnn"]
weights = None
allow_chance = False
conv1_channels = 16
conv2_channels = 32
epochs = 6
finetune_epochs = 2
finetune_patience = None
learning_rate = 0.003
channel_multiple = None
pruning_levels = [0.0, 0.5, 0.7]
pruning_criteria = ["l1", "l2", "taylor", "random"]
runtimes = ["torch", "onnxruntime", "executorch", "openvino"]
search = None
threads = 1
benchmark_batch_size = 1

# %%
import pandas as pd
from IPython.display import display

from edgeopt import plots
from edgeopt.config import ExperimentConfig
from edgeopt.experiments import accuracy_table, filter_norms, pruned_recipes, size_table
from edgeopt.plots import readings
from edgeopt.schema import file_stem, signed
from edgeopt.search import whole_maps
from edgeopt.study import open_study, use_style

# %% tags=["nbval-ignore-output"]
study = open_study(ExperimentConfig.from_namespace(globals()))
config, folder = study.config, study.folder
use_style()
print(study.heading)

# %%
baselines = study.kept(study.baselines())
validation = {model: splits.validation for model, splits in study.splits.items()}
grid = (config.models, config.pruning_levels, config.seeds)
print(f"{len(baselines)} unpruned network(s), grid of channels:", study.channel_multiples)

# %% [markdown]
# ## One-shot, fine-tuned, from scratch
#
# A level is the share of channels that every prunable layer loses, the same in every network; layers
# that share channels (residual, depthwise, squeeze-and-excitation) lose the same ones. *One-shot*
# removes and stops. *Fine-tuned* trains on for a few epochs. *Scratch* starts the same small
# architecture from new weights. All have as many epochs behind them as the baseline: fine-tuning starts
# from the network of notebook 1's first stage, one-shot from the baseline itself, and scratch is trained
# for both stages. Where a patience is set, fine-tuning goes on as long as validation rises; the baseline
# then had the most epochs that fine-tuning may take, and scratch as many as its own fine-tuned network.
# What is lost below is lost by pruning, not by less training.

# %%
recipes = pruned_recipes(*grid)
trainings = study.train(recipes, executor=study.workers)
networks = baselines | study.networks(trainings)

# %%
print(f"{len(recipes)} networks pruned or trained anew, beside {len(baselines)} baseline(s)")
counted = [(r.model, r.kind, r.pruning_level, len(t.history)) for r, t in trainings.items()]
epochs = pd.DataFrame(counted, columns=["model", "recipe", "pruning_level", "epochs"])
tuned = epochs[epochs["recipe"] != "one-shot"]
display(tuned.pivot_table("epochs", ["model", "pruning_level"], "recipe").round(1))
if config.epochs == 0:
    print("The weights were given, so that scratch has fewer epochs behind it than they have.")

# %% [markdown]
# ## What a level removes
#
# At level 0.5 each layer keeps the half of its filters that matters most. Both a layer's outputs and the
# inputs of what reads them shrink, so that weights and multiply-accumulates (MACs) fall with the square
# of what is kept. Where a level cannot be honoured, by the grid of channels or because the network's own
# code counts a layer's channels (`x.view(-1, 400)`), `note` says what was reached.

# %%
sizes = folder.write_table("pruning_sizes.csv", size_table(networks, validation))
sizes.round(3)

# %% [markdown]
# The ranking decides which filters go. If all dots of a layer lay at one height, the criterion would
# have nothing to tell them apart by, and any choice would do. At most six layers are drawn.

# %% tags=["nbval-ignore-output"]
for recipe in study.baselines()[:: len(config.seeds)]:
    norms = filter_norms(baselines[recipe], layers=6)
    name, ax = f"filter_norms-{file_stem(recipe.model)}", plots.filter_norms(norms)
    alt = readings.filter_norms(norms, model=recipe.model)
    display(folder.save_figure(name, ax, alt=alt, numbers=norms))

# %% [markdown]
# ## What a runtime makes of it
#
# Half of the channels is not half of the time. A runtime's kernels compute channels in blocks, so that
# latency goes down in steps, and fewer channels can even take longer. The figure times untrained networks
# of many widths, which is enough: latency does not depend on the weights' values. Chapter 8 chooses
# channels by it, where a run searches. Networks with more groups of layers than two are left out.

# %% tags=["nbval-ignore-output"]
maps = whole_maps(study, executor=study.workers)
for model, known in maps.items():
    name, alt = f"latency_map-{file_stem(model)}", readings.latency_map(known, model=model)
    ax = plots.latency_map(known, precision="fp32")
    display(folder.save_figure(name, ax, alt=alt, numbers=known.numbers))

# %% [markdown]
# ## What it costs in accuracy
#
# Bars are the range over seeds; with one seed, Wilson's interval over images. Compare *fine-tuned* with
# *scratch*: where the bars overlap, the inherited weights bought nothing that training time would not
# have (Liu et al., 2019, arXiv:1810.05270).

# %% tags=["nbval-ignore-output"]
accuracies = folder.write_table("pruning_accuracy.csv", accuracy_table(networks, validation))

# %% tags=["nbval-ignore-output"]
levels = ["model", "pruning_level"]
by_recipe = accuracies.pivot_table("accuracy", levels, "recipe", sort=False)
by_recipe.mul(100).add_suffix(" (%)").rename_axis(columns=None)

# %% tags=["nbval-ignore-output"]
for model, rows in accuracies.groupby("model", sort=False):
    name, ax = f"pruning_curves-{file_stem(model)}", plots.pruning_curves(rows)
    alt = readings.pruning_curves(rows, model=model)
    display(folder.save_figure(name, ax, alt=alt, numbers=rows))

# %% [markdown]
# ## Does the criterion matter?
#
# L1 and L2 rank filters by their weights, Taylor by what removing them would do to the loss
# (Molchanov et al., 2019, arXiv:1906.10771). Random is the control. All keep the same number of
# channels in every layer, so that only the choice of channels differs, and are trained on for one epoch.

# %%
kinds, criteria = ("one-shot", "one-epoch"), config.pruning_criteria
rivals = pruned_recipes(*grid[:2], config.seeds[:1], kinds=kinds, criteria=criteria)
contest = study.networks(study.train(rivals, executor=study.workers))
print(f"{len(contest)} networks by {len(criteria)} criteria")

# %% tags=["nbval-ignore-output"]
compared = folder.write_table("pruning_criteria.csv", accuracy_table(contest, validation))
by_criterion = compared.pivot_table("accuracy", [*levels, "criterion"], "recipe", sort=False)
by_criterion.mul(100).round(1).add_suffix(" (%)").rename_axis(columns=None)

# %% [markdown]
# ## Handing over
#
# The sweep works on the fine-tuned networks; all are kept.

# %%
study.keep({recipe: networks[recipe] for recipe in recipes})
print(f"{len(recipes)} files of weights")

# %% [markdown]
# ## Conclusion

# %% tags=["nbval-ignore-output"]
kept = sizes.drop_duplicates(levels).set_index(levels)["macs_kept"]
for place, gain in by_recipe.iterrows():
    if place[1] > 0:
        gain = 100 * (gain - by_recipe.loc[(place[0], 0.0), "baseline"])
        words = {kind: signed(change, digits=1) for kind, change in gain.items()}
        print(
            f"{place[0]} at level {place[1]:g} keeps {kept[place]:.0%} of the MACs; accuracy changes "
            f"by {words['one-shot']} points one-shot, {words['fine-tuned']} fine-tuned, "
            f"{words['scratch']} from scratch."
        )

# %% tags=["nbval-ignore-output"]
ends = accuracies.pivot_table(["accuracy_low", "accuracy_high"], levels, "recipe", sort=False)
if "fine-tuned" in by_recipe:
    apart = ends["accuracy_low", "fine-tuned"] > ends["accuracy_high", "scratch"]
    clear = [f"{model} at {level:g}" for model, level in apart[apart].index]
    print("Fine-tuning beats scratch beyond the images' noise:", ", ".join(clear) or "nowhere")

# %% tags=["nbval-ignore-output"]
tuned = compared[compared["recipe"] == "one-epoch"].groupby("criterion")["accuracy"].mean()
words = [f"{name} {share:.1%}" for name, share in tuned.sort_values(ascending=False).items()]
print("Mean accuracy one epoch after pruning, by criterion:", ", ".join(words) or "none")
