# %% [markdown]
# # 6. Which backbone should ship, in which precision, and what does INT8 cost it?
#
# Mobile backbones promise accuracy for few operations; int8 promises a quarter of the bytes. What
# neither promises is that the two go together. This notebook trains the backbones, makes every
# variant of each, mends the int8 that falls, prunes one of them by half, and picks what to ship.

# %% tags=["parameters"]
run = "quick"
dataset = "fashion-mnist-20k"
data_dir = "data"
train_subset = 4000
calibration_subset = 640
val_subset = 1000
test_subset = 1500
batch_size = 64
seeds = [0]
backbones = ["mobilenet_v3_small", "mobilenet_v3_large", "efficientnet_b0"]
backbone_weights = None
image_size = 64
backbone_epochs = 2
finetune_epochs = 2
learning_rate = 0.003
pruning_criteria = ["l1", "l2", "taylor", "random"]
precisions = ["fp32", "fp16", "bf16", "int8", "int8-dynamic"]
runtimes = ["torch", "onnxruntime", "executorch", "openvino"]
calibration_batches = 10
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
from functools import partial

import numpy as np
import pandas as pd
import torch
from IPython.display import display

from edgeopt import plots
from edgeopt.backbones import ByValue, Workshop, int8_cost, markdown_table
from edgeopt.backbones import prune_backbone, train_backbones
from edgeopt.benchmark import measure_latency
from edgeopt.candidates import fp32_parents, grid, prepare_candidates, score, testable_parents
from edgeopt.conditions import disturbance
from edgeopt.config import ExperimentConfig
from edgeopt.data import load_splits
from edgeopt.decision import decide, find_baseline
from edgeopt.diagnosis import diagnose
from edgeopt.equalization import fold_batch_norm, plant_collapse
from edgeopt.experiments import accuracy_over_seeds, answers_of, candidate_table, recall_table
from edgeopt.experiments import sweep_table, with_seeds
from edgeopt.export import export_artifact
from edgeopt.gates import Constraints, Gates
from edgeopt.host import host_facts, int8_scheme
from edgeopt.latency import latency_statistics
from edgeopt.links import find_links
from edgeopt.measuring import measure_candidates, peak_rss_table
from edgeopt.mending import mend, mend_candidate
from edgeopt.metrics import per_class_table, quality_row
from edgeopt.pruning import count_macs
from edgeopt.quantization import quantization_aware_train
from edgeopt.recipes import Schedule, process_pool
from edgeopt.rundir import open_run
from edgeopt.runtimes import load_session
from edgeopt.selection import pareto_frontier
from edgeopt.statistics import frontier_probability, paired_comparison
from edgeopt.training import predict_logits

# %%
config = ExperimentConfig.from_namespace(globals())
folder = open_run(config.run)
plots.use_style()

# %% [markdown]
# ## The images
#
# Backbones are built for colour and for more pixels: the images are scaled up, and grey is repeated
# three times. That adds no information, only the shapes that the backbones were made for.

# %%
load = partial(
    load_splits,
    config.dataset,
    train_subset=config.train_subset,
    calibration_subset=config.calibration_subset,
    val_subset=config.val_subset,
    test_subset=config.test_subset,
    data_dir=config.data_folder,
    image_size=config.image_size,
    channels=3,
)
splits = load()

# %%
images = splits.validation.images.numpy()
labels = splits.validation.labels.numpy()
roles = ["train", "calibration", "validation", "test"]
counts = pd.Series({role: len(getattr(splits, role)) for role in roles}, name="images")
origin = {"name": splits.name, "checksum": splits.checksum, "counts": counts.to_dict()}
folder.write_json("data.json", origin)
counts.to_frame()

# %% [markdown]
# ## Training
#
# Each backbone is trained once per seed by the same recipe: Adam, with the learning rate annealed to
# zero by a cosine. The weights are kept beside the data, under a digest of everything that decides
# them, so that a second run with the same parameters trains nothing.

