# %% [markdown]
# # 3. What do fewer bits save, what do they cost, and what if int8 collapses?
#
# Quantization keeps every channel and stores it in fewer bits. This notebook makes each precision
# that a runtime offers from each unpruned network, proves that what is called int8 computes in
# integers, and then breaks int8 on purpose to show how a collapse is found and repaired.

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
precisions = ["fp32", "fp16", "bf16", "int8", "int8-dynamic"]
runtimes = ["torch", "onnxruntime", "executorch", "openvino"]
benchmark_batch_size = 1
max_int8_drop = 0.01
all_remedies = True

# %%

import pandas as pd
from IPython.display import display

from edgeopt import plots
from edgeopt.config import ExperimentConfig
from edgeopt.experiments import (
    candidate_table,
    diagnose,
    grid,
    prepare_candidates,
    recall_table,
    recover_collapsed,
    recover_int8,
)
from edgeopt.model import predict_logits
from edgeopt.plots import readings
from edgeopt.quantization import plant_specimen
from edgeopt.schema import file_stem
from edgeopt.study import open_study, use_style

# %% tags=["nbval-ignore-output"]
study = open_study(ExperimentConfig.from_namespace(globals()))
config, folder = study.config, study.folder
use_style()
print(study.heading)

# %%
baselines = study.kept(study.baselines())
seed = config.seeds[0]
networks = {r.model: net for r, net in baselines.items() if r.seed == seed}
labels = study.validation_labels

# %% [markdown]
# ## Every precision of every runtime
#
# Each variant is exported to the file its runtime loads, and scored by that runtime. Static int8 takes
# its activation ranges from the calibration images; dynamic int8 measures them anew for every image.

# %%
options = study.preparation("artifacts/quantization")
axes = ([0.0], config.precisions, config.runtimes)
specs = [spec for model in config.models for spec in grid(*axes, model=model, seed=seed)]
models = {(model, seed, 0.0): network for model, network in networks.items()}

# %% tags=["nbval-ignore-output"]
kept = {"executor": study.workers, "store": study.prepared}
candidates = prepare_candidates(specs, models=models, **kept, **options)

# %% [markdown]
# `int8_mac_share` is read from the graph that the runtime executes: the share of multiply-accumulates
# done in integers. A row called int8 has one near 1; a row with 0 would be refused, not renamed.
# `parity_difference` is how far an exported float network's logits are from torch's, as a share of the
# largest one.

# %% tags=["nbval-ignore-output"]
table = candidate_table(candidates)
table[["model", "runtime", "precision", "weight_bytes", "int8_mac_share", "status"]]

# %% tags=["nbval-ignore-output"]
shown = ["model", "runtime", "precision", "accuracy", "agreement", "macro_f1", "artifact_bytes"]
folder.write_table("quantization.csv", table)[[*shown, "parity_difference", "error"]]

# %% tags=["nbval-ignore-output"]
for model, rows in table.groupby("model", sort=False):
    name, ax = f"quantization-{file_stem(model)}", plots.quantization(rows)
    alt = readings.quantization(rows, model=model)
    display(folder.save_figure(name, ax, alt=alt, numbers=rows[["candidate", *shown]]))

# %% [markdown]
# *Agreement* is the share of images on which a variant names the same class as the fp32 network. It
# is a sharper instrument than accuracy, in which errors made and errors undone cancel.
#
# ## Does every class pay alike?
#
# The change of each class's recall from the fp32 network's, in points:

# %% tags=["nbval-ignore-output"]
recalls = recall_table(candidates, labels, class_names=study.class_names)
folder.write_table("quantization_per_class.csv", recalls)
for model in config.models:
    own = [c.name for c in candidates if c.spec.model == model and not c.error]
    change = recalls.pivot_table("recall", "class_name", "candidate", sort=False)[own]
    parent = next(c.name for c in candidates if c.name in own and c.spec.precision == "fp32")
    difference = change.sub(change[parent], axis=0).filter(like="int8").mul(100)
    display(difference.rename_axis(index="class_name", columns="candidate").round(2))

