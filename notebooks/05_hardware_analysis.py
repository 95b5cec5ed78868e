# %% [markdown]
# # 5. Where does the time go, and what is this machine's limit?
#
# A latency says how long, not why. This notebook counts what every layer must compute and move, sets
# it beside what the layer was measured to take, and both against the ceilings of this very machine.

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
benchmark_batch_size = 1
memory_bandwidth_gbps = None
peak_compute_gmacs = None
latency_multiplier = 1.0

# %%
import numpy as np
import pandas as pd
from IPython.display import display

from edgeopt import plots
from edgeopt.config import ExperimentConfig
from edgeopt.experiments import artifact_of
from edgeopt.hardware import (
    configure_ceilings,
    count_layers,
    estimate_on_devices,
    load_devices,
    measure_ceilings,
    measure_networks,
    operator_table,
    place_on_roofline,
    profile_candidates,
)
from edgeopt.metrics import read_counters
from edgeopt.plots import readings
from edgeopt.runtimes import load_session
from edgeopt.schema import file_stem
from edgeopt.study import STORE, open_study, use_style
from edgeopt.system import host_facts

# %% tags=["nbval-ignore-output"]
study = open_study(ExperimentConfig.from_namespace(globals()))
config, folder = study.config, study.folder
use_style()
print(study.heading)

# %%
first = [recipe for recipe in study.baselines() if recipe.seed == config.seeds[0]]
networks = study.kept(first)
networks = {recipe.model: network for recipe, network in networks.items()}
shapes = {model: batch.shape for model, batch in study.batches(config.benchmark_batch_size).items()}

# %% tags=["nbval-ignore-output"]
sweep = folder.read_sweep("host")
print(f"latencies of {sweep['device'].iloc[0]}; layers, ceilings and counters of this machine")
ran, store = sweep[sweep["status"] == "ok"], folder.path(STORE)
unpruned = ran[ran["pruning_level"] == 0]

# %% [markdown]
# ## What each layer must do
#
# Multiply-accumulates (MACs; one MAC is two floating-point operations) and bytes are counted from the
# shapes alone. Arithmetic intensity is their quotient: how much work each byte moved brings with it.

# %%
counted, uncounted = count_layers(networks, shapes=shapes)
print("not counted:", uncounted or "none")
columns = ["model", "layer", "kind", "output_shape", "parameters", "macs", "arithmetic_intensity"]
counted[columns].round(3)

# %% [markdown]
# ## What each layer took
#
# Timed in eager torch, layer by layer. If time followed MACs, the two bars of each layer would be of
# equal length; where they are not, the estimate alone would have misled.

# %% tags=["nbval-ignore-output"]
layers = measure_networks(
    counted["model"].unique(), networks, shapes=shapes, threads=config.threads
)
layers = folder.write_table("layerwise_breakdown.csv", layers)

# %% tags=["nbval-ignore-output"]
for model, rows in layers.groupby("model", sort=False):
    ax = plots.layer_breakdown(rows)
    alt = readings.layer_breakdown(rows, model=model)
    display(folder.save_figure(f"layers-{file_stem(model)}", ax, alt=alt, numbers=rows))

# %% [markdown]
# ## The same, inside each runtime
#
# Runtimes fuse and reorder layers, so their own profilers are asked. `macs_share` is the estimate,
# `share` the measured part of the time; *everything else* is pooling, activations and conversion.
# ExecuTorch and OpenVINO write whole microseconds: of short operators their shares are coarse.

# %%
chosen = unpruned[unpruned["precision"].isin(["fp32", "int8"]) & (unpruned["runtime"] != "torch")]
artifacts = {
    r.candidate: artifact_of(r, store, input_shape=shapes[r.model]) for r in chosen.itertuples()
}
owners = chosen.set_index("candidate")["model"]
profile, unavailable = profile_candidates(artifacts, counted, owners=owners, threads=config.threads)
print(f"profiled: {profile['candidate'].nunique()}; unavailable: {unavailable or 'none'}")