# %%
rate, batch = config.learning_rate, config.batch_size
schedule = Schedule(config.backbone_epochs, config.finetune_epochs, rate, batch)
trained = config.data_folder / "trained"
workshop = Workshop(load, schedule, trained, config.backbone_weights)
with process_pool() as pool:
    networks = train_backbones(config.backbones, workshop, seeds=config.seeds, executor=pool)

# %%
predicted = {
    key: predict_logits(network, splits.validation.images).argmax(1).numpy()
    for key, network in networks.items()
}

# %% tags=["nbval-ignore-output"]
classes = len(splits.class_names)
quality = pd.DataFrame(
    {"model": name, "seed": seed, **quality_row(labels, found, num_classes=classes)}
    for (name, seed), found in predicted.items()
)
folder.write_table("backbone_quality.csv", quality)
quality.round(4)

# %% [markdown]
# One number per backbone hides which classes it owes it to. Read the table along a row: a class that
# is hard for all of them is hard in the images, one that is hard for a single backbone is its own.

# %% tags=["nbval-ignore-output"]
by_class = pd.concat(
    per_class_table(labels, found, class_names=splits.class_names).assign(model=name, seed=seed)
    for (name, seed), found in predicted.items()
)
folder.write_table("backbone_per_class.csv", by_class)
by_class.pivot_table("f1", "class_name", "model", sort=False).round(3)

# %% [markdown]
# ## Every variant of every backbone
#
# Each is exported to the file that its runtime loads, its label is proved from the graph that is
# executed, and it is scored by that file, in that runtime.

# %%
store = folder.folder("artifacts/backbones")
scheme = int8_scheme(host_facts()["isa"])
axes = ([0.0], config.precisions, config.runtimes)
common = {
    "calibration_loader": splits.calibration.loader(config.batch_size),
    "calibration_batches": config.calibration_batches,
    "images": images,
    "labels": labels,
    "directory": store,
    "scheme": scheme,
}

# %%
prepared = []
with process_pool() as pool:
    for (name, seed), network in networks.items():
        specs = grid(*axes, model=name, seed=seed)
        models = ByValue({(seed, 0.0): network})
        prepared += prepare_candidates(specs, executor=pool, models=models, **common)

# %%
first = config.seeds[0]
candidates = [c for c in prepared if c.spec.seed == first]

# %% tags=["nbval-ignore-output"]
table = candidate_table(candidates)
accuracies = table.pivot_table("accuracy", ["runtime", "precision"], "model", sort=False)
accuracies.round(4)

# %% [markdown]
# ## Does int8 hold?
#
# Accuracy and macro-F1 of every int8 variant minus those of the fp32 variant in the same runtime; the
# worst comes first. A backbone whose ONNX int8 falls by more than the allowed drop goes up the ladder
# of remedies, and what comes out joins the others as a candidate of its own, called *mended*.

# %% tags=["nbval-ignore-output"]
cost = int8_cost(table)
named = ["model", "runtime", "precision"]
cost.sort_values("accuracy_change").drop(columns=named).round(4)

# %%
onnx = (cost["runtime"] == "onnxruntime") & (cost["precision"] == "int8")
fell = list(cost.loc[onnx & (cost["accuracy_change"] < -config.max_int8_drop), "model"])
training = splits.train.loader(config.batch_size, shuffle=True)
rate = config.learning_rate / 30
climb = {
    "calibration_loader": common["calibration_loader"],
    "calibration_batches": config.calibration_batches,
    "max_accuracy_drop": config.max_int8_drop,
    "scheme": scheme,
    "train_quantized": partial(
        quantization_aware_train, train_loader=training, epochs=1, learning_rate=rate
    ),
}

# %%
repairs = {
    (c.spec.model, c.spec.seed): mend_candidate(
        c, networks[c.spec.model, c.spec.seed], splits.validation, directory=store, **climb
    )
    for c in prepared
    if c.spec.model in fell and (c.spec.runtime, c.spec.precision) == ("onnxruntime", "int8")
}

