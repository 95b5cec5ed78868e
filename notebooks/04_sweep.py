# %% [markdown]
# # 4. Which variant should ship?
#
# Every network at every pruning level, in every precision of every runtime, is exported, scored and
# timed the same way. What breaks the memory budget is dropped, the frontier is drawn from the rest, one variant is
# picked on validation images alone, and only then are the test images opened.

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
precisions = ["fp32", "fp16", "bf16", "int8", "int8-dynamic"]
runtimes = ["torch", "onnxruntime", "executorch", "openvino"]
threads = 1
benchmark_batch_size = 1
rounds = 10
calls_per_round = 30
latency_multiplier = 1.0
power_watts = 5.0
memory_budgets_mb = [0.015, 0.03, 0.06]
active_memory_budget_mb = 0.03
accuracy_drop_good = 0.02
accuracy_drop_bad = 0.05
size_reduction_good = 0.5
latency_reduction_good = 0.3
max_recall_drop = 0.1
min_recall = 0.2
gate_confidence = 0.95
latency_tie_cap = 0.05
max_latency_p95_ms = None
max_memory_mb = None
memory = "weights"
max_energy_j = None
energy = "proxy"
min_accuracy = None
max_int8_drop = 0.01

# %%
import numpy as np
import pandas as pd
from IPython.display import display
from matplotlib import pyplot as plt

from edgeopt import plots
from edgeopt.config import ExperimentConfig
from edgeopt.decision import (
    Constraints,
    Gates,
    class_shares,
    decide,
    frontier_probability,
    frontier_twins,
    hypervolume,
    pareto_frontier,
)
from edgeopt.experiments import (
    Target,
    answers_of,
    candidate_table,
    compare_on_test,
    decide_elsewhere,
    device_tables,
    grid,
    host_answers,
    measured_energy_table,
    prepare_candidates,
    prepare_floors,
    pruned_recipes,
    recall_table,
    recover_collapsed,
    recovery_notes,
    score,
    with_test,
)
from edgeopt.hardware import precision_ratios, precision_tradeoff_table
from edgeopt.metrics import confusion_table, disturbance, measured_energy_unavailable
from edgeopt.plots import readings
from edgeopt.study import STORE, open_study, use_style

# %% tags=["nbval-ignore-output"]
study = open_study(ExperimentConfig.from_namespace(globals()))
config, folder = study.config, study.folder
use_style()
print(study.heading)

# %% [markdown]
# The networks come from the two notebooks before: the baselines, and their fine-tuned pruned versions.

# %%
pruned = pruned_recipes(config.models, config.pruning_levels, config.seeds, kinds=["fine-tuned"])
networks = study.kept(study.baselines()) | study.kept(pruned)
models = {recipe.network: network for recipe, network in networks.items()}
print(f"{len(models)} networks, {len(config.pruning_levels)} levels of {len(config.seeds)} seed(s)")

# %% [markdown]
# ## Prepare
#
# A candidate is a network, a runtime and a precision. Preparing one makes its file and the logits it
# gives on the validation images; many are prepared at once. One that fails stays in the table, with
# its error.
#
# An int8 that falls further below its runtime's fp32 than allowed is repaired, not only reported: it
# gets the remedies of notebook 3 in turn, on every runtime, and what comes out joins the others, called
# *repaired*, or *closest* where no remedy sufficed.

# %% tags=["nbval-ignore-output"]
axes = (config.pruning_levels, config.precisions, config.runtimes)
pairs = [(model, seed) for model in config.models for seed in config.seeds]
specs = [s for m, seed in pairs for s in grid(*axes, recipe="fine-tuned", model=m, seed=seed)]
options = study.preparation(STORE)
kept = {"executor": study.workers, "store": study.prepared}
prepared = prepare_candidates(specs, models=models, **kept, **options)
floors = prepare_floors(config.runtimes, len(study.class_names), **kept, **options)
limit = {"executor": study.workers, "max_drop": config.max_int8_drop}
limit |= {"train_quantized": study.quantized_training}
repairs = recover_collapsed(prepared, models, **limit, **options)

# %%
for repair in repairs:
    folder.write_table(f"recovery-{repair.file_stem}.csv", repair.attempts)
print("int8 that fell, and its recovery:", ", ".join(r.candidate.name for r in repairs) or "none")

# %% [markdown]
# ## Measure
#
# The candidates of the first seed are the ones that would ship, and the ones that are timed, on every
# device of the run by the same program. Timing has the device to itself. Every round visits all
# candidates in a new random order, so that a machine that slows down slows all of them alike, and loads
# each of them anew, because where its memory falls moves a latency by a per cent or two. The clock runs
# around the runtime's own call and nothing else. A network that does next to nothing runs along, one a
# runtime: what it takes is the floor, the call itself. Each single call is kept on disk, and read from
# there where only a budget or a gate changed.

