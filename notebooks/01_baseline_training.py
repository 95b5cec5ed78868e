# %% [markdown]
# # 1. How good is the model before anything is taken away?
#
# Every later notebook gives something up: channels, bits, memory. This one sets the mark they are
# measured against: a small CNN in 32-bit floats, trained once per seed on images dealt into four
# roles that never share one.

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
conv1_channels = 16
conv2_channels = 32
epochs = 6
finetune_epochs = 2
learning_rate = 0.003

# %%
import pandas as pd

from edgeopt import plots
from edgeopt.config import ExperimentConfig
from edgeopt.data import load_splits, shared_images
from edgeopt.metrics import confusion_table, per_class_table, quality_row
from edgeopt.model import SmallCNN, dump_weights
from edgeopt.recipes import Recipe, Schedule, process_pool, train_baselines
from edgeopt.rundir import open_run
from edgeopt.training import predict_logits

# %% [markdown]
# The parameters are checked as a whole before anything runs, and the run's folder is opened: it is
# the only way in which the notebooks hand over to each other.

# %%
config = ExperimentConfig.from_namespace(globals())
folder = open_run(config.run)
plots.use_style()

# %% [markdown]
# ## Four roles
#
# *Train* makes the weights. *Calibration*, carved out of the training pool, sets the ranges of the
# int8 variants. *Validation* is for every choice. *Test* is scored once, after all choosing is done.

# %%
splits = load_splits(
    config.dataset,
    train_subset=config.train_subset,
    calibration_subset=config.calibration_subset,
    val_subset=config.val_subset,
    test_subset=config.test_subset,
    data_dir=config.data_folder,
    image_size=28,
    channels=1,
)

# %%
roles = ["train", "calibration", "validation", "test"]
counts = pd.Series({role: len(getattr(splits, role)) for role in roles}, name="images")
counts.to_frame()

# %% [markdown]
# An accuracy is worth nothing when a test image was trained on. Every pair of roles is compared image
# by image; each count below must be zero.

# %%
leaks = shared_images(splits)
assert leaks["shared_images"].sum() == 0
leaks

# %% tags=["nbval-ignore-output"]
ax = plots.sample_images(splits.train.images, splits.train.labels, names=splits.class_names)
alt = f"Training images of {splits.name}, two of each class."
folder.save_figure("samples", ax, alt=alt)

# %% [markdown]
# ## Training
#
# Two convolutions of 3x3, each followed by ReLU and max-pooling, and one linear layer. The number of
# parameters is what the pruning and quantization notebooks work on.

# %%
model = SmallCNN(config.conv1_channels, config.conv2_channels, len(splits.class_names))
pd.Series({name: p.numel() for name, p in model.named_parameters()}, name="parameters").to_frame()

# %% [markdown]
# One training per seed: the same architecture and images, other initial weights and another order.
# How far the seeds lie apart is the noise that no difference smaller than it can be told from.
#
# Training has two stages. *Pretrained* is where pruning will start from. The *baseline* is trained on
# from there for as many epochs as a pruned network will be fine-tuned, by the same schedule: what is
# pruned is compared with a network that had as much training, not with one that had less.

# %%
schedule = config.part(Schedule)
with process_pool() as pool:
    runs = train_baselines(
        model,
        splits.train,
        validation=splits.validation,
        seeds=config.seeds,
        schedule=schedule,
        executor=pool,
    )

# %% tags=["nbval-ignore-output"]
histories = [trained.history.assign(seed=seed) for seed, trained in runs.items()]
history = pd.concat(histories, ignore_index=True)
folder.write_table("training_history.csv", history)
history.groupby(["stage", "epoch"], sort=False).mean().drop(columns="seed").round(3)

# %% tags=["nbval-ignore-output"]
ax = plots.training_history(history)
alt = "Training and validation accuracy by epoch, one line per seed."
folder.save_figure("training_history", ax, alt=alt, numbers=history)

# %% [markdown]
# Read the gap between the two curves: as long as validation rises with training, more epochs would
# still help; once it bends down, the network memorises. Where the second stage begins the learning rate
# is raised again, and both curves dip before they go on.
#
# ## Quality on validation
#
# The interval is Wilson's, for the number of validation images there are. Two models whose intervals
# overlap may still differ; the sweep compares them image by image instead.

# %% tags=["nbval-ignore-output"]
labels = splits.validation.labels.numpy()
predictions = {
    seed: predict_logits(trained.model, splits.validation.images).argmax(1).numpy()
    for seed, trained in runs.items()
}
classes = len(splits.class_names)
quality = pd.DataFrame(
    {s: quality_row(labels, p, num_classes=classes) for s, p in predictions.items()}
)
quality = quality.T.rename_axis("seed").reset_index()
quality.round(4)

# %% [markdown]
# An average hides the classes. The confusion matrix of the first seed says which ones the network
# takes for each other; their recall is what compression is most likely to break.

# %% tags=["nbval-ignore-output"]
first = config.seeds[0]
confusion = confusion_table(labels, predictions[first], class_names=splits.class_names)
title = f"Baseline, {len(labels):,} validation images"
ax = plots.confusion_matrix(confusion, title=title)
alt = "Confusion matrix of the baseline on validation images."
folder.save_figure("confusion", ax, alt=alt, numbers=confusion.reset_index())

# %% tags=["nbval-ignore-output"]
per_class = per_class_table(labels, predictions[first], class_names=splits.class_names)
folder.write_table("per_class_baseline.csv", per_class)
per_class.round(3)

# %% [markdown]
# ## Handing over
#
# Weights as state dicts, of both stages of each seed; what was measured as tables; what the data was, with its
# checksum, so that the report can prove it.

# %%
for seed, trained in runs.items():
    folder.write_bytes(Recipe(0.0, "pretrained", seed).file_name, dump_weights(trained.pretrained))
    folder.write_bytes(Recipe(0.0, "baseline", seed).file_name, dump_weights(trained.model))
folder.write_table("baseline_quality.csv", quality)
origin = {"name": splits.name, "checksum": splits.checksum, "counts": counts.to_dict()}
folder.write_json("data.json", origin)
sorted(path.name for path in folder.path("weights").iterdir())

# %% [markdown]
# ## Conclusion

# %% tags=["nbval-ignore-output"]
worst = per_class.loc[per_class["recall"].idxmin()]
print(
    f"{sum(p.numel() for p in model.parameters()):,} parameters reach "
    f"{quality['accuracy'].mean():.1%} on {len(labels):,} validation images "
    f"(mean of {len(quality)} seed(s); 95 % interval of the first: "
    f"{quality['accuracy_low'][0]:.1%} to {quality['accuracy_high'][0]:.1%}). "
    f"The weakest class is {worst['class_name']}, with a recall of {worst['recall']:.1%}: "
    "the one to watch from here on."
)