# %% tags=["nbval-ignore-output"]
folder.write_table("runtime_profiles.csv", profile).groupby("candidate", sort=False).head(12)

# %% [markdown]
# Is int8 slower anywhere, although it moves a quarter of the bytes? The layer that int8 slows most, by
# network and runtime:

# %% tags=["nbval-ignore-output"]
kinds = chosen.set_index("candidate")[["model", "runtime", "precision"]]
times = profile.join(kinds, on="candidate").pivot_table(
    "measured_ms", ["model", "runtime", "layer"], "precision", sort=False
)
slower = times.assign(slower=times.get("int8", np.nan) - times.get("fp32", np.nan)).dropna()
worst = slower.sort_values("slower").groupby(["model", "runtime"], sort=False).tail(1)
worst.add_suffix(" (ms)")

# %% [markdown]
# What the operators take together need not be what a call takes: the profiler itself costs time inside,
# and a call has work outside its operators.

# %% tags=["nbval-ignore-output"]
together = profile.groupby("candidate", sort=False)["measured_ms"].sum().rename("operators_ms")
calls = (
    chosen.set_index("candidate")["latency_p50_ms"].rename("call_ms") / config.latency_multiplier
)
pd.concat([together, calls], axis=1, join="inner")

# %% [markdown]
# ## Inside the file to ship
#
# The operators that the pick's runtime executes, with the precision and MACs of those that multiply and,
# where it has a profiler, what each takes.

# %% tags=["nbval-ignore-output"]
pick = folder.read_json("summary.json")["pick"] or {}
for row in ran[ran["candidate"] == pick.get("candidate")].itertuples():
    artifact = artifact_of(row, store, input_shape=shapes[row.model])
    operators = operator_table(artifact, threads=config.threads)
    display(folder.write_table("pick_operators.csv", operators))

# %% [markdown]
# ## The machine's ceilings
#
# Not from a data sheet: the best matrix product or convolution per precision and the best copy that
# this machine managed just now, on as many threads as the candidates were timed with. A configured
# value takes the place of a measured one, and is labelled so.

# %% tags=["nbval-ignore-output"]
facts = host_facts()
cache_bytes = facts["l2_bytes"] if isinstance(facts["l2_bytes"], int) else None
measured = measure_ceilings(threads=config.threads, cache_bytes=cache_bytes)

# %% tags=["nbval-ignore-output"]
ceilings = configure_ceilings(
    measured,
    memory_bandwidth_gbps=config.memory_bandwidth_gbps,
    peak_compute_gmacs=config.peak_compute_gmacs,
)
folder.write_table("ceilings.csv", ceilings)

# %% [markdown]
# ## Under the roofline
#
# Left of the ridge, where slope and roof meet, moving bytes is the limit; right of it, computing is, and
# `bound` says which roof is above a point. How near it is, utilization says: far below both, neither
# limits it. What the call itself takes, chapter 7 measures.

# %% tags=["nbval-ignore-output"]
timed = unpruned.assign(latency_ms=unpruned["latency_p50_ms"] / config.latency_multiplier)
known = timed[timed["model"].isin(counted["model"])]
columns = ["candidate", "arithmetic_intensity", "achieved_gmacs", "compute_utilization", "bound"]
options = {"shapes": shapes, "ceilings": ceilings, "cache_bytes": cache_bytes}
if len(known):
    summary = place_on_roofline(known, networks, **options)
    display(folder.write_table("hardware_summary.csv", summary)[columns])

# %% tags=["nbval-ignore-output"]
if len(known):
    ax = plots.roofline(summary.assign(runtime=known["runtime"].to_numpy()), ceilings)
    alt = readings.roofline(summary)
    display(folder.save_figure("roofline", ax, alt=alt, numbers=summary[columns]))