# %% tags=["nbval-ignore-output"]
print(f"fell by more than {config.max_int8_drop:.1%}:", ", ".join(fell) or "none")
for (name, seed), (_, mended) in repairs.items():
    goal = mended.ladder["accuracy"].iloc[0] - config.max_int8_drop
    ax = plots.ladder_plot(mended.ladder, target=goal)
    alt = f"Accuracy of {name}, seed {seed}, after each remedy, beside fp32 and the goal."
    title = f"ladder_{name}_seed{seed}"
    folder.write_table(f"{title}.csv", mended.ladder)
    if mended.diagnosis is not None:
        folder.write_table(f"diagnosis_{name}_seed{seed}.csv", mended.diagnosis)
    display(folder.save_figure(title, ax, alt=alt, numbers=mended.ladder))

# %% [markdown]
# Read a ladder, where there is one, from the top: fp32, plain int8, then each remedy. The first that is
# right of the line ends the climb; the numbers beside it are what it costs.
#
# ## A collapse, made to order
#
# Whether or not a backbone fell by itself, one can be made to: multiply a channel before a ReLU by
# ten thousand and divide what reads it by the same. In fp32 nothing changes; a tensor that has one
# range for all channels has room for that one alone. The diagnosis puts the guilty tensor on top.

# %%
slim = config.backbones[0]
whole = networks[slim, first]
layer, channel = find_links(fold_batch_norm(whole))[0].source, 5
specimen = plant_collapse(whole, layer, channel, 1e4)
broken = export_artifact(
    specimen,
    store / "specimen-int8",
    runtime="onnxruntime",
    precision="int8",
    input_shape=(1, *images.shape[1:]),
    calibration_loader=common["calibration_loader"],
)

# %% tags=["nbval-ignore-output"]
probe = splits.validation.images[:128], splits.validation.labels[:128]
diagnosis = diagnose(specimen, broken, *probe)
folder.write_table("diagnosis.csv", diagnosis)
print(f"planted: channel {channel} of {layer}")
diagnosis.drop(columns="tensor").head(3).round(3)

# %% tags=["nbval-ignore-output"]
validation = splits.validation.images, splits.validation.labels
healed = mend(specimen, validation=validation, folder=store / "specimen", **climb)
folder.write_table("specimen_ladder.csv", healed.ladder)
healed.ladder.drop(columns="error").round(4)

# %% [markdown]
# ## Measure
#
# At batch 1 on one thread, all candidates of all backbones in the same interleaved rounds.

# %%
prepared += [candidate for candidate, _ in repairs.values()]
candidates = [c for c in prepared if c.spec.seed == first]
rounds = {"rounds": config.benchmark_repeats, "calls_per_round": config.calls_per_round}
measured = measure_candidates(candidates, images[:1], threads=1, **rounds)
samples, conditions = measured.samples, measured.conditions
folder.write_table("latency_samples.csv", samples)
folder.write_table("conditions.csv", conditions)
with ThreadPoolExecutor(2) as pool:
    resident = peak_rss_table(candidates, executor=pool)
print(f"{len(samples):,} timed calls")

# %% tags=["nbval-ignore-output"]
print(disturbance(conditions) or "The machine was quiet while latency was measured.")

# %%
sweep = sweep_table(
    candidates,
    measured,
    batch_size=1,
    power_watts=config.power_watts,
    latency_multiplier=config.latency_multiplier,
    memory_budgets_mb=config.memory_budgets_mb,
    active_memory_budget_mb=config.active_memory_budget_mb,
)

# %%
sweep = with_seeds(sweep, prepared, labels=labels).merge(resident, "left", "candidate")
remedies = {c.name: c.spec.remedy for (_, seed), (c, _) in repairs.items() if seed == first}
sweep["remedy"] = [remedies.get(name, "") for name in sweep["candidate"]]

# %% tags=["nbval-ignore-output"]
shown = ["candidate", "accuracy", "macro_f1", "latency_p50_ms", "artifact_bytes", "accepted"]
sweep[shown].sort_values("latency_p50_ms").round(4)