# %% tags=["nbval-ignore-output"]
prepared += [repair.candidate for repair in repairs]
candidates = [c for c in prepared if c.spec.seed == config.seeds[0]]
results = study.measure(candidates, stage="sweep", floors=floors)
measured = results[config.decides].measured
own = measured.samples["candidate"].isin([c.name for c in candidates])
samples = folder.write_table("latency_samples.csv", measured.samples[own])
conditions = folder.write_table("conditions.csv", measured.conditions)
print(f"{len(samples):,} timed calls of {len(candidates)} candidates on {config.decides}")

# %% [markdown]
# Was the machine quiet? Every round also times a reference kernel, the same small matrix product on any
# machine, and reads how much of the processor other programs used or the hypervisor took. In the figure
# each thin line is a candidate, relative to its own median. A step that all lines take together is the
# machine's, and cancels in every comparison; a line that moves alone is its own noise.

# %% tags=["nbval-ignore-output"]
print(disturbance(conditions) or "The machine was quiet while latency was measured.")
display(conditions.drop(columns="round").describe().loc[["min", "50%", "max"]].round(3))
alt = readings.drift(samples)
folder.save_figure("drift", plots.drift(samples), alt=alt)

# %% [markdown]
# ## One table
#
# With several seeds, accuracy is their mean, with an interval over trainings and images; agreement and
# macro-F1 are means over the seeds too. Latency does not depend on the weights' values: it is measured
# once per architecture. Memory is four numbers that are never mixed. Weights are what the budget below
# means; peak resident memory is that of a fresh process that loads the file and runs it, its runtime
# library included.

# %% tags=["nbval-ignore-output"]
images, options = study.role("validation"), {"target": config.part(Target)}
options |= {"images": images, "batch_size": config.benchmark_batch_size}
options["answers"] = folder.write_table("host_answers.csv", host_answers(prepared))
options["floors"] = folder.write_table("call_floors.csv", candidate_table(floors))
tables = device_tables(results, prepared, **options)
sweep = tables.pop(config.decides)
fallen = recovery_notes(prepared, repairs, max_drop=config.max_int8_drop)
sweep["int8_recovery"] = [fallen.get(name, "") for name in sweep["candidate"]]
scaled = samples.assign(latency_ms=config.latency_multiplier * samples["latency_ms"])
sweep[["candidate", "weight_bytes", "macs", "int8_mac_share", "accepted", "status"]]

# %% tags=["nbval-ignore-output"]
shown = ["candidate", "accuracy", "agreement", "latency_p50_ms", "latency_p95_ms", "error"]
display(sweep[shown], sweep[sweep["pruning_level"] == 0].filter(regex="candidate|_bytes"))
ax, alt = plots.latency_distribution(scaled, sweep), readings.latency_distribution(sweep)
folder.save_figure("latency_distribution", ax, alt=alt, numbers=sweep[shown])

# %% [markdown]
# ## Budgets
#
# Budgets come before the frontier: a point that does not fit is not a point one can choose. The
# budget here is on weights, in MiB; the others show what a smaller or larger device would take.

# %% tags=["nbval-ignore-output"]
fits = ["accepted", *sweep.filter(like="violates_")]
display(sweep.groupby("precision", sort=False)[fits].sum())
alt, numbers = readings.budgets(sweep), sweep[["candidate", *fits]]
folder.save_figure("budgets", plots.budgets(sweep), alt=alt, numbers=numbers)

# %% [markdown]
# ## The frontier, and how sure it is
#
# A candidate is on the frontier when no accepted one is both faster and at least as accurate.

# %% tags=["nbval-ignore-output"]
frontier = pareto_frontier(sweep, "latency_p50_ms")
twins = frontier_twins(sweep, "latency_p50_ms")["candidate"]
print("equal to one on the frontier in both numbers:", ", ".join(twins) or "none")
folder.write_table("pareto_frontier_latency.csv", frontier)[shown[:-1]]

# %% [markdown]
# Other images and another minute on the machine could have moved it: resampling both gives the
# probability that each candidate belongs there. `accuracy_ties` counts the candidates whose accuracy no
# paired test can tell from its own on these images; the table on disk names them.

# %% tags=["nbval-ignore-output"]
answers = answers_of(prepared, labels=study.validation_labels, class_names=study.class_names)
folder.write_table("right_answers.csv", answers.table())
accepted = {*sweep.loc[sweep["accepted"], "candidate"]}
correct = {name: right for name, right in answers.correct.items() if name in accepted}
certainty = frontier_probability(correct, samples[samples["candidate"].isin(accepted)])
sweep = sweep.merge(certainty[["candidate", "frontier_probability"]], "left", "candidate")
likely = folder.write_table("frontier_probability.csv", certainty).drop(columns="tied_with")
likely.sort_values("frontier_probability", ascending=False).head(8)

