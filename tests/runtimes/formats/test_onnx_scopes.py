"""Nodes of an ONNX file by the module of the network that they come from."""

import onnx
import pytest
import torch
from torch import fx, nn

from edgeopt.model.canonical import layers_as_modules
from edgeopt.runtimes.export import export_artifact
from edgeopt.runtimes.formats.onnx_scopes import nodes_around, nodes_of_modules
from tests.networks import OwnLayers

SHAPE = (1, 3, 32, 32)
# torch's own GroupNorm asks for the number of images.
pytestmark = pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")


class Nested(nn.Module):
    """Two of the same layers, below one another, and one with code of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Sequential(OwnLayers(), nn.Hardswish())
        self.second = nn.Sequential(nn.Linear(5, 6), nn.Hardswish(), nn.Linear(6, 4))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.second(self.first(images))


@pytest.fixture(scope="module")
def graph(tmp_path_factory) -> onnx.GraphProto:
    torch.manual_seed(0)
    model = layers_as_modules(Nested())
    assert isinstance(model, fx.GraphModule)
    path = tmp_path_factory.mktemp("onnx") / "nested"
    artifact = export_artifact(
        model, path, runtime="onnxruntime", precision="fp32", input_shape=SHAPE
    )
    return onnx.load(artifact.path).graph


@pytest.mark.parametrize("layer", ["first.0.last", "second.0", "second.2"])
def test_nodes_around_finds_a_layer_of_a_graph_module_by_its_whole_path(graph, layer):
    own = [node.name for node in graph.node if f"/{layer}/" in node.name]
    assert len(own) == 1
    assert own[0] in nodes_around(graph, layer)


def test_nodes_of_modules_tells_two_activations_of_one_kind_apart(graph):
    activations = {node.name for node in graph.node if "HardSwish" in node.op_type}
    assert len(activations) == 2
    each = [nodes_of_modules(graph, [name]) & activations for name in ("first.1", "second.1")]
    assert [len(found) for found in each] == [1, 1]
    assert each[0] != each[1]


def test_every_tensor_that_a_node_reads_is_made_somewhere(graph):
    made = {tensor.name for tensor in (*graph.initializer, *graph.input)}
    for node in graph.node:
        assert {name for name in node.input if name} <= made
        made |= {*node.output}