# %% [markdown]
# ## The frontier
#
# Budgets first: what does not fit the active budget on weights cannot be chosen, and is hollow in the
# figure. Of the rest, a candidate is on the frontier when none is both faster (or smaller) and at
# least as accurate.

# %%
answers = answers_of(prepared, labels=labels, class_names=splits.class_names)
accepted = [name for name in sweep.loc[sweep["accepted"], "candidate"] if name in answers.correct]
chance = frontier_probability(
    {name: answers.correct[name] for name in accepted}, samples[samples["candidate"].isin(accepted)]
)
sweep = sweep.merge(chance[["candidate", "frontier_probability"]], "left", "candidate")

# %% tags=["nbval-ignore-output"]
frontier = pareto_frontier(sweep, "latency_p50_ms")
smallest = pareto_frontier(sweep, "artifact_bytes")
folder.write_table("pareto_frontier_latency.csv", frontier)
frontier[[*shown[:-1], "frontier_probability"]].round(4)

# %% tags=["nbval-ignore-output"]
smallest[shown[:-1]].round(4)

# %% [markdown]
# ## What does INT8 cost, and which class pays?
#
# `file_ratio` and `speedup` are fp32 over int8 in the same runtime: above 1, int8 is smaller or
# faster. Below 1 it is not, whatever one expects of fewer bits.

# %% tags=["nbval-ignore-output"]
cost = int8_cost(sweep)
folder.write_table("int8_cost.csv", cost)
cost.drop(columns=named).round(3)

# %%
recalls = recall_table(prepared, labels, class_names=splits.class_names)
folder.write_table("per_class.csv", recalls)
recall = recalls.pivot_table("recall", "class_name", "candidate", sort=False)
parents = fp32_parents(candidates)

# %%
as_made = (cost["precision"] == "int8") & ~cost["candidate"].isin(remedies)
best = cost[as_made].groupby("model", sort=False)["accuracy_change"].idxmax()
best_int8 = cost.loc[best]

# %% tags=["nbval-ignore-output"]
paid = pd.DataFrame(
    {
        row.model: recall[row.candidate] - recall[parents[row.candidate]]
        for row in best_int8.itertuples()
    }
)
paid.mul(100).round(2)

# %% [markdown]
# Above: the change of each class's recall, in points, in the static int8 variant of each backbone that
# holds best. Below: the backbone on which some class pays most.

# %% tags=["nbval-ignore-output"]
worst = best_int8.set_index("model").loc[paid.min().idxmin()]
before = recall[parents[worst["candidate"]]]
change = pd.DataFrame({"before": before, "after": recall[worst["candidate"]]}).reset_index()
ax = plots.per_class_change(change)
alt = f"Recall of each class before and after int8: {worst['candidate']}."
folder.save_figure("int8_per_class", ax, alt=alt, numbers=change)

# %% [markdown]
# ## The decision
#
# Everything is set against the most accurate backbone in fp32: what a smaller backbone gives up counts
# as much as what fewer bits do. The rule is that of the sweep: of what fits and loses too little to be
# bad, the best class by the gates, then the fastest; between equals, the smallest weights.

# %% tags=["nbval-ignore-output"]
full = sweep[sweep["precision"] == "fp32"]
leader = full.loc[full["accuracy"].idxmax(), "model"]
decision = decide(
    sweep,
    gates=config.part(Gates),
    constraints=config.part(Constraints),
    recalls=recalls,
    answers=answers,
    samples=samples,
    baseline=find_baseline(sweep[sweep["model"] == leader]),
)
folder.write_table("rejected.csv", decision.rejected)
decision.rejected[["candidate", "reason"]].head(10)

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
# ## Half the operations
#
# The other way to make a backbone smaller: remove channels until half of its multiply-accumulates are
# left, in multiples of 8, consistently through depthwise convolutions and squeeze-and-excitation. The
# criteria choose different channels; each choice is fine-tuned alike. *Scratch* is the control: the
# same small network from new weights. *Baseline* is the unpruned one, trained on for as long as the
# pruned ones are fine-tuned: all have the same number of epochs behind them.

