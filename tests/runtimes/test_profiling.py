import itertools
from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import onnx
import pandas as pd
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import nn

from edgeopt.hardware.profiles import MULTIPLYING, join_profile
from edgeopt.runtimes import profiling
from edgeopt.runtimes.contract import Artifact
from edgeopt.runtimes.executorch import CONTAINERS
from edgeopt.runtimes.onnxruntime import kernel_times
from edgeopt.runtimes.profiling import operator_times
from edgeopt.runtimes.registry import runtime_named
from edgeopt.system.upstream import RuntimeUnavailable

SHAPE = (1, 1, 8, 8)
executorch_warnings = pytest.mark.filterwarnings(
    "ignore:(read|open)_(text|binary) is deprecated:DeprecationWarning",
    "ignore:`torch.jit.script_method` is deprecated:DeprecationWarning",
    "ignore:`isinstance.treespec, LeafSpec.` is deprecated:FutureWarning",
    "ignore:This API is experimental and subject to change",
)


@pytest.fixture(scope="module")
def onnx_path(tmp_path_factory) -> Path:
    rng = np.random.default_rng(0)
    shapes = {"w": (4, 1, 3, 3), "v": (144, 10)}
    weights = [
        numpy_helper.from_array(rng.random(shape, dtype=np.float32), name)
        for name, shape in shapes.items()
    ]
    nodes = [
        helper.make_node("Conv", ["images", "w"], ["a"], name="conv"),
        helper.make_node("Flatten", ["a"], ["b"], name="flatten"),
        helper.make_node("MatMul", ["b", "v"], ["logits"], name="matmul"),
    ]
    inputs = [helper.make_tensor_value_info("images", TensorProto.FLOAT, SHAPE)]
    outputs = [helper.make_tensor_value_info("logits", TensorProto.FLOAT, (1, 10))]
    graph = helper.make_graph(nodes, "tiny", inputs, outputs, weights)
    opsets = [helper.make_opsetid("", 17)]
    path = tmp_path_factory.mktemp("profilers") / "tiny.onnx"
    onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=8), path)
    return path


def times(path, runtime="onnxruntime"):
    artifact = Artifact(path, runtime, "fp32", SHAPE, "", 0)
    return runtime_named(runtime).layer_times(artifact, threads=1)


def assert_is_profile(table, multiplying):
    assert list(table.columns) == ["layer", "op", "measured_ms", "share"]
    assert table["op"].str.contains(MULTIPLYING).sum() == multiplying
    assert (table["measured_ms"] >= 0).all()


def test_onnxruntime_profiles_its_nodes(onnx_path):
    table = times(onnx_path)
    assert_is_profile(table, multiplying=2)
    assert table["op"].iloc[0] == "Conv"
    assert not list(Path.cwd().glob("profile*.json"))


def test_openvino_profiles_its_kernels(onnx_path):
    pytest.importorskip("openvino")
    table = times(onnx_path, "openvino")
    assert_is_profile(table, multiplying=2)
    assert any(table["op"].str.startswith("Convolution "))


class RunningMeans:
    """OpenVINO's counters: the mean since the first call, in whole microseconds."""

    def __init__(self, **calls):
        self.calls = calls
        self.runs = 0

    def infer(self, _):
        self.runs += 1

    @property
    def profiling_info(self):
        return [
            SimpleNamespace(
                node_name=name,
                node_type=name,
                exec_type="unknown_f32" if name == "Reshape" else "jit_f32",
                real_time=timedelta(microseconds=sum(us[: self.runs]) // max(self.runs, 1)),
            )
            for name, us in self.calls.items()
        ]


def test_openvinos_running_mean_loses_its_warm_up(onnx_path, monkeypatch):
    request = RunningMeans(
        Convolution=[600, 20, 4, 6, 4, 6, 4, 6, 4, 6], Relu=[9] + [0] * 9, Reshape=[0] * 10
    )
    compiled = SimpleNamespace(create_infer_request=lambda: request)
    monkeypatch.setattr(
        "edgeopt.runtimes.sessions.openvino.compile_artifact", lambda *_, **__: compiled
    )
    monkeypatch.setattr(profiling, "RUNS", 8)
    monkeypatch.setattr(profiling, "WARMUP", 2)
    table = times(onnx_path, "openvino").set_index("layer")
    # means: 620/2 = 310 then 660/10 = 66 us, so (66 x 10 - 310 x 2) / 8 = 5 us a call;
    # Relu: 9/2 = 4 then 0 us, so below nothing, that is nothing; Reshape has no kernel
    assert table["measured_ms"].to_dict() == {"Convolution": 0.005, "Relu": 0.0}


@executorch_warnings
def test_executorch_profiles_xnnpack_operators(tmp_path):
    pytest.importorskip("executorch")
    from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
    from executorch.exir import to_edge_transform_and_lower

    model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.Flatten(), nn.Linear(144, 10)).eval()
    program = torch.export.export(model, (torch.zeros(SHAPE),))
    lowered = to_edge_transform_and_lower(program, partitioner=[XnnpackPartitioner()])
    path = tmp_path / "tiny.pte"
    path.write_bytes(lowered.to_executorch().buffer)
    table = times(path, "executorch")
    assert_is_profile(table, multiplying=2)
    assert not set(table["layer"]) & set(CONTAINERS)


