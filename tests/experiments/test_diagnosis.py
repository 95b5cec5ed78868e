"""Diagnosis: the worst channel is named, and the numbers are what their names say."""

import numpy as np
import pytest
import torch

from edgeopt.data.splits import Split
from edgeopt.experiments.diagnosis import COLUMNS, diagnose
from edgeopt.model.networks import SmallCNN
from edgeopt.quantization.equalization import plant_collapse
from edgeopt.runtimes.contract import Artifact
from edgeopt.runtimes.export import export_artifact
from edgeopt.runtimes.qdq import read_quantizers
from tests.specimens import CLASSES, in_colour, splits, trained_cnn, trained_mobilenet


def int8_of(
    model: torch.nn.Module, path, *, precision: str = "int8", colour: bool = False
) -> Artifact:
    images, labels = splits()[0].take(len(splits()[0])), splits()[0].labels
    images = in_colour(images) if colour else images
    return export_artifact(
        model,
        path / precision,
        runtime="onnxruntime",
        precision=precision,
        input_shape=(1, *images.shape[1:]),
        calibration=list(zip(images.split(32), labels.split(32), strict=True)),
    )


@pytest.fixture(scope="module")
def healthy(tmp_path_factory):
    artifact = int8_of(trained_cnn(), tmp_path_factory.mktemp("healthy"))
    validation = splits()[1]
    return diagnose(trained_cnn(), artifact, validation.first(64))


def test_table_is_complete_and_worst_first(healthy) -> None:
    assert tuple(healthy.columns) == COLUMNS
    assert set(healthy["layer"]) == {"images", "conv1", "conv2", "classifier"}
    assert healthy["accuracy_alone"].is_monotonic_increasing
    assert healthy["saturated_share"].between(0, 1).all()
    assert not healthy.isna().any(axis=None)


def test_ranges_and_ratios_are_those_of_the_activations(healthy) -> None:
    images = splits()[1].take(64)
    with torch.no_grad():
        hidden = trained_cnn().relu1(trained_cnn().conv1(images))
    row = healthy[healthy["tensor"] == "/relu1/Relu_output_0"].iloc[0]
    peaks = hidden.amax((0, 2, 3))
    assert row["maximum"] == pytest.approx(float(hidden.max()), rel=1e-4)
    assert row["minimum"] == 0
    assert row["worst_channel"] == int(peaks.argmax())
    assert row["outlier_ratio"] == pytest.approx(
        float(peaks.max()) / float(np.median(peaks.numpy())), rel=1e-4
    )


def test_signal_to_noise_alone_is_that_of_rounding(tmp_path) -> None:
    artifact = int8_of(trained_cnn(), tmp_path)
    images = splits()[1].take(16)
    table = diagnose(trained_cnn(), artifact, images).set_index("tensor")
    import onnx

    quantizer = read_quantizers(onnx.load(artifact.path))["logits"]
    with torch.no_grad():
        exact = trained_cnn()(images).numpy()
    noise = quantizer.rounded(exact) - exact
    per_class = 10 * np.log10((exact**2).mean(axis=0) / (noise**2).mean(axis=0))
    assert table.loc["logits", "sqnr_alone_db"] == pytest.approx(np.median(per_class), abs=0.5)
    assert table.loc["logits", "sqnr_accumulated_db"] < table.loc["logits", "sqnr_alone_db"]


@pytest.mark.parametrize(
    ("layer", "channel", "factor"), [("conv1", 3, 1e4), ("conv1", 6, 1e3), ("conv2", 4, 1e5)]
)
def test_names_the_planted_channel(tmp_path, layer: str, channel: int, factor: float) -> None:
    planted = plant_collapse(trained_cnn(), layer, channel, factor)
    validation = splits()[1]
    worst = diagnose(planted, int8_of(planted, tmp_path), validation.first(100)).iloc[0]
    assert (worst["layer"], worst["worst_channel"]) == (layer, channel)
    assert worst["outlier_ratio"] > factor / 20
    assert worst["sqnr_alone_db"] < 20


def test_values_beyond_the_calibrated_range_are_saturated(tmp_path) -> None:
    artifact = int8_of(trained_cnn(), tmp_path)
    table = diagnose(trained_cnn(), artifact, splits()[1].take(16) * 2).set_index("tensor")
    assert table.loc["images", "saturated_share"] > 0.01
    assert table.loc["images", "maximum"] > 1


def test_without_labels_it_counts_agreement_with_fp32(tmp_path) -> None:
    torch.manual_seed(0)
    untrained = SmallCNN(4, 4, CLASSES).eval()
    table = diagnose(untrained, int8_of(untrained, tmp_path), splits()[1].take(64))
    assert table["accuracy_alone"].max() > 0.9


def test_names_the_planted_channel_of_a_mobilenet(tmp_path) -> None:
    planted = plant_collapse(trained_mobilenet(), "features.2.block.0.0", 5, 1e3)
    artifact = int8_of(planted, tmp_path, colour=True)
    some = Split(in_colour(splits()[1].take(32)), splits()[1].labels[:32])
    worst = diagnose(planted, artifact, some).iloc[0]
    assert (worst["layer"], worst["worst_channel"]) == ("features.2.block.0.0", 5)
    assert worst["accuracy_alone"] < 0.6


@pytest.mark.parametrize("precision", ["fp32", "int8-dynamic"])
def test_only_static_int8_can_be_diagnosed(tmp_path, precision: str) -> None:
    artifact = int8_of(trained_cnn(), tmp_path, precision=precision)
    with pytest.raises(ValueError, match=r"cannot be diagnosed; allowed: static int8 ONNX"):
        diagnose(trained_cnn(), artifact, splits()[1].take(4))


def test_an_artifact_of_another_model_is_refused(tmp_path) -> None:
    artifact = int8_of(trained_cnn(), tmp_path)
    other = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(784, CLASSES))
    with pytest.raises(ValueError, match="was not made from this model: it holds '/Flatten"):
        diagnose(other, artifact, splits()[1].take(4))


def test_no_images_are_refused(tmp_path) -> None:
    artifact = int8_of(trained_cnn(), tmp_path)
    with pytest.raises(ValueError, match="no images to diagnose"):
        diagnose(trained_cnn(), artifact, splits()[1].take(0))