# %%
options = {"macs_ratio": 0.5, "criteria": config.pruning_criteria}
with process_pool() as pool:
    pruned = prune_backbone(
        (slim, first), networks[slim, first], workshop, executor=pool, **options
    )

# %% tags=["nbval-ignore-output"]
contest = pd.DataFrame(
    {
        "recipe": recipe,
        "criterion": criterion,
        "macs": count_macs(network, example_input=splits.validation.images[:1]),
        "parameters": sum(p.numel() for p in network.parameters()),
        "accuracy": (
            predict_logits(network, splits.validation.images).argmax(1).numpy() == labels
        ).mean(),
    }
    for (recipe, criterion), network in pruned.items()
)
folder.write_table("backbone_pruning.csv", contest)
contest.round(4)

# %% [markdown]
# Compare each fine-tuned row with *random*: only what is above it did the criterion itself buy. And
# with *scratch*: only what is above that did the inherited weights buy.
#
# Fewer operations are not yet less time. Full and pruned network are timed in the same runtime, at the
# size that they would serve photographs in.

# %%
tuned = contest[contest["recipe"] == "fine-tuned"]
winner = tuned.loc[tuned["accuracy"].idxmax()]
pair = {"full": networks[slim, first], "pruned": pruned["fine-tuned", winner["criterion"]]}
served = {"runtime": "onnxruntime", "precision": "fp32", "input_shape": (1, 3, 224, 224)}
files = {
    name: export_artifact(network, store / f"{slim}-{name}-224", **served)
    for name, network in pair.items()
}
loaders = {name: partial(load_session, file) for name, file in files.items()}

# %% tags=["nbval-ignore-output"]
picture = torch.rand(served["input_shape"], generator=torch.Generator().manual_seed(0)).numpy()
halves = latency_statistics(measure_latency(loaders, picture, **rounds).samples)
halves = halves.set_index("candidate")
halves[["samples", "latency_ms", "latency_p50_ms", "latency_p95_ms"]].round(3)

# %% [markdown]
# ## Test, once
#
# The choice is made. Only now are the test images read: by the pick and its rivals, and by fp32 and the
# best static int8 of each backbone, each once, by the artifact that would ship. Each is compared with
# its own fp32 parent, image by image and over all seeds.

# %%
spoken = {row["candidate"] for row in (decision.pick, decision.runner_up, decision.baseline) if row}
spoken |= set(best_int8["candidate"]) | set(remedies)
spoken |= {parents[name] for name in spoken if name in parents}
chosen = [candidate for candidate in prepared if candidate.name in spoken]

# %%
with process_pool() as pool:
    predicted = score(chosen, splits.test, executor=pool)
test_labels = splits.test.labels.numpy()
right = {name: classes == test_labels for name, classes in predicted.items()}
paired = {name: rows for name, rows in right.items() if len(rows) == len(config.seeds)}

# %% tags=["nbval-ignore-output"]
own = testable_parents([c for c in chosen if c.spec.seed == first and c.name in paired])
comparison = paired_comparison(paired, parent=own)
folder.write_table("paired_comparison.csv", comparison)
comparison.drop(columns="images").round(4)

# %% tags=["nbval-ignore-output"]
others = [row["candidate"] for row in (decision.baseline, decision.runner_up) if row]
rivals = {name: pick for name in others if {name, pick} <= set(paired) and name != pick}
against_pick = paired_comparison(paired, parent=rivals)
folder.write_table("pick_comparison.csv", against_pick)
against_pick.drop(columns="images").round(4)