def event(name, op, index, microseconds):
    args = {"op_name": op, "node_index": str(index)}
    return {"cat": "Node", "name": f"{name}_kernel_time", "dur": microseconds, "args": args}


def test_runs_are_averaged_without_warm_up_and_outliers():
    session = {"cat": "Session", "name": "model_run", "dur": 999, "args": {}}
    fence = {"cat": "Node", "name": "conv_fence_before", "dur": 9, "args": {}}
    warm = [event("conv", "Conv", 7, 5000), event("relu", "Relu", 8, 5000)]
    runs = [[event("conv", "Conv", 7, us), event("relu", "Relu", 8, 1)] for us in [2] * 5 + [3] * 4]
    outlier = [event("conv", "Conv", 7, 10_000), event("relu", "Relu", 8, 1)]
    events = [session, fence, *warm, *itertools.chain(*runs), *outlier]
    table = operator_times(kernel_times(events), warmup=1)
    # ten runs 2 2 2 2 2 3 3 3 3 10000 us, without one at each end: (4 x 2 + 4 x 3) / 8 = 2.5
    assert list(table["layer"]) == ["conv", "relu"]
    assert table["measured_ms"].tolist() == pytest.approx([0.0025, 0.001])
    assert table["share"].tolist() == pytest.approx([2.5 / 3.5, 1 / 3.5])


def test_nodes_of_one_name_are_kept_apart():
    events = [event("", "Conv", 1, 4), event("", "Conv", 2, 6)]
    assert operator_times(kernel_times(events), warmup=0)["measured_ms"].sum() == 0.01


def profile_of(*rows):
    table = pd.DataFrame(rows, columns=["layer", "op", "measured_ms"])
    return table.assign(share=table["measured_ms"] / table["measured_ms"].sum())


BREAKDOWN = pd.DataFrame({"layer": ["conv1", "relu", "fc"], "macs": [300, 0, 100]})


def test_layers_are_matched_by_order_and_the_rest_is_summed():
    profile = profile_of(("a", "QLinearConv", 2.0), ("b", "Relu", 1.0), ("c", "QGemm", 1.0))
    joined = join_profile(BREAKDOWN, profile).set_index("layer")
    assert list(joined.index) == ["conv1", "fc", "everything else"]
    assert list(joined["runtime_layer"][:2]) == ["a", "c"]
    assert joined["share"].tolist() == [0.5, 0.25, 0.25]
    assert joined["macs_share"].tolist() == [0.75, 0.25, 0.0]


@pytest.mark.parametrize(
    ("op", "multiplies"),
    [
        ("FusedConv", True),
        ("ConvInteger", True),
        ("DynamicQuantizeMatMul", True),
        ("GroupConvolution brgconv_avx512_dw_f32", True),
        ("FullyConnected gemm_mlas_f32", True),
        ("Fully Connected (NC, F32) GEMM", True),
        ("Convolution (NHWC, QC8) IGEMM", True),
        ("Convert (NC, F32, QS8)", False),
        ("Reorder reorder_brgemm_f32", False),
        ("QuantizeLinear", False),
    ],
)
def test_operators_that_multiply_are_told_from_others(op, multiplies):
    assert pd.Series([op]).str.contains(MULTIPLYING)[0] == multiplies


def test_a_profile_of_other_layers_is_refused():
    expected = r"1 multiplying operators were profiled \(Conv\) but the model has 2 layers"
    with pytest.raises(ValueError, match=expected):
        join_profile(BREAKDOWN, profile_of(("a", "Conv", 1.0)))


def test_what_cannot_be_profiled_says_unavailable(onnx_path):
    with pytest.raises(RuntimeUnavailable, match="unavailable: PyTorch has no layer profile"):
        times(onnx_path, "torch")
