# %% [markdown]
# # 7. What does each device say?
#
# A latency belongs to the machine it was measured on. Chapter 4 measured every candidate on each device of
# the run by the same program, and chose by the one that decides. Here the devices stand side by side: what
# they are, what one's pick costs on another, how much of a latency is the call itself, and how the
# candidates on the frontier start, scale and stutter.

# %% tags=["parameters"]
run = "quick"
dataset = "fashion-mnist-20k"
data_dir = "data"
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
threads = 1

# %%
import pandas as pd
from IPython.display import display

from edgeopt import plots
from edgeopt.config import ExperimentConfig
from edgeopt.decision import pareto_frontier
from edgeopt.devices import facts_table
from edgeopt.experiments import artifact_of, measure_scaling, runtime_ms
from edgeopt.plots import readings
from edgeopt.schema import quantity
from edgeopt.study import STORE, open_study, use_style

# %% tags=["nbval-ignore-output"]
study = open_study(ExperimentConfig.from_namespace(globals()))
config, folder = study.config, study.folder
use_style()
print(study.heading)

# %% [markdown]
# ## What they are
#
# Clock, temperature and throttling are read before and after the measurement, where a machine tells them.
# A round in which the clock fell is counted: its latencies are those of a slower machine.

# %% tags=["nbval-ignore-output"]
states = [folder.read_json("devices.json")]
states += [folder.read_json(f"devices/{name}/facts.json") for name in folder.taken_in]
facts_table({device: facts for state in states for device, facts in state.items()})

# %% [markdown]
# ## What one's pick costs on another
#
# The regret is how much longer the deciding device's pick takes on another than that one's own pick, in the
# same rounds. Kendall's tau compares the two orders of all candidates: 1 is the same order, 0 none. The
# orders are those of the tenth percentiles, because what else runs on a machine only ever adds time.

# %% tags=["nbval-ignore-output"]
offline = folder.read_taken_in("rows.csv")
everywhere = pd.concat([folder.read_table("sweep_results.csv"), *offline])
compared = folder.read_taken_in("comparison.csv")
elsewhere = pd.concat([folder.read_table("device_comparison.csv"), *compared])
shown = ["candidate", "device", "latency_p50_ms", "device_accuracy", "device_differs"]
others = everywhere[everywhere["device"] != config.decides]
if len(others):
    display(elsewhere, others[[*shown, "device_logits"]])
print(f"{everywhere['device'].nunique()} device(s), decided on {config.decides}")

# %% tags=["nbval-ignore-output"]
for number, (device, own) in enumerate(others.groupby("device"), start=1):
    if own["latency_p50_ms"].notna().any():
        alt = f"Accuracy against latency on {device}."
        picture = folder.save_figure(f"frontier-device{number}", plots.frontier(own), alt=alt)
        display(picture)

# %% [markdown]
# ## The floor of a call
#
# A network of one pooling and one small linear layer, timed in the same rounds, takes what the call from
# Python takes at least. Where a candidate is near it, pruning further cannot make it faster; the runtime
# would have to be called in another way.

# %% tags=["nbval-ignore-output"]
sweep = folder.read_sweep()
frontier = pareto_frontier(sweep, "latency_p50_ms")
calls = frontier[["candidate", "latency_p50_ms", "call_floor_ms", "call_share"]]
display(sweep.groupby("runtime", sort=False)[["call_floor_ms"]].first(), calls)

# %% [markdown]
# What the runtime's own profiler adds up to, on this machine and never scaled, stands beside the clock
# around the call. A profiler slows what it watches, so that its sum can exceed the latency.

# %% tags=["nbval-ignore-output"]
store, images = folder.path(STORE), study.role("validation")
shapes = {model: (1, *split.shape) for model, split in images.items()}
files = [artifact_of(r, store, input_shape=shapes[r.model]) for r in frontier.itertuples()]
inside = [runtime_ms(file, threads=config.threads) for file in files]
folder.write_table("call_floor.csv", calls.assign(runtime_ms=inside))

# %% [markdown]
# ## How they start, scale and stutter
#
# Loading and the first call are what a user waits for once; the 99th percentile is the slow call in a
# hundred. More threads help where there is work for them; a batch shares the call among its images.

# %% tags=["nbval-ignore-output"]
facts, decider = study.device_facts[config.decides], study.devices[config.decides]
options = {"images": images, "store": store, "cores": facts["usable_cores"]}
if len(frontier):
    scaling = folder.write_table("scaling.csv", measure_scaling(frontier, decider, **options))

# %% tags=["nbval-ignore-output"]
if len(frontier):
    ax, alt = plots.scaling(scaling), readings.scaling(scaling)
    display(scaling, folder.save_figure("scaling", ax, alt=alt, numbers=scaling))

# %% [markdown]
# ## Conclusion

# %% tags=["nbval-ignore-output"]
near = calls.sort_values("call_share").iloc[-1] if len(calls) else None
if near is not None:
    share = quantity("call_share", near["call_share"])
    print(f"Of the frontier {near['candidate']} is nearest to its floor: {share} is the call.")
for row in elsewhere.dropna(subset="regret").itertuples():
    regret = quantity("regret", row.regret, signed=True)
    print(f"{row.first_pick} takes {regret} on {row.device} against its own pick, {row.pick}.")
