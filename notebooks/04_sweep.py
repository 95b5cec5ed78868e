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
train_subset = 4000
calibration_subset = None
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
models = ["small_cnn"]
weights = None
allow_chance = False
conv1_channels = 16
conv2_channels = 32
epochs = 6
finetune_epochs = 2
learning_rate = 0.003
channel_multiple = None
pruning_levels = [0.0, 0.5, 0.7]
precisions = ["fp32", "fp16", "bf16", "int8", "int8-dynamic"]
runtimes = ["torch", "onnxruntime", "executorch", "openvino"]
calibration_batches = 10
threads = 1
benchmark_batch_size = 1
benchmark_repeats = 10
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
from concurrent.futures import ThreadPoolExecutor

import pandas as pd
from IPython.display import display

from edgeopt import plots
from edgeopt.decision import class_shares
from edgeopt.hardware import precision_tradeoff_table
from edgeopt.experiments import grid, prepare_candidates, score, testable_parents
from edgeopt.metrics import disturbance
from edgeopt.config import ExperimentConfig
from edgeopt.decision import decide
from edgeopt.metrics import measured_energy_unavailable
from edgeopt.experiments import accuracy_over_seeds, answers_of, mean_macro_f1, recall_table
from edgeopt.experiments import sweep_table, with_seeds
from edgeopt.decision import Constraints, Gates
from edgeopt.experiments import measure_candidates, measured_energy_table, peak_rss_table
from edgeopt.experiments import repair_fallen
from edgeopt.metrics import confusion_table
from edgeopt.decision import frontier_twins, pareto_frontier
from edgeopt.decision import frontier_probability, hypervolume, paired_comparison
from edgeopt.study import open_study
from edgeopt.experiments import pruned_recipes
from edgeopt.system import process_pool

# %%
config = ExperimentConfig.from_namespace(globals())
study = open_study(config)
folder = study.folder
plots.use_style()
pd.set_option("display.max_colwidth", None)

# %% [markdown]
# The networks come from the two notebooks before: the baselines, and their fine-tuned pruned versions.

# %%
pruned = pruned_recipes(config.models, config.pruning_levels, config.seeds, kinds=["fine-tuned"])
networks = study.kept(study.baselines(), made_by="01_baseline_training")
networks |= study.kept(pruned, made_by="02_pruning")
models = {recipe.network: network for recipe, network in networks.items()}
labels, validation = study.validation_labels, study.role("validation")
print(f"{len(models)} networks, {len(config.pruning_levels)} levels of {len(config.seeds)} seed(s)")

# %% [markdown]
# ## Prepare
#
# A candidate is a network, a runtime and a precision. Preparing one makes its file and the logits it
# gives on the validation images; many are prepared at once. One that fails stays in the table, with
# its error. The first seed's candidates are the ones that would ship.

# %%
axes = (config.pruning_levels, config.precisions, config.runtimes)
pairs = [(model, seed) for model in config.models for seed in config.seeds]
specs = [s for m, seed in pairs for s in grid(*axes, recipe="fine-tuned", model=m, seed=seed)]
print(f"{len(specs)} candidates to prepare")

# %%
options = study.preparation("artifacts/sweep")

# %% tags=["nbval-ignore-output"]
with process_pool() as pool:
    prepared = prepare_candidates(
        specs, executor=pool, store=study.prepared, models=models, **options
    )

# %% [markdown]
# An int8 that falls further below fp32 than allowed is repaired, not only reported: ONNX Runtime's goes
# up the ladder of remedies of notebook 3, and what comes out joins the others, called *repaired*.

# %%
repairs = repair_fallen(prepared, models, max_accuracy_drop=config.max_int8_drop, **options)
for repair in repairs:
    folder.write_table(f"ladder-{repair.file_stem}.csv", repair.ladder)
prepared += [repair.candidate for repair in repairs]
print("int8 that fell and was repaired:", ", ".join(r.candidate.name for r in repairs) or "none")

# %%
candidates = [c for c in prepared if c.spec.seed == config.seeds[0]]
print(f"{len(candidates)} candidates to measure, on {len(config.runtimes)} runtimes")

# %% [markdown]
# ## Measure
#
# Timing has the machine to itself. Every round visits all candidates in a new random order, so that
# a machine that slows down slows all of them alike, and loads each of them anew, because where its
# memory falls moves a latency by a per cent or two. The clock runs around the runtime's own call and
# nothing else. Each single call is kept on disk.