# %% [markdown]
# The hypervolume is the area between the frontier and a point that anything should beat: the slowest
# candidate that fits the budget, at the accuracy of guessing. Only areas against the same point can be
# compared.

# %% tags=["nbval-ignore-output"]
if len(frontier):
    reference = (sweep["latency_p50_ms"][sweep["accepted"]].max(), 1 / len(study.class_names))
    area = hypervolume(frontier, x_col="latency_p50_ms", reference=reference)
    print(f"hypervolume {area:.4f} against ({reference[0]:.3f} ms, {reference[1]:.0%})")

# %% [markdown]
# ## Energy, in three tiers
#
# The proxy is latency times a constant power, so that it ranks candidates exactly as mean latency
# does and adds nothing but a unit. The model counts operations and bytes at published 45 nm energies
# (Horowitz, 2014). Measured energy is what the CPU's own counter (RAPL) adds up, where it can be read.

# %% tags=["nbval-ignore-output"]
by_proxy = folder.write_table(
    "pareto_frontier_energy.csv", pareto_frontier(sweep, "energy_proxy_j")
)
by_latency = pareto_frontier(sweep, "latency_ms")
print("proxy and mean latency give the same frontier:", by_proxy.index.equals(by_latency.index))
batches = study.batches(config.benchmark_batch_size)
own = {"threads": config.threads, "device": config.decides}
joules = measured_energy_table(candidates, batches, **own)
sweep = sweep.merge(joules, "left", "candidate")
print("measured energy:", measured_energy_unavailable() or "by RAPL, in energy_measured_j")

# %% tags=["nbval-ignore-output"]
ax = plots.energy_tiers(sweep, unavailable=measured_energy_unavailable())
numbers = sweep[["candidate", "energy_proxy_j", "energy_model_j"]]
alt = readings.energy_tiers(sweep)
folder.save_figure("energy", ax, alt=alt, numbers=numbers)

# %% [markdown]
# ## What a precision costs on average
#
# The mean of a precision is over the runtimes that offer it, and so mixes two choices. The figure takes
# them apart: each candidate is set against fp32 of the same network in the same runtime, and the ratios
# are averaged (geometric mean). Where fewer bits are slower, chapter 5 names the layer that is to blame.

# %% tags=["nbval-ignore-output"]
means = folder.write_table("precision_tradeoffs.csv", precision_tradeoff_table(sweep))
display(means.drop(columns="energy_proxy_j_mean"))
if sweep.loc[sweep["precision"] == "fp32", "latency_p50_ms"].notna().any():
    ratios = folder.write_table("precision_ratios.csv", precision_ratios(sweep))
    ax, alt = plots.precision_ratios(ratios), readings.precision_ratios(ratios)
    display(folder.save_figure("precision_ratios", ax, alt=alt, numbers=ratios))

# %% [markdown]
# ## The decision
#
# Of what fits the budget and the limits, and loses neither too much accuracy nor too much of any
# class's recall, take the best class by the gates, then the fastest. Between candidates as fast as
# the fastest within noise, compared in the same rounds, the smallest weights win.
#
# Chance does not decide: a gate on accuracy or recall is *met* or *broken* only when the whole paired
# interval lies on one side of it. What is *not settled* is not refused, and comes behind what is settled.

# %% tags=["nbval-ignore-output"]
table = recall_table(prepared, study.validation_labels, class_names=study.class_names)
recalls = folder.write_table("per_class.csv", table)
rules = {"gates": config.part(Gates), "constraints": config.part(Constraints)}
decision = decide(sweep, recalls=recalls, answers=answers, samples=samples, **rules)
pick, parent = decision.pick and decision.pick["candidate"], decision.baseline["candidate"]
refused = folder.write_table("rejected.csv", decision.rejected)
refused.head(10)

# %% [markdown]
# Each other device has its own decision, by the same rules from its own numbers; chapter 7 sets them side
# by side. In the figure a dotted line is the least that a call takes of the runtime whose marker is at its
# foot.

# %% tags=["nbval-ignore-output"]
rules |= {"recalls": recalls, "answers": answers}
elsewhere = decide_elsewhere(decision, tables, results, **rules)
folder.write_table("device_comparison.csv", elsewhere)
folder.write_json("devices.json", {name: result.facts_around for name, result in results.items()})
sweep = sweep.merge(decision.standings, "left", "candidate")
ax = plots.frontier(sweep, pick=pick, baseline=parent, refused=refused["candidate"])
alt = f"Validation accuracy against median latency of all candidates. {decision.reason}"
folder.save_figure("frontier", ax, alt=alt, numbers=sweep[shown])