# %% tags=["nbval-ignore-output"]
over_seeds = accuracy_over_seeds(right).drop(columns="seeds").set_index("candidate")
over_seeds["macro_f1"] = {
    name: np.mean([quality_row(test_labels, a, num_classes=classes)["macro_f1"] for a in each])
    for name, each in predicted.items()
}
sweep = sweep.join(over_seeds.add_prefix("test_"), on="candidate")
folder.write_table("results.csv", sweep)
tests = {"test": comparison.to_dict("records"), "against_pick": against_pick.to_dict("records")}
folder.write_json("summary.json", decision.to_dict() | tests | {"busy": disturbance(conditions)})
tested = ["candidate", "accuracy", *over_seeds.add_prefix("test_")]
sweep.loc[sweep["candidate"].isin(predicted), tested].round(4)

# %% [markdown]
# ## The answers, in words
#
# Computed from the tables above, for `pareto.md` and for the conclusion.

# %%
points = ", ".join(
    f"{row.candidate} ({row.accuracy:.1%}, {row.latency_p50_ms:.2f} ms, "
    f"{row.artifact_bytes / 2**20:.2f} MiB)"
    for row in frontier.itertuples()
)
words = [f"The frontier of accuracy against latency, from the fastest: {points}."]
for row in best_int8.itertuples():
    change = paid[row.model].mul(100).round(2) + 0.0
    payer = f"{change.idxmin()} pays most, with {change.min():+.2f} points of recall"
    words.append(
        f"{row.model} in static int8 ({row.runtime}) changes by {100 * row.accuracy_change:+.2f} "
        f"points of accuracy and {100 * row.macro_f1_change:+.2f} of macro-F1 in a file "
        f"{row.file_ratio:.2f} times smaller, at {row.speedup:.2f} times the speed; "
        f"{payer if change.min() < 0 else 'no class loses recall'}."
    )

# %%
for name in fell:
    candidate, mended = repairs[name, first]
    verdict = "inside" if mended.reached else "not inside"
    plain = (table["runtime"] == "onnxruntime") & (table["precision"] == "int8")
    broken = table.loc[plain & (table["model"] == name), "accuracy"].item()
    words.append(
        f"{name} fell to {broken:.1%} in ONNX Runtime's static int8; {candidate.spec.remedy} "
        f"brought it to {candidate.facts['accuracy']:.1%}, {verdict} the allowed drop."
    )

# %%
climbed = healed.ladder["accuracy"]
best = climbed.iloc[1:].idxmax()
words.append(
    f"{slim} with channel {channel} of {layer} planted fell from {climbed[0]:.1%} to "
    f"{climbed[1]:.1%} in int8; {healed.ladder['remedy'][best]} brought it to {climbed[best]:.1%}."
)

# %%
gain = halves.loc["full", "latency_p50_ms"] / halves.loc["pruned", "latency_p50_ms"]
kept, base = winner["macs"] / contest["macs"][0], contest["accuracy"][0]
control = contest.loc[contest["recipe"] == "scratch", "accuracy"].item()
words.append(
    f"{slim} pruned to {kept:.0%} of its MACs by {winner['criterion']} and fine-tuned changes by "
    f"{100 * (winner['accuracy'] - base):+.2f} points ({100 * (control - base):+.2f} from scratch) "
    f"and is {gain:.2f} times as fast at 224x224."
)

# %%
words += [decision.reason, f"Runner-up: {decision.what_it_would_take}"]
if pick:
    share = over_seeds.loc[pick, "accuracy"]
    words.append(f"On the test images, scored once, {pick} has an accuracy of {share:.1%}.")

# %%
columns = ["candidate", "accuracy", "macro_f1", "latency_p50_ms", "artifact_bytes", "memory_mb"]
columns += ["accepted", "frontier_probability", "remedy", "status"]
sections = {
    "The frontier of accuracy against latency": frontier,
    "The frontier of accuracy against size": smallest,
    "All candidates, fastest first": sweep.sort_values("latency_p50_ms"),
}
page = ["# Backbones: accuracy, latency and size", *words]
for title, rows in sections.items():
    page += [f"## {title}", markdown_table(rows[columns])]
folder.write_bytes("pareto.md", ("\n\n".join(page) + "\n").encode()).name

# %% [markdown]
# ## Conclusion

# %% tags=["nbval-ignore-output"]
print("\n\n".join(words))
