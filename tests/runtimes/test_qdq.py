"""Int8 ONNX graphs: quantizers by hand, names of layers, one tensor at a time."""

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import TensorProto, helper

from edgeopt.runtimes import qdq
from edgeopt.runtimes.export import export_artifact
from edgeopt.runtimes.onnx_files import Int8Options
from tests.specimens import splits, trained_cnn

SHAPE = (1, 1, 28, 28)


@pytest.fixture(scope="module")
def graphs(tmp_path_factory):
    """The fp32 and int8 graphs of one small network."""
    path = tmp_path_factory.mktemp("qdq") / "int8"
    artifact = export_artifact(
        trained_cnn(),
        path,
        runtime="onnxruntime",
        precision="int8",
        input_shape=SHAPE,
        calibration=splits()[0].loader(32),
    )
    return qdq.prepared_fp32(trained_cnn(), input_shape=SHAPE), onnx.load(artifact.path)


def logits(model: onnx.ModelProto, images: torch.Tensor) -> np.ndarray:
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), providers=["CPUExecutionProvider"]
    )
    return session.run(None, {session.get_inputs()[0].name: images.numpy()})[0]


def quantizer(scale: float, zero_point: int) -> qdq.Quantizer:
    parameters = np.array(scale, np.float32), np.array(zero_point, np.uint8)
    return qdq.Quantizer(*parameters, ("scale", "zero"), "result")


def test_quantizer_by_hand() -> None:
    half = quantizer(0.5, 10)  # integers 0 to 255 stand for -5 to 122.5
    assert half.bounds == (-5.0, 122.5)
    values = np.array([-9.0, -0.3, 0.2, 0.3, 500.0], np.float32)
    assert half.rounded(values).tolist() == [-5.0, -0.5, 0.0, 0.5, 122.5]


def test_every_activation_has_a_quantizer_under_its_fp32_name(graphs) -> None:
    fp32, int8 = graphs
    found = qdq.read_quantizers(int8)
    made = {name for node in fp32.graph.node for name in node.output}
    assert set(found) <= made | {"images"}
    assert {"images", "logits"} <= set(found)
    brightest = float(splits()[0].take(len(splits()[0])).max())
    assert found["images"].bounds == pytest.approx((0, brightest), rel=1e-4)


@pytest.mark.parametrize(
    ("node", "layer"),
    [
        ("/conv1/Conv", "conv1"),
        ("/features/features.0/features.0.0/Conv", "features.0.0"),
        ("/features/features.2/block/block.1/block.1.0/Conv", "features.2.block.1.0"),
        ("/classifier/classifier.3/Gemm", "classifier.3"),
        ("/Gemm", "/Gemm"),
    ],
)
def test_layer_names_are_module_paths(node: str, layer: str) -> None:
    assert qdq.layer_name(helper.make_node("Conv", [], [], name=node)) == layer


def test_the_input_belongs_to_no_layer(graphs) -> None:
    assert qdq.source_layer(graphs[0], "images") is None
    assert qdq.layer_name(None) == "images"
    assert qdq.layer_width(graphs[0], None) is None


def gated() -> onnx.ModelProto:
    """Squeeze-and-excitation, its gate named first: sigmoid(gate(pool(maps))) * maps."""
    nodes = [
        helper.make_node("Conv", ["images", "w"], ["maps"], "/conv/Conv"),
        helper.make_node("GlobalAveragePool", ["maps"], ["means"], "/pool/GlobalAveragePool"),
        helper.make_node("Conv", ["means", "v"], ["scores"], "/gate/Conv"),
        helper.make_node("Sigmoid", ["scores"], ["gates"], "/sigmoid/Sigmoid"),
        helper.make_node("Mul", ["gates", "maps"], ["logits"], "/Mul"),
    ]
    weights = [
        helper.make_tensor(name, TensorProto.FLOAT, shape, np.ones(np.prod(shape)))
        for name, shape in (("w", (5, 3, 1, 1)), ("v", (5, 5, 1, 1)))
    ]
    ends = [helper.make_tensor_value_info(n, TensorProto.FLOAT, None) for n in ("images", "logits")]
    return helper.make_model(helper.make_graph(nodes, "gated", ends[:1], ends[1:], weights))


def test_a_gate_does_not_own_the_channels_it_scales() -> None:
    layer = qdq.source_layer(gated(), "logits")
    assert qdq.layer_name(layer) == "conv"
    assert qdq.layer_width(gated(), layer) == 5
    assert qdq.layer_name(qdq.source_layer(gated(), "gates")) == "gate"


def test_nodes_around_a_layer_write_or_read_its_channels() -> None:
    names = {"/conv/Conv", "/pool/GlobalAveragePool", "/gate/Conv", "/Mul"}
    assert qdq.nodes_around(gated(), "conv") == names


def test_linear_layers_know_their_width(graphs) -> None:
    layer = qdq.source_layer(graphs[0], "logits")
    assert (qdq.layer_name(layer), qdq.layer_width(graphs[0], layer)) == ("classifier", 4)


def test_one_tensor_alone_is_rounded_like_the_arithmetic_says(graphs) -> None:
    fp32, int8 = graphs
    images = splits()[1].take(8)
    found = qdq.read_quantizers(int8)
    partial = qdq.quantize_only(fp32, int8, "logits", found["logits"])
    expected = found["logits"].rounded(logits(fp32, images))
    np.testing.assert_allclose(logits(partial, images), expected, atol=1e-5)


def test_quantizing_the_input_rounds_the_weights_that_read_it(graphs) -> None:
    fp32, int8 = graphs
    images = splits()[1].take(8)
    found = qdq.read_quantizers(int8)["images"]
    partial = qdq.quantize_only(fp32, int8, "images", found)
    model = trained_cnn()
    weight = model.conv1.weight.detach()
    scale = weight.abs().amax((1, 2, 3), keepdim=True) / 127  # symmetric, per channel
    rounded = torch.func.functional_call(
        model,
        {"conv1.weight": (weight / scale).round() * scale},
        (torch.from_numpy(found.rounded(images.numpy())),),
    )
    np.testing.assert_allclose(logits(partial, images), rounded.detach(), atol=1e-3)


def test_a_tensor_of_another_graph_is_refused(graphs) -> None:
    with pytest.raises(ValueError, match="tensor 'elsewhere' is not in the fp32 graph"):
        qdq.quantize_only(*graphs, "elsewhere", qdq.read_quantizers(graphs[1])["logits"])


def test_chosen_nodes_stay_in_float(tmp_path) -> None:
    model = trained_cnn()
    graph = qdq.prepared_fp32(model, input_shape=SHAPE)
    nodes = frozenset(qdq.nodes_around(graph, "conv1"))
    tensors = {}
    for name, float_nodes in {"whole": frozenset(), "mixed": nodes}.items():
        artifact = export_artifact(
            model,
            tmp_path / name,
            runtime="onnxruntime",
            precision="int8",
            input_shape=SHAPE,
            calibration=splits()[0].loader(32),
            options=Int8Options(float_nodes=float_nodes),
        )
        tensors[name] = set(qdq.read_quantizers(onnx.load(artifact.path)))
    assert tensors["mixed"] < tensors["whole"]
    layers = {qdq.layer_name(qdq.source_layer(graph, t)) for t in tensors["mixed"]}
    assert "conv1" not in layers
    weights = {constant.name for constant in onnx.load(artifact.path).graph.initializer}
    assert {"conv1.weight", "classifier.weight_quantized"} <= weights
