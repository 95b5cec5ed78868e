# %% [markdown]
# # 3. What do fewer bits save, what do they cost, and what if int8 collapses?
#
# Quantization keeps every channel and stores it in fewer bits. This notebook makes each precision
# that a runtime offers from the same unpruned network, proves that what is called int8 computes in
# integers, and then breaks int8 on purpose to show how a collapse is found and mended.

# %% tags=["parameters"]
run = "quick"
dataset = "fashion-mnist-20k"
data_dir = "data"
train_subset = 4000
calibration_subset = 640
val_subset = 1000
batch_size = 64
seeds = [0]
precisions = ["fp32", "fp16", "bf16", "int8", "int8-dynamic"]
runtimes = ["torch", "onnxruntime", "executorch", "openvino"]
calibration_batches = 10
benchmark_batch_size = 1
max_int8_drop = 0.01

# %%
from functools import partial

from edgeopt import plots
from edgeopt.candidates import grid, prepare_candidates
from edgeopt.config import ExperimentConfig
from edgeopt.data import load_splits
from edgeopt.diagnosis import diagnose
from edgeopt.equalization import plant_collapse
from edgeopt.experiments import candidate_table, recall_table
from edgeopt.host import host_facts, int8_scheme
from edgeopt.mending import mend

# %%
from edgeopt.model import load_small_cnn
from edgeopt.quantization import quantization_aware_train
from edgeopt.recipes import Recipe, process_pool
from edgeopt.rundir import open_run
from edgeopt.training import predict_logits

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
images = splits.validation.images.numpy()
labels = splits.validation.labels.numpy()
calibration = splits.calibration.loader(config.batch_size)

# %%
baseline = load_small_cnn(folder.require(Recipe(0.0, "baseline", config.seeds[0]).file_name))

# %% [markdown]
# ## Every precision of every runtime
#
# Each variant is exported to the file its runtime loads, and scored by that runtime. Static int8 takes
# its activation ranges from the calibration images; dynamic int8 measures them anew for every image.

# %%
scheme = int8_scheme(host_facts()["isa"])
specs = grid([0.0], config.precisions, config.runtimes, seed=config.seeds[0])

# %% tags=["nbval-ignore-output"]
with process_pool() as pool:
    candidates = prepare_candidates(
        specs,
        executor=pool,
        models={(config.seeds[0], 0.0): baseline},
        calibration_loader=calibration,
        calibration_batches=config.calibration_batches,
        images=images,
        labels=labels,
        directory=folder.folder("artifacts/quantization"),
        batch_size=config.benchmark_batch_size,
        scheme=scheme,
    )
table = candidate_table(candidates)

# %% [markdown]
# `int8_mac_share` is read from the graph that the runtime executes: the share of multiply-accumulates
# done in integers. A row called int8 has one near 1; a row with 0 would be refused, not renamed.

# %%
table[["runtime", "precision", "weight_bytes", "int8_mac_share", "status"]]

# %% tags=["nbval-ignore-output"]
folder.write_table("quantization.csv", table)
shown = ["runtime", "precision", "accuracy", "agreement", "macro_f1", "artifact_bytes"]
table[shown].round(4)

# %% tags=["nbval-ignore-output"]
ax = plots.quantization(table)
alt = "Weight bytes of each precision and runtime, and agreement with the fp32 network."
folder.save_figure("quantization", ax, alt=alt, numbers=table[["candidate", *shown]])

# %% [markdown]
# *Agreement* is the share of images on which a variant names the same class as the fp32 network. It
# is a sharper instrument than accuracy, in which errors made and errors mended cancel.
#
# ## Does every class pay alike?

# %% tags=["nbval-ignore-output"]
recalls = recall_table(candidates, labels, class_names=splits.class_names)
folder.write_table("quantization_per_class.csv", recalls)
change = recalls.pivot_table(index="class_name", columns="candidate", values="recall", sort=False)
parent = next(c.name for c in candidates if c.spec.precision == "fp32")
difference = change.sub(change[parent], axis=0).filter(like="int8").mul(100)
difference.columns = difference.columns.str.removeprefix("small_cnn-p0-")
difference.rename_axis(index=None, columns="points of recall").round(2)

# %% [markdown]
# ## A collapse, made to order
#
# Multiply one filter of the first layer by a factor, and divide what the second layer makes of it by
# the same: ReLU and max-pooling let the factor pass, and the network computes what it did. To an
# int8 tensor with one range for all channels, the scaled channel is all there is.