# %%
batches = study.batches(config.benchmark_batch_size)
measured = measure_candidates(
    candidates,
    batches,
    threads=config.threads,
    rounds=config.benchmark_repeats,
    calls_per_round=config.calls_per_round,
)
samples, conditions = measured.samples, measured.conditions
folder.write_table("latency_samples.csv", samples)
folder.write_table("conditions.csv", conditions)
print(f"{len(samples):,} timed calls")

# %% [markdown]
# Was the machine quiet? Every round also times a reference kernel, the same small matrix product on any
# machine, and reads how much of the processor other programs used or the hypervisor took.

# %% tags=["nbval-ignore-output"]
print(disturbance(conditions) or "The machine was quiet while latency was measured.")
conditions.drop(columns="round").describe().loc[["min", "50%", "max"]].round(3)

# %% [markdown]
# Each thin line is a candidate, relative to its own median. A step that all lines take together is
# the machine's, and cancels in every comparison; a line that moves alone is its own noise.

# %% tags=["nbval-ignore-output"]
ax = plots.drift(samples)
alt = "Median latency of each round relative to the candidate's own median."
folder.save_figure("drift", ax, alt=alt)

# %% [markdown]
# Memory is four numbers that are never mixed. Weights are what the budget below means; peak resident
# memory is that of a fresh process that loads the file and runs it, its runtime library included.

# %%
with ThreadPoolExecutor(2) as pool:
    resident = peak_rss_table(candidates, executor=pool)

# %% [markdown]
# ## One table
#
# With several seeds, accuracy is their mean, with an interval over trainings and images; agreement and
# macro-F1 are means over the seeds too. Latency does not depend on the weights' values: it is measured
# once per architecture.

# %%
sweep = sweep_table(
    candidates,
    measured,
    batch_size=config.benchmark_batch_size,
    power_watts=config.power_watts,
    latency_multiplier=config.latency_multiplier,
    memory_budgets_mb=config.memory_budgets_mb,
    active_memory_budget_mb=config.active_memory_budget_mb,
)
sweep = with_seeds(sweep, prepared, labels=labels).merge(resident, "left", "candidate")
columns = ["candidate", "weight_bytes", "macs", "int8_mac_share", "accepted", "status"]
sweep[columns]

# %% tags=["nbval-ignore-output"]
shown = ["candidate", "accuracy", "agreement", "latency_p50_ms", "latency_p95_ms", "error"]
sweep[shown].round(4)

# %% tags=["nbval-ignore-output"]
memories = ["artifact_bytes", "weight_bytes", "peak_activation_bytes", "peak_rss_bytes"]
sweep.loc[sweep["pruning_level"] == 0, ["candidate", *memories]]

# %% tags=["nbval-ignore-output"]
ax = plots.latency_distribution(samples, sweep)
alt = "Every latency sample and its box per candidate, fastest on top."
folder.save_figure("latency_distribution", ax, alt=alt, numbers=sweep[shown])

# %% [markdown]
# ## Budgets
#
# Budgets come before the frontier: a point that does not fit is not a point one can choose. The
# budget here is on weights, in MiB; the others show what a smaller or larger device would take.

# %%
violations = [name for name in sweep if name.startswith("violates_")]
sweep.groupby("precision", sort=False)[["accepted", *violations]].sum()

# %% tags=["nbval-ignore-output"]
ax = plots.budgets(sweep)
alt = "Weight memory of each pruning level and precision against the budgets."
numbers = sweep[["candidate", "memory_mb", "accepted", *violations]]
folder.save_figure("budgets", ax, alt=alt, numbers=numbers)

# %% [markdown]
# ## The frontier, and how sure it is
#
# A candidate is on the frontier when no accepted one is both faster and at least as accurate. Other
# images and another minute on the machine could have moved it: resampling both gives the probability
# that each candidate belongs there. `accuracy_ties` counts the candidates whose accuracy no paired
# test can tell from its own on these images; the table on disk names them.

# %% tags=["nbval-ignore-output"]
frontier = pareto_frontier(sweep, "latency_p50_ms")
folder.write_table("pareto_frontier_latency.csv", frontier)
twins = frontier_twins(sweep, "latency_p50_ms")
print("equal to one on the frontier in both numbers:", ", ".join(twins["candidate"]) or "none")
frontier[shown[:-1]].round(4)

