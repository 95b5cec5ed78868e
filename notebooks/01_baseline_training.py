# %% [markdown]
# # 1. How good is each network before anything is taken away?
#
# Every later notebook gives something up: channels, bits, memory. This one sets the mark they are
# measured against: each network of the run in 32-bit floats, trained once per seed (or taken as it
# is) on images split into four roles that never share one.

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

# %%
import pandas as pd
from IPython.display import display

from edgeopt import plots
from edgeopt.config import ExperimentConfig
from edgeopt.data import shared_images
from edgeopt.metrics import confusion_table, per_class_table, quality_row
from edgeopt.model import predict_logits
from edgeopt.plots import readings
from edgeopt.schema import file_stem
from edgeopt.study import open_study, use_style

# %% [markdown]
# The parameters are checked as a whole before anything runs, and the run is opened: its networks, the
# images as each of them takes them, and its folder, the only way in which the notebooks hand over to
# each other.

# %% tags=["nbval-ignore-output"]
study = open_study(ExperimentConfig.from_namespace(globals()))
config, folder = study.config, study.folder
use_style()
print(study.heading)

# %% [markdown]
# ## Four roles
#
# *Train* makes the weights. *Calibration*, drawn from the training images, sets the ranges of the int8
# variants. *Validation* is for every choice. *Test* is scored once, after all choosing is done.

# %%
print("test images:", study.test_warning or "scored once, after all choosing is done")
study.image_counts()

# %% [markdown]
# An accuracy is worth nothing when a test image was trained on. Every pair of roles is compared image
# by image; each count below must be zero.

# %%
leaks = shared_images(study.splits[config.models[0]])
assert leaks["shared_images"].sum() == 0
leaks

# %% [markdown]
# ## The images, as the networks see them
#
# Size, channels, mean and standard deviation have to be those that a network was trained with, else it
# answers nonsense and nothing warns. The range is what arrives at the first layer.

# %%
folder.write_table("seen_images.csv", study.seen_images())

# %% tags=["nbval-ignore-output"]
for model in config.models:
    ax = plots.sample_images(study.splits[model].train, names=study.class_names)
    alt = f"Training images as {model} sees them, two of each class."
    display(folder.save_figure(f"samples-{file_stem(model)}", ax, alt=alt))

# %% [markdown]
# ## Training
#
# One training per network and seed: the same architecture and images, other initial weights and another
# order. How far the seeds lie apart is the noise that no difference smaller than it can be told from.
#
# Training has two stages. *Pretrained* is where pruning will start from. The *baseline* is trained on
# from there for as many epochs as a pruned network will be fine-tuned, by the same schedule: what is
# pruned is compared with a network that had as much training, not with one that had less. With `epochs`
# 0 the weights are taken as they are, and nothing is trained here.

# %%
recipes = [*study.baselines(kind="pretrained"), *study.baselines()]
trainings = study.train(recipes, executor=study.workers)
networks = study.networks(trainings)

# %%
parameters = {
    model: sum(p.numel() for p in networks[recipe].parameters())
    for model, recipe in zip(config.models, study.baselines()[:: len(config.seeds)], strict=True)
}
pd.Series(parameters, name="parameters").to_frame()

# %% tags=["nbval-ignore-output"]
history = folder.write_table("training_history.csv", study.history(trainings))
history.drop(columns="seed").groupby(["model", "stage", "epoch"], sort=False).mean().round(3)

# %% tags=["nbval-ignore-output"]
for model, rows in history.groupby("model", sort=False):
    name, ax = f"training_history-{file_stem(model)}", plots.training_history(rows)
    alt = readings.training_history(rows, model=model)
    display(folder.save_figure(name, ax, alt=alt, numbers=rows))

# %% [markdown]
# Read the gap between the two curves: as long as validation rises with training, more epochs would
# still help; once it bends down, the network memorizes. Where the second stage begins the learning rate
# is raised again, and both curves may dip before they go on.
#
# ## Quality on validation
#
# The interval is Wilson's, for the number of validation images there are. Two networks whose intervals
# overlap may still differ; the sweep compares them image by image instead.

# %%
labels = study.validation_labels
predictions = {
    recipe: predict_logits(networks[recipe], study.splits[recipe.model].validation)
    for recipe in study.baselines()
}
predictions = {recipe: logits.argmax(1).numpy() for recipe, logits in predictions.items()}

# %% tags=["nbval-ignore-output"]
classes = len(study.class_names)
quality = pd.DataFrame(
    {"model": r.model, "seed": r.seed, **quality_row(labels, found, num_classes=classes)}
    for r, found in predictions.items()
)
folder.write_table("baseline_quality.csv", quality).round(4)

# %% [markdown]
# A network with given weights that does no better than guessing is being shown the wrong images. The run
# stops here, before anything is made of it.

# %%
first = {r.model: found for r, found in reversed(predictions.items())}
hits = {model: int((found == labels).sum()) for model, found in first.items()}
study.require_better_than_chance(hits, images=len(labels))

# %% [markdown]
# An average hides the classes. The confusion matrix of the first seed says which ones a network takes
# for each other; their recall is what compression is most likely to break.

# %% tags=["nbval-ignore-output"]
for model in config.models:
    confusion = confusion_table(labels, first[model], class_names=study.class_names)
    ax = plots.confusion_matrix(confusion, title=f"{model}, {len(labels):,} validation images")
    alt = readings.confusion_matrix(confusion, model=model)
    name = f"confusion-{file_stem(model)}"
    display(folder.save_figure(name, ax, alt=alt, numbers=confusion.reset_index()))

# %% tags=["nbval-ignore-output"]
per_class = pd.concat(
    per_class_table(labels, first[model], class_names=study.class_names).assign(model=model)
    for model in config.models
)
folder.write_table("per_class_baseline.csv", per_class)
recall = per_class.pivot_table("recall", "class_name", "model", sort=False)
recall.mul(100).round(1).add_suffix(": recall (%)").rename_axis(columns=None)

# %% [markdown]
# ## Handing over
#
# Weights as state dicts, of both stages of each network and seed; what was measured as tables; what the
# data was, with its checksum and how the images were prepared, so that the report can prove it.

# %%
study.keep(networks)
folder.write_json("data.json", study.data_facts())
sorted(path.name for path in folder.path("weights").iterdir() if "-pretrained-" in path.name)

# %% [markdown]
# ## Conclusion

# %% tags=["nbval-ignore-output"]
for model, rows in quality.groupby("model", sort=False):
    worst = per_class[per_class["model"] == model].set_index("class_name")["recall"]
    low, high = rows["accuracy_low"].iloc[0], rows["accuracy_high"].iloc[0]
    print(
        f"{model}: {parameters[model]:,} parameters reach {rows['accuracy'].mean():.1%} on "
        f"{len(labels):,} validation images (mean of {len(rows)} seed(s); 95% interval of the "
        f"first: {low:.1%} to {high:.1%}). The weakest class is {worst.idxmin()}, with a recall of "
        f"{worst.min():.1%}: the one to watch from here on."
    )