# %% [markdown]
# ## A collapse, made to order
#
# Multiply one channel of a layer by a factor, and divide what the next layers make of it by the same:
# ReLU and pooling let the factor pass, and the network computes what it did. To an int8 tensor with one
# range for all channels, the scaled channel is all there is. The first network of the run shows it.

# %%
specimens, without = {}, {}
for model, network in [*networks.items()][:1]:
    try:
        example = study.splits[model].validation.take(1)
        specimens[model] = plant_specimen(network, channel=3, factor=1e4, example=example)
    except ValueError as error:
        without[model] = str(error)
print("planted:", {model: found.layer for model, found in specimens.items()}, without or "")

# %% tags=["nbval-ignore-output"]
for model, specimen in specimens.items():
    some = study.splits[model].validation.take(256)
    before, after = predict_logits(networks[model], some), predict_logits(specimen.model, some)
    moved = (after - before).abs().max() / before.abs().max()
    print(f"{model}: fp32 logits moved by at most {moved:.1e} of the largest")

# %% tags=["nbval-ignore-output"]
planted = {(model, seed, 0.0): specimen.model for model, specimen in specimens.items()}
axes = ([0.0], ["fp32", "int8"], config.runtimes)
specs = [spec for model in specimens for spec in grid(*axes, model=model, seed=seed)]
options = study.preparation("artifacts/specimen")
tried = prepare_candidates(specs, models=planted, **kept, **options) if specs else []

# %% [markdown]
# In fp32 it should be as accurate as it was, and its int8 fall on every runtime:

# %% tags=["nbval-ignore-output"]
fall = candidate_table(tried)
shares = fall.pivot_table("accuracy", ["model", "runtime"], "precision", sort=False)
shares.mul(100).add_suffix(" (%)").rename_axis(columns=None)

# %% [markdown]
# ## Which layer, which channel?
#
# The diagnosis rounds what every layer of the fp32 network writes to eight bits, the noisiest first.
# `worst_channel` has the widest range, `outlier_ratio` says how many times wider than the median channel
# it is, `accuracy_alone` is what is left when this tensor is the only one rounded, and `reach` says what
# can shrink the channel: rescaling its group (itself, `tied_to`, and all that read them), or, behind an
# activation that lets no factor pass, an inserted scale.

# %% tags=["nbval-ignore-output"]
shown = ["layer", "worst_channel", "outlier_ratio", "sqnr_db", "accuracy_alone", "tied_to", "reach"]
diagnoses = {}
for model, specimen in specimens.items():
    diagnoses[model] = diagnose(specimen.model, study.splits[model].validation.first(128))
    folder.write_table(f"diagnosis-{file_stem(model)}.csv", diagnoses[model])
    display(diagnoses[model][shown].head(8))

# %% tags=["nbval-ignore-output"]
for model, diagnosis in diagnoses.items():
    ax = plots.diagnosis_bars(diagnosis)
    alt = readings.diagnosis_bars(diagnosis, model=model)
    display(folder.save_figure(f"diagnosis-{file_stem(model)}", ax, alt=alt, numbers=diagnosis))

# %%
for model, diagnosis in diagnoses.items():
    worst, specimen = diagnosis.iloc[0], specimens[model]
    found = f"channel {worst['worst_channel']} of {worst['layer']}"
    print(f"{model}: worst is {found}; planted: channel {specimen.channel} of {specimen.layer}")

# %% [markdown]
# ## Recovery on every runtime
#
# The network is rewritten once, and what a runtime needs of its own comes after: other calibration
# methods, the noisiest layers in float. Each search ends with the first remedy that brings the accuracy
# back, and macro-F1 as far as the images can tell; the runtimes' searches run side by side.

