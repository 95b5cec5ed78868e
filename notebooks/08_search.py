# %% [markdown]
# # 8. Which channels and bits does the clock ask for?
#
# A pruning level takes the same share of every layer, and no runtime asks for that: its kernels work in
# blocks, so that a few channels more can be faster than a few less, and a layer with short dot products
# can be faster in float than in integers. Here the clock is asked first, before any training; then the
# networks that are worth it are trained.

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
runtimes = ["torch", "onnxruntime", "executorch", "openvino"]
search = None
threads = 1
benchmark_batch_size = 1
rounds = 10
calls_per_round = 30
latency_multiplier = 1.0
power_watts = 5.0
memory_budgets_mb = [0.015, 0.03, 0.06]
active_memory_budget_mb = 0.03
accuracy_drop_good = 0.02

# %%
import time

from IPython.display import display

from edgeopt import plots
from edgeopt.config import ExperimentConfig
from edgeopt.decision import hypervolume_gain, paired_comparison
from edgeopt.experiments import Target, answers_of, score, sweep_table, with_test
from edgeopt.metrics import latency_ratios
from edgeopt.plots import readings
from edgeopt.schema import TIMES, quantity
from edgeopt.search import (
    explore,
    finalists,
    one_epoch_accuracy,
    prepare_finalists,
    promoted,
    record,
    search_space,
)
from edgeopt.study import open_study, use_style

# %% tags=["nbval-ignore-output"]
began = time.monotonic()
study = open_study(ExperimentConfig.from_namespace(globals()))
config, folder, spec = study.config, study.folder, study.search
use_style()
print(study.heading)

# %% [markdown]
# ## The latency map
#
# Latency does not depend on the weights' values, so that networks of other widths can be timed before
# any of them is trained. A network with one or two groups of layers is timed whole, at more widths where
# its latency steps; of a deeper one every layer is timed at every width, and the sum is checked on whole
# networks. For int8, layers that are faster in float by themselves make a second map, in which all of
# them compute in float. Maps are kept, and read again by later runs with the same code and machine.

# %% tags=["nbval-ignore-output"]
baselines = study.kept(study.baselines())
space = search_space(study, baselines, executor=study.workers)
print(f"{spec.model} in {spec.precision} on {spec.runtime}, timed on {config.decides}")

# %% tags=["nbval-ignore-output"]
for number, (layers, known) in enumerate(space.latencies.items()):
    print("layers in float:", ", ".join(layers) or "none")
    alt = readings.latency_map(known, model=spec.model)
    ax, numbers = plots.latency_map(known, precision=spec.precision), known.numbers
    display(folder.save_figure(f"search_map{number}", ax, alt=alt, numbers=numbers))

# %% [markdown]
# ## Many networks, by importance
#
# A trial is a width for every group of layers and, for int8, one of the maps. The first round trains
# nothing: NSGA-II looks for the trials that keep most of the channels' importance (by the Taylor criterion,
# an estimate of the loss without them; what is pruned then goes by the L1 norm, as at the uniform levels)
# at each latency. The trials lie in an Optuna study in the run's folder, `search.db`, which
# `optuna-dashboard` opens.

# %% tags=["nbval-ignore-output"]
trials = folder.write_table("search_trials.csv", explore(space, spec))
record(trials, folder.path("search.db"), name="importance", space=space, score="kept")
chosen = promoted(trials, spec.one_epoch, score="kept")
print(f"{len(trials)} trials, of which {len(chosen)} go on")

# %% [markdown]
# ## Some of them, after one epoch
#
# What is promoted is pruned to its widths and trained for one epoch. What no faster network beats goes on,
# the largest additions to the hypervolume first, unless it is one of the uniform levels. The unpruned
# network is the baseline, with all its epochs.

# %% tags=["nbval-ignore-output"]
tried = one_epoch_accuracy(study, chosen, executor=study.workers)
record(tried, folder.path("search.db"), name="one epoch", space=space, score="accuracy")
folder.write_table("search_one_epoch.csv", tried)[["network", "float_layers", "map_ms", "accuracy"]]

# %% [markdown]
# ## The finalists, trained to the end
#
# With as many epochs as the uniform levels had, and with every seed. They are timed side by side with the
# uniform levels, in the same rounds, by the clock that decides.

# %% tags=["nbval-ignore-output"]
last = finalists(study, tried)
uniform, found = prepare_finalists(study, last, baselines, executor=study.workers)

