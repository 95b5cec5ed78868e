"""LiteRT files: what is in them, by hand, and what becomes of what must stay in float."""

import re
import tomllib
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from edgeopt.experiments.candidates.floor import floor_network
from edgeopt.metrics.activations import artifact_activation_bytes
from edgeopt.quantization.inserted import ScaledActivation
from edgeopt.runtimes import litert
from edgeopt.runtimes.contract import Artifact, ExportError, Int8Options
from edgeopt.runtimes.export import export_artifact
from edgeopt.runtimes.formats.litert_graph import Graph, Node, Tensor, read_graph
from edgeopt.runtimes.formats.litert_micro import with_integer_borders
from edgeopt.runtimes.integer_share import executed_graph, executed_macs, mac_shares
from edgeopt.runtimes.registry import load_session, runtime_named
from edgeopt.system.files import file_sha256
from edgeopt.system.upstream import RuntimeUnavailable
from tests.artifacts import (
    CLASSES,
    MACS,
    artifact_of,
    calibration_loader,
    require_runtime,
    trained_cnn,
)
from tests.conftest import striped_split

ROOT = Path(__file__).parents[2]
SHAPE = (1, 1, 28, 28)
WEIGHTS, BIASES = 6 * 9 + 8 * 6 * 9 + CLASSES * 8 * 49, 6 + 8 + CLASSES


def int8_of(model: nn.Module, path: Path, **options) -> Artifact:
    require_runtime("litert")
    return export_artifact(
        model,
        path,
        runtime="litert",
        precision="int8",
        input_shape=SHAPE,
        calibration=calibration_loader(),
        **options,
    )


def kinds(artifact: Artifact) -> Counter:
    """Operators by name and type of their result."""
    graph = read_graph(artifact.path.read_bytes())
    return Counter((n.name, graph.tensors[n.outputs[0]].kind) for n in graph.nodes)


def test_int8_is_integer_between_float_borders():
    artifact = artifact_of("litert", "int8")
    assert kinds(artifact) == {
        ("QUANTIZE", "int8"): 1,
        ("DEPTHWISE_CONV_2D", "int8"): 1,  # one input channel
        ("MAX_POOL_2D", "int8"): 2,
        ("CONV_2D", "int8"): 1,
        ("TRANSPOSE", "int8"): 1,  # torch flattens channels first
        ("RESHAPE", "int8"): 1,
        ("FULLY_CONNECTED", "int8"): 1,
        ("DEQUANTIZE", "float32"): 1,
    }
    layers = [o for o in executed_graph(artifact) if o.macs]
    assert [(o.macs, o.precision) for o in layers] == [(n, "int8") for n in MACS.values()]


@pytest.mark.parametrize(("precision", "weight", "bias"), [("fp32", 4, 4), ("int8", 1, 4)])
def test_weight_bytes_are_those_of_weights_biases_and_two_shapes(precision, weight, bias):
    shapes = 4 * 4 + 2 * 4  # of the transposition and the flattening
    counted = runtime_named("litert").weight_bytes(artifact_of("litert", precision))
    assert counted == weight * WEIGHTS + bias * BIASES + shapes


def test_peak_activations_of_int8_are_the_first_layer_and_its_pooling():
    peak = artifact_activation_bytes(artifact_of("litert", "int8"), model=trained_cnn())
    assert peak == 28 * 28 * 6 + 14 * 14 * 6


@pytest.mark.parametrize(("precision", "tolerance"), [("fp32", 1e-5), ("int8", 0.05)])
def test_logits_are_torchs(precision, tolerance):
    artifact = artifact_of("litert", precision, 3)  # 128 calibration images are no multiple of it
    images = striped_split(40, seed=5).take(40)
    with torch.no_grad():
        expected = trained_cnn()(images).numpy()
    logits = load_session(artifact).score(images.numpy())
    assert np.abs(logits - expected).max() <= tolerance * np.abs(expected).max()
    assert (artifact.parity_difference < 1e-5, artifact.parity_agreement) == (True, 1)


@pytest.mark.parametrize("channels", [1, 3])
def test_the_product_of_the_call_floor_is_found(channels, tmp_path):
    require_runtime("litert")
    artifact = export_artifact(
        floor_network(channels, num_classes=CLASSES),
        tmp_path / "floor",
        runtime="litert",
        precision="fp32",
        input_shape=(1, channels, 8, 8),
    )
    [product] = executed_macs(artifact)
    assert (product.macs, product.precision) == (channels * CLASSES, "fp32")


def test_a_call_leaves_its_input_as_it_was():
    images = striped_split(3, seed=5).take(1).numpy()
    session = load_session(artifact_of("litert", "fp32"))
    expected = session(images)
    with session.bound(images) as call:
        returned = [call() for _ in range(3)]
        np.testing.assert_array_equal(session._logits(returned[-1]), expected)