# %% tags=["nbval-ignore-output"]
answers = answers_of(prepared, labels=labels, class_names=study.class_names)
accepted = [name for name in sweep.loc[sweep["accepted"], "candidate"] if name in answers.correct]
certainty = frontier_probability(
    {name: answers.correct[name] for name in accepted}, samples[samples["candidate"].isin(accepted)]
)
folder.write_table("frontier_probability.csv", certainty)
sweep = sweep.merge(certainty[["candidate", "frontier_probability"]], "left", "candidate")
ties = certainty["tied_with"].str.count("[^, ]+")
likely = certainty.drop(columns="tied_with").assign(accuracy_ties=ties)
likely.sort_values("frontier_probability", ascending=False).head(8).round(4)

# %% [markdown]
# The hypervolume is the area between the frontier and a point that anything should beat: the slowest
# accepted candidate at the accuracy of guessing. Only areas against the same point can be compared.

# %% tags=["nbval-ignore-output"]
if frontier.empty:
    print("no candidate fits the budget: there is no frontier and no hypervolume")
else:
    slowest = sweep.loc[sweep["accepted"], "latency_p50_ms"].max()
    reference = (slowest, 1 / len(study.class_names))
    area = hypervolume(frontier, x_col="latency_p50_ms", reference=reference)
    print(f"hypervolume {area:.4f} against ({reference[0]:.3f} ms, {reference[1]:.0%})")

# %% [markdown]
# ## Energy, in three tiers
#
# The proxy is latency times a constant power, so that it ranks candidates exactly as mean latency
# does and adds nothing but a unit. The model counts operations and bytes at published 45 nm energies
# (Horowitz, 2014). Measured energy is what the CPU's own counter (RAPL) adds up, where it can be read.

# %% tags=["nbval-ignore-output"]
by_proxy = pareto_frontier(sweep, "energy_proxy_j")
by_latency = pareto_frontier(sweep, "latency_ms")
folder.write_table("pareto_frontier_energy.csv", by_proxy)
print("proxy and mean latency give the same frontier:", by_proxy.index.equals(by_latency.index))

# %% tags=["nbval-ignore-output"]
joules = measured_energy_table(candidates, batches, threads=config.threads)
sweep = sweep.merge(joules, "left", "candidate")
print("measured energy:", measured_energy_unavailable() or "by RAPL, in energy_measured_j")

# %% tags=["nbval-ignore-output"]
ax = plots.energy_tiers(sweep, unavailable=measured_energy_unavailable())
alt = "Energy model against energy proxy for every candidate; both are estimates."
numbers = sweep[["candidate", "energy_proxy_j", "energy_model_j"]]
folder.save_figure("energy", ax, alt=alt, numbers=numbers)

# %% [markdown]
# ## What a precision costs on average
#
# The mean of a precision is over the runtimes that offer it, and so mixes two choices. The figure takes
# them apart: each is set against fp32 in the same runtime.

# %% tags=["nbval-ignore-output"]
tradeoffs = precision_tradeoff_table(sweep)
folder.write_table("precision_tradeoffs.csv", tradeoffs)
tradeoffs.drop(columns="energy_proxy_j_mean").round(4)

# %% tags=["nbval-ignore-output"]
by_runtime = precision_tradeoff_table(sweep, by=("runtime", "precision"))
folder.write_table("runtime_tradeoffs.csv", by_runtime)
ax = plots.precision_tradeoffs(by_runtime)
alt = "Mean latency and weights of each precision relative to fp32 in the same runtime."
folder.save_figure("precision_tradeoffs", ax, alt=alt, numbers=by_runtime)

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
recalls = recall_table(prepared, labels, class_names=study.class_names)
folder.write_table("per_class.csv", recalls)
decision = decide(
    sweep,
    gates=config.part(Gates),
    constraints=config.part(Constraints),
    recalls=recalls,
    answers=answers,
    samples=samples,
)
folder.write_table("rejected.csv", decision.rejected)
decision.rejected.head(10)

# %% tags=["nbval-ignore-output"]
pick = decision.pick and decision.pick["candidate"]
ax = plots.frontier(
    sweep,
    pick=pick,
    baseline=decision.baseline["candidate"],
    refused=decision.rejected["candidate"],
)
alt = f"Validation accuracy against median latency of all candidates. {decision.reason}"
folder.save_figure("frontier", ax, alt=alt, numbers=sweep[shown])

# %% [markdown]
# ## Test, once
#
# The choice is made. Only now are the test images read, and each variant of each seed is scored on
# them once, by the artifact that would ship. Differences from the fp32 parent are taken image by image
# over all seeds, with their interval (one seed: exact McNemar test and Tango's interval; several: images
# and seeds as two levels), corrected for how many variants can differ at all (Holm).