# %% tags=["nbval-ignore-output"]
prepared = [*uniform, *found]
first = [own for own in prepared if own.spec.seed == config.seeds[0]]
measured = study.measure(first, stage="search")[config.decides].measured

# %% tags=["nbval-ignore-output"]
labels, target = study.validation_labels, config.part(Target)
how = {"labels": labels, "target": target, "batch_size": config.benchmark_batch_size}
sweep = sweep_table(prepared, measured, **how)
sweep["found"] = sweep["candidate"].isin([own.name for own in found])

# %% tags=["nbval-ignore-output"]
shown = ["candidate", "found", "accuracy", "latency_p50_ms", "accuracy_low", "accuracy_high"]
sweep[shown].sort_values("latency_p50_ms")

# %% [markdown]
# ## What the search adds
#
# The hypervolume is the area between a frontier and 1.1 times the slowest latency at the accuracy of
# guessing. Its gain is how much the networks that were found enlarge it; the interval draws images and
# rounds anew. More candidates never make it smaller, and the same images chose the finalists: the gain on
# the test images, in the conclusion, is the one to believe.

# %% tags=["nbval-ignore-output"]
ran = {*sweep.loc[sweep["status"] == "ok", "candidate"]}
measurable = [own for own in prepared if own.name in ran]
answers = answers_of(measurable, labels=labels, class_names=study.class_names)
own = {"added": [*sweep.loc[sweep["found"], "candidate"]], "chance": 1 / len(study.class_names)}
gain, low, high = hypervolume_gain(answers.correct, measured.samples, **own)

# %% tags=["nbval-ignore-output"]
folder.write_json("search_gain.json", {"gain": gain, "low": low, "high": high})
names = {c.name: c.spec.widths or f"{c.spec.pruning_level:.0%}" for c in prepared}
names = {name: words.replace("x", TIMES) for name, words in names.items()}
ax = plots.searched_frontier(sweep, searched=own["added"], labels=names)
alt = readings.searched_frontier(sweep, searched=own["added"], gain=gain)
folder.save_figure("searched_frontier", ax, alt=alt, numbers=sweep[shown])

# %% [markdown]
# ## Test, once
#
# The fastest is chosen of the networks that are as accurate as the unpruned one on the validation images:
# no paired test at 5% finds a loss, and the whole interval of the difference is above the loss that the
# run's gate calls good. Only then are the test images read.

# %% tags=["nbval-ignore-output"]
parent = uniform[0].name
losses = paired_comparison(answers.correct, parent=parent)
lost = (losses["p_value"] < 0.05) & (losses["accuracy_difference"] < 0)
lost |= losses["difference_low"] < -config.accuracy_drop_good
accurate = {parent, *losses.loc[~lost, "candidate"]}
fast = sweep[sweep["candidate"].isin(accurate)].sort_values("latency_p50_ms")["candidate"]

# %% tags=["nbval-ignore-output"]
predicted = score(measurable, study.role("test"), executor=study.workers)
how = {"labels": study.labels("test"), "class_names": study.class_names}
sweep = folder.write_table("search_results.csv", with_test(sweep, predicted, **how))
final = sweep.set_index("candidate")
final.loc[[parent, *fast[:1]], ["accuracy", "test_accuracy", "latency_p50_ms"]]

# %% [markdown]
# ## Conclusion

# %% tags=["nbval-ignore-output"]
ends = " to ".join(quantity("regret", end, signed=True) for end in (low, high))
print(f"The search enlarges the hypervolume by {quantity('regret', gain, signed=True)} ({ends}).")

# %% tags=["nbval-ignore-output"]
right = {name: predicted[name] == study.labels("test") for name in answers.correct}
ends = [
    quantity("regret", n, signed=True) for n in hypervolume_gain(right, measured.samples, **own)
]
print(f"On the test images: {ends[0]} ({ends[1]} to {ends[2]}).")

# %% tags=["nbval-ignore-output"]
pick = fast.iloc[0]
ratios = latency_ratios(measured.samples, to=pick).set_index("candidate")
ratio, *ends = ratios.loc[parent]
print(f"Fastest of what is as accurate as {parent}: {pick},")
print(f"{ratio:.2f} times as fast ({ends[0]:.2f} to {ends[1]:.2f}), in the same rounds.")

# %% tags=["nbval-ignore-output"]
levels = {own.name for own in uniform} & accurate
best = ratios.loc[ratios.index.isin(levels), "latency_ratio"].min()
print(f"The fastest uniform level that is as accurate takes {best:.2f} times as long.")
print(f"The search took {time.monotonic() - began:.0f} s.")