# %%
channel, factor = min(3, baseline.conv1.out_channels - 1), 1000.0
specimen = plant_collapse(baseline, layer="conv1", channels=channel, factor=factor)
difference = predict_logits(specimen, splits.validation.images) - predict_logits(
    baseline, splits.validation.images
)
print(f"fp32 logits moved by at most {difference.abs().max():.1e}")

# %% tags=["nbval-ignore-output"]
collapsed = prepare_candidates(
    grid([0.0], ["fp32", "int8"], ["onnxruntime"], model="specimen"),
    models={(0, 0.0): specimen},
    calibration_loader=calibration,
    images=images,
    labels=labels,
    directory=folder.folder("artifacts/specimen"),
    scheme=scheme,
)
candidate_table(collapsed)[["candidate", "accuracy", "agreement", "int8_mac_share", "error"]]

# %% [markdown]
# ## Which layer, which channel?
#
# The diagnosis compares every quantized tensor with its fp32 self, the worst first. `guilty_channel`
# has the widest range, `outlier_ratio` says how many times wider than the median channel it is, and
# `accuracy_alone` is what is left when this tensor is the only one quantized.

# %% tags=["nbval-ignore-output"]
diagnosis = diagnose(
    specimen, collapsed[1].artifact, splits.validation.images, splits.validation.labels
)
folder.write_table("diagnosis.csv", diagnosis)
shown = ["tensor", "guilty_channel", "outlier_ratio", "sqnr_alone_db", "accuracy_alone"]
diagnosis[shown].round(3)

# %% tags=["nbval-ignore-output"]
ax = plots.diagnosis_bars(diagnosis)
alt = "Noise of each quantized tensor of the collapsed network, and what is left with it alone in int8."
folder.save_figure("diagnosis", ax, alt=alt, numbers=diagnosis)

# %%
worst = diagnosis.iloc[0]
print(f"guilty: channel {worst['guilty_channel']} of {worst['layer']}; planted: {channel} of conv1")

# %% [markdown]
# ## The ladder
#
# Remedies in order of what they cost: other calibration methods, equalization, bias correction,
# leaving the most sensitive layers in float, dynamic ranges, one epoch of training under simulated
# int8. All are tried here, also after the first that reaches the goal. From bias correction on, each
# stands on the best one so far, named in `stands_on`: compare it with that one, not with plain int8.

# %% tags=["nbval-ignore-output"]
training = splits.train.loader(config.batch_size, shuffle=True)
train = partial(quantization_aware_train, train_loader=training, epochs=1, learning_rate=1e-4)
mended = mend(
    specimen,
    calibration_loader=calibration,
    validation=(splits.validation.images, splits.validation.labels),
    max_accuracy_drop=config.max_int8_drop,
    folder=folder.folder("artifacts/ladder"),
    train_quantized=train,
    scheme=scheme,
    exhaustive=True,
)

# %% tags=["nbval-ignore-output"]
folder.write_table("ladder.csv", mended.ladder)
columns = ["remedy", "accuracy", "reached", "latency_ms", "int8_mac_share", "stands_on"]
mended.ladder[columns].round(4)

# %% tags=["nbval-ignore-output"]
goal = mended.ladder["accuracy"].iloc[0] - config.max_int8_drop
ax = plots.ladder_plot(mended.ladder, target=goal)
alt = "Accuracy of the collapsed network after each remedy, beside fp32 and the goal."
folder.save_figure("ladder", ax, alt=alt, numbers=mended.ladder)

# %% [markdown]
# ## Conclusion

# %% tags=["nbval-ignore-output"]
int8 = table[table["precision"] == "int8"]
fp32 = table.loc[table["precision"] == "fp32", "accuracy"].max()
print(
    f"int8 weights take {int8['weight_bytes'].mean() / table['weight_bytes'].max():.0%} of fp32's; "
    f"the worst of {len(int8)} runtimes loses {100 * (fp32 - int8['accuracy'].min()):.2f} points."
)
first = mended.ladder[mended.ladder["reached"]].iloc[0] if mended.reached else None
print(
    f"The specimen fell to {collapsed[1].facts['accuracy']:.1%} in int8 and was mended to "
    f"{first['accuracy']:.1%} by {first['remedy']}."
    if mended.reached
    else "No remedy reached it."
)