# %%
with process_pool() as pool:
    predicted = score(prepared, study.role("test"), executor=pool)
test_labels = study.labels("test")
right = {name: classes == test_labels for name, classes in predicted.items()}

# %% tags=["nbval-ignore-output"]
paired = {name: rows for name, rows in right.items() if len(rows) == len(config.seeds)}
parents = testable_parents([c for c in candidates if c.name in paired])
comparison = paired_comparison(paired, parent=parents)
folder.write_table("paired_comparison.csv", comparison)
brief = ["images", "p_value", "detectable_difference", "method"]
comparison.drop(columns=brief).round(4)

# %% [markdown]
# Does the pick differ from what it was chosen over? A positive difference is the lead of the other one
# (`candidate`) over the pick (`parent`).

# %% tags=["nbval-ignore-output"]
others = [row["candidate"] for row in (decision.baseline, decision.runner_up) if row]
rivals = {name: pick for name in others if {name, pick} <= set(paired) and name != pick}
against_pick = paired_comparison(paired, parent=rivals)
folder.write_table("pick_comparison.csv", against_pick)
against_pick.drop(columns=brief).round(4)

# %% tags=["nbval-ignore-output"]
over_seeds = accuracy_over_seeds(right).drop(columns="seeds").set_index("candidate")
over_seeds["macro_f1"] = mean_macro_f1(predicted, test_labels, class_names=study.class_names)
sweep = sweep.join(over_seeds.add_prefix("test_"), on="candidate")
sweep["remedy"] = sweep["candidate"].map({r.candidate.name: r.remedy for r in repairs})
folder.write_table("sweep_results.csv", sweep)
tests = {"test": comparison.to_dict("records"), "against_pick": against_pick.to_dict("records")}
folder.write_json("summary.json", decision.to_dict() | tests | {"busy": disturbance(conditions)})
tested = ["candidate", "accuracy", "test_accuracy", "test_accuracy_low", "test_accuracy_high"]
sweep.loc[sweep["candidate"].isin([*others, pick]), tested].round(4)

# %% [markdown]
# ## Class by class
#
# Before is the baseline, after is the pick (or, when nothing fits, what came nearest), both on the
# test images, means over the seeds. A class that loses much hides well in an average; the thin lines are
# 95 % intervals. The confusion matrices are the first seed's.

# %% tags=["nbval-ignore-output"]
parent = decision.baseline["candidate"]
chosen = pick or decision.rejected["candidate"].iloc[0]
before_after = class_shares(
    right, test_labels, before=parent, after=chosen, names=study.class_names
)

# %% tags=["nbval-ignore-output"]
ax = plots.per_class_change(before_after)
alt = f"Recall of each class on the test images, before ({parent}) and after ({chosen})."
folder.save_figure("per_class_change", ax, alt=alt, numbers=before_after)

# %% tags=["nbval-ignore-output"]
for when, name in (("before", parent), ("after", chosen)):
    if name in predicted:
        classes = predicted[name][0]
        confusion = confusion_table(test_labels, classes, class_names=study.class_names)
        title = f"{when.capitalize()} compression, {len(test_labels):,} test images"
        ax = plots.confusion_matrix(confusion, title=title)
        alt = f"Confusion matrix of {name} on the test images."
        numbers = confusion.reset_index()
        display(folder.save_figure(f"confusion_{when}", ax, alt=alt, numbers=numbers))

# %% [markdown]
# ## Conclusion

# %% tags=["nbval-ignore-output"]
print(decision.reason)
print("Runner-up:", decision.what_it_would_take)
if pick:
    tested = over_seeds.loc[pick, "accuracy"]
    print(f"On the test images, scored once, {pick} has an accuracy of {tested:.1%}.")

# %% tags=["nbval-ignore-output"]
full = sweep[(sweep["pruning_level"] == 0) & (sweep["precision"] == "fp32")]
if pick and full["latency_p50_ms"].notna().any():
    fastest = full.loc[full["latency_p50_ms"].idxmin(), ["candidate", "latency_p50_ms"]]
    gain = fastest["latency_p50_ms"] / decision.pick["latency_p50_ms"]
    print(f"It is {gain:.2f} times as fast as the fastest without compression, {fastest.iloc[0]}.")
print(
    f"{sweep['accepted'].sum()} of {len(sweep)} candidates fit the budget of "
    f"{config.active_memory_budget_mb:g} MiB of weights."
)