# %% [markdown]
# ## Counters
#
# Where Linux perf is allowed to count, instructions and cache misses of the fastest unpruned candidate
# follow; where it is not, the reason does.

# %% tags=["nbval-ignore-output"]
fastest = unpruned.loc[unpruned["latency_p50_ms"].idxmin()]
shape = shapes[fastest["model"]]
session = load_session(artifact_of(fastest, store, input_shape=shape), threads=config.threads)
with session.bound(np.zeros(shape, np.float32)) as call:
    counters = read_counters(lambda: [call() for _ in range(1000)])
folder.write_table("counters.csv", counters)

# %% [markdown]
# ## Integers on this CPU, and elsewhere
#
# Static int8 multiplies unsigned activations with signed weights. CPUs without the right instruction
# sum two such products in 16 bits and can saturate.

# %% tags=["nbval-ignore-output"]
scheme = study.int8_scheme
print(f"{facts['cpu']}: {', '.join(facts['isa'])}")
print(f"Scheme {scheme.name}: {scheme.reason}. {scheme.note}")

# %% [markdown]
# ## What if: other devices
#
# **Estimates, not measurements.** One core, sustained rates from the device table; every constant
# there has a source and says whether it is from a data sheet, measured, or assumed. The low end is what
# the device's rates allow at best; the high end is as far above it as the candidate was measured above
# this machine's own bound, because the call itself and layers that do not multiply cost time everywhere.
# On microcontrollers only runtimes are estimated that run without an operating system: LiteRT, and
# ExecuTorch from a file exported for its portable or Cortex-M kernels.

# %%
devices = folder.write_table("devices.csv", load_devices())
pd.crosstab(devices["device"], devices["kind"])

# %% tags=["nbval-ignore-output"]
summed = folder.read_json("summary.json")
roles = [summed[role]["candidate"] for role in ("baseline", "pick", "runner_up") if summed[role]]
wanted = sweep[sweep["candidate"].isin(roles) & (sweep["status"] == "ok")]
here = wanted["latency_p50_ms"] / config.latency_multiplier
wanted = wanted.assign(macs=config.benchmark_batch_size * wanted["macs"], latency_p50_ms=here)

# %% tags=["nbval-ignore-output"]
table = estimate_on_devices(wanted, devices=devices, ceilings=ceilings)
estimates = folder.write_table("device_estimates.csv", table)
named = wanted[["candidate", "runtime", "pruning_level"]]
ax = plots.device_estimates(estimates.merge(named, on="candidate"))
alt = "Estimated, not measured, latency of one call on other devices, from low to high end."
folder.save_figure("device_estimates", ax, alt=alt, numbers=estimates)

# %% tags=["nbval-ignore-output"]
estimates.assign(left=100 * estimates["headroom"]).pivot_table(
    "left", "device", "candidate", sort=False
)

# %% [markdown]
# Above: how much of the device's scarcer memory, RAM or flash, a candidate leaves, in %, with nothing else
# in it; below 0 it does not fit.
#
# ## Conclusion

# %% tags=["nbval-ignore-output"]
for model, rows in layers.groupby("model", sort=False):
    busiest = rows.loc[rows["measured_ms"].idxmax()]
    print(
        f"{model}: {busiest['layer']} has {busiest['macs'] / rows['macs'].sum():.0%} of the MACs and "
        f"takes {busiest['measured_share']:.0%} of the layers' time in eager torch."
    )

# %% tags=["nbval-ignore-output"]
if len(known):
    best = summary.loc[summary["latency_ms"].idxmin()]
    print(
        f"The fastest unpruned candidate, {best['candidate']}, does {best['achieved_gmacs']:.1f} "
        f"GMAC/s, {best['compute_utilization']:.0%} of what this machine's {best['precision']} "
        f"ceiling allows and {best['bandwidth_utilization']:.0%} of its {best['memory_level']} "
        "bandwidth."
    )
print(f"{len(uncounted)} network(s) could not be counted layer by layer.")