# %% [markdown]
# ## Test, once
#
# The choice is made. Only now are the test images read, and each variant of each seed is scored on
# them once, by the artifact that would ship. Differences from the fp32 parent are taken image by image
# over all seeds, with their interval (one seed: exact McNemar test and Tango's interval; several: images
# and seeds as two levels), corrected for how many variants can differ at all (Holm).
#
# Does the pick differ from what it was chosen over? In the second table a positive difference is the
# lead of the other one (`candidate`) over the pick (`parent`).

# %% tags=["nbval-ignore-output"]
predicted = score(prepared, study.role("test"), executor=study.workers)
labels = study.labels("test")
right = {name: classes == labels for name, classes in predicted.items()}
comparison, against_pick = compare_on_test(right, candidates, decision=decision)
brief = ["images", "p_value", "detectable_difference", "method"]
tests = {"paired_comparison.csv": comparison, "pick_comparison.csv": against_pick}
for name, rows in tests.items():
    shown_rows = folder.write_table(name, rows).drop(columns=brief)
    display(shown_rows.rename(columns={"accuracy": "test_accuracy"}))
tests = {"test": comparison.to_dict("records"), "against_pick": against_pick.to_dict("records")}

# %% tags=["nbval-ignore-output"]
folder.write_json("summary.json", decision.to_dict() | tests | {"busy": disturbance(conditions)})
sweep = with_test(sweep, predicted, labels=labels, class_names=study.class_names)
everywhere = folder.write_table("sweep_results.csv", pd.concat([sweep, *tables.values()]))
everywhere[["candidate", "device", "accuracy", "test_accuracy"]]

# %% [markdown]
# ## Class by class
#
# Before is the baseline, after is the pick (or, when nothing fits, what came nearest), both on the
# test images, means over the seeds. A class that loses much hides well in an average; the thin lines are
# 95% intervals. The confusion matrices are the first seed's.

# %% tags=["nbval-ignore-output"]
chosen = pick or refused["candidate"].iloc[0]
change = class_shares(right, labels, before=parent, after=chosen, names=study.class_names)
alt = readings.per_class_change(change, before=parent, after=chosen)
folder.save_figure("per_class_change", plots.per_class_change(change), alt=alt, numbers=change)

# %% tags=["nbval-ignore-output"]
pair = {"before": predicted[parent][0], "after": predicted[chosen][0]}
names = study.class_names
hits = [np.where(own == labels, "right", "wrong") for own in pair.values()]
display(pd.crosstab(*hits, rownames=["before"], colnames=["after"]))
tables = [confusion_table(labels, own, class_names=names) for own in pair.values()]
_, axes = plt.subplots(1, 3, figsize=(18, 5.6), layout="constrained")
for table, name, ax in zip(tables, (parent, chosen), axes, strict=False):
    plots.confusion_matrix(table, title=name, ax=ax)
ax = plots.confusion_matrix(tables[1], before=tables[0], title="Change (points)", ax=axes[2])
alt = f"Test images, in % of each true class: {parent}, {chosen}, and the change in points."
numbers = pd.concat(tables, keys=(parent, chosen), names=["candidate"]).reset_index()
folder.save_figure("confusion", ax, alt=alt, numbers=numbers)

# %% [markdown]
# What does the difference look like? Images that the baseline gets right and the pick gets wrong: above
# each its true class, then the pick's answer.

# %% tags=["nbval-ignore-output"]
split = study.role("test")[sweep.set_index("candidate").loc[chosen, "model"]]
ax = plots.lost_images(split, **pair, names=names)
alt = f"Test images that {parent} gets right and {chosen} gets wrong, with the class of each."
folder.save_figure("gallery", ax, alt=alt)

# %% [markdown]
# ## Conclusion

# %% tags=["nbval-ignore-output"]
print(decision.reason)
print("Runner-up:", decision.what_it_would_take)
final = sweep.set_index("candidate")
full = final[(final["pruning_level"] == 0) & (final["precision"] == "fp32")]["latency_p50_ms"]
if pick and full.notna().any():
    gain = full.min() / final.loc[pick, "latency_p50_ms"]
    print(f"Its accuracy on the test images, scored once: {final.loc[pick, 'test_accuracy']:.1%}.")
    print(f"Without compression the fastest, {full.idxmin()}, takes {gain:.2f} times as long.")
share = f"{final['accepted'].sum()} of {len(final)} candidates"
print(f"{share} fit the budget of {config.active_memory_budget_mb:g} MiB of weights.")