def test_a_layer_in_float_takes_its_readers_along(tmp_path):
    options = Int8Options(float_layers=frozenset({"conv1"}))
    artifact = int8_of(trained_cnn(), tmp_path / "mixed", options=options)
    found = kinds(artifact)
    assert found["MAX_POOL_2D", "float32"] == 1  # the one between them
    assert found["MAX_POOL_2D", "int8"] == 1
    share = MACS["classifier"] / sum(MACS.values())
    assert mac_shares(artifact) == {"fp32": 1 - share, "int8": share}


def test_the_last_layer_can_stay_in_float(tmp_path):
    options = Int8Options(float_layers=frozenset({"classifier"}))
    artifact = int8_of(trained_cnn(), tmp_path / "mixed", options=options)
    assert mac_shares(artifact)["fp32"] == MACS["classifier"] / sum(MACS.values())


def test_inserted_scales_are_not_folded_into_the_layers_around_them(tmp_path):
    torch.manual_seed(0)
    scale = torch.tensor([1.0, 8.0, 64.0, 512.0]).view(1, 4, 1, 1)
    scaled = ScaledActivation(nn.Hardswish(), before=scale, after=1 / scale)
    tail = (nn.Conv2d(4, 4, 3), nn.Flatten(), nn.Linear(4 * 24 * 24, CLASSES))
    model = nn.Sequential(nn.Conv2d(1, 4, 3), scaled, *tail).eval()
    artifact = int8_of(model, tmp_path / "scaled")
    found = kinds(artifact)
    assert [found[name, "float32"] for name in ("MUL", "HARD_SWISH", "DEQUANTIZE")] == [2, 1, 2]
    assert mac_shares(artifact) == {"int8": 1}
    assert len(read_graph(artifact.path.read_bytes()).outputs) == 1


def test_a_padding_is_counted_where_a_convolution_does_not_do_it():
    image, padded, result = (Tensor((1, side, side, 1), "int8") for side in (4, 6, 4))
    weight = Tensor((1, 3, 3, 1), "int8")
    tensors = (image, padded, weight, result)
    pad, other = Node("PAD", (0,), (1,)), Node("MAX_POOL_2D", (1,), (3,))
    inside = Graph(tensors, (pad, Node("CONV_2D", (1, 2), (3,))), (0,), (3,), 9)
    assert litert._keys(inside) == [0, 0, 2, 3]
    outside = Graph(tensors, (pad, other), (0,), (3,), 9)
    assert litert._keys(outside) == [0, 1, 2, 3]


def test_a_session_quantizes_where_the_file_begins_and_ends_with_integers(tmp_path):
    floats = artifact_of("litert", "int8")
    path = tmp_path / "integers.tflite"
    path.write_bytes(with_integer_borders(floats.path.read_bytes()))
    integers = Artifact(path, "litert", "int8", SHAPE, file_sha256(path), path.stat().st_size)
    assert not {"QUANTIZE", "DEQUANTIZE"} & {name for name, _ in kinds(integers)}
    images = striped_split(20, seed=6).take(20).numpy()
    expected = load_session(floats).score(images)
    logits = load_session(integers).score(images)
    assert logits.dtype == np.float32
    np.testing.assert_allclose(logits, expected, atol=np.diff(np.unique(expected)).min())


class Odd(nn.Module):
    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return torch.linalg.eigvals(images[:, 0]).real[:, :CLASSES]


def test_what_the_converter_says_is_in_the_error(tmp_path):
    said = r"cannot export Odd .*: the converter ended with 1: .*eig"
    with pytest.raises(ExportError, match=said):
        int8_of(Odd().eval(), tmp_path / "odd")


def test_a_layer_in_float_that_is_not_in_the_file_is_named(tmp_path):
    model = nn.Sequential(nn.Identity(), nn.Flatten(), nn.Linear(28 * 28, CLASSES)).eval()
    options = Int8Options(float_layers=frozenset({"0"}))
    with pytest.raises(ExportError, match=r"the file has no operator of \['network.0'\]"):
        int8_of(model, tmp_path / "identity", options=options)


def test_without_the_converter_it_says_what_to_run(tmp_path, monkeypatch):
    monkeypatch.setattr(litert, "CONVERTER", tmp_path / "python")
    reason = "LiteRT and its converter are not installed: run `make litert`"
    assert runtime_named("litert").unavailable() == reason
    target = {"runtime": "litert", "precision": "fp32", "input_shape": SHAPE}
    with pytest.raises(RuntimeUnavailable, match=re.escape(reason)):
        export_artifact(trained_cnn(), tmp_path / "cnn", **target)


def test_the_converters_pins_are_the_projects():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    ours = {*project["dependencies"], *project["optional-dependencies"]["litert"]}
    recipe = (ROOT / "Makefile").read_text().partition("$(LITERT)/.edgeopt:")[2]
    pins = re.findall(r"[\w-]+==[\d.]+", recipe.partition("touch")[0])
    assert {"torch", "torchao", "ai-edge-litert"} == {p.partition("==")[0] for p in ours & {*pins}}