# %% tags=["nbval-ignore-output"]
limit = {"max_drop": config.max_int8_drop}
repairs = recover_collapsed(tried, planted, executor=study.workers, **limit, **options)
rows = [candidate_table([repair.candidate]) for repair in repairs]
repaired = pd.concat(rows) if rows else candidate_table([])
folder.write_table("recovery.csv", repaired)
repaired[["runtime", "remedy", "accuracy", "agreement", "int8_mac_share"]]

# %% [markdown]
# ## What every remedy gives
#
# The whole sequence on the runtime that has dynamic ranges too, in order of cost. Where `all_remedies` is set all are
# tried, also after the first that reaches the goal. From bias correction on, each builds on the best one
# so far. A remedy that falls far short on a few hundred calibration images is not scored on the
# validation images; *Images* says on how many an accuracy is, and *Simulated*, on runtimes whose files
# take long to write, that int8 as torch computes it fell short already, so that no file was written.

# %% tags=["nbval-ignore-output"]
dynamic = [c.spec.runtime for c in candidates if c.spec.precision == "int8-dynamic"]
runtime = next(iter(dynamic), config.runtimes[0])
rules = {"exhaustive": config.all_remedies, "scheme": study.int8_scheme, **limit}

# %% tags=["nbval-ignore-output"]
recovered = {}
for model in dict.fromkeys(repair.candidate.spec.model for repair in repairs):
    splits, files = study.splits[model], folder.folder(f"artifacts/recovery-{file_stem(model)}")
    images = {"calibration": options["calibration"][model], "validation": splits.validation}
    how = {"train_quantized": study.quantized_training[model], "runtime": runtime}
    recovered[model] = recover_int8(specimens[model].model, folder=files, **images, **how, **rules)

# %% tags=["nbval-ignore-output"]
columns = ["remedy", "accuracy", "macro_f1", "images", "simulated", "latency_ms", "int8_mac_share"]
for model, found in recovered.items():
    folder.write_table(f"recovery-{file_stem(model)}.csv", found.attempts)
    display(found.attempts[columns].rename(columns={"accuracy": "remedy_accuracy"}))

# %% tags=["nbval-ignore-output"]
for model, found in recovered.items():
    goal = found.attempts["accuracy"].iloc[0] - config.max_int8_drop
    ax = plots.recovery(found.attempts, target=goal)
    first = f"{found.selected.remedy.name} brings it to {found.selected.accuracy:.1%}"
    alt = f"The collapsed {model} after each remedy, beside fp32 and the goal: {first}."
    name = f"recovery-{file_stem(model)}"
    display(folder.save_figure(name, ax, alt=alt, numbers=found.attempts))

# %% [markdown]
# ## Conclusion

# %% tags=["nbval-ignore-output"]
for model, rows in table.groupby("model", sort=False):
    ran = rows[rows["status"] == "ok"]
    int8, fp32 = (ran[ran["precision"] == precision] for precision in ("int8", "fp32"))
    if int8.empty or fp32.empty:
        print(f"{model}: no runtime ran both fp32 and int8.")
        continue
    share = int8["weight_bytes"].mean() / fp32["weight_bytes"].max()
    loss = 100 * (fp32["accuracy"].max() - int8["accuracy"].min())
    weights = f"int8 weights take {share:.0%} of fp32's"
    print(f"{model}: {weights}; the worst of {len(int8)} runtimes loses {loss:.2f} points.")

# %% tags=["nbval-ignore-output"]
fell = fall[fall["precision"] == "int8"].set_index(["model", "runtime"])["accuracy"]
for row in repaired.itertuples():
    before, after = fell[row.model, row.runtime], f"{row.accuracy:.1%} by {row.remedy}"
    share = f"{row.int8_mac_share:.0%} of the MACs in integers"
    print(f"{row.model} on {row.runtime} fell to {before:.1%} and is at {after}, {share}.")
for model, reason in without.items():
    print(f"{model}: no specimen: {reason}")
