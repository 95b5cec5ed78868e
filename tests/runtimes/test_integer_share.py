import dataclasses
import hashlib

import onnx
import pytest
import torch
from onnxruntime import quantization as ort
from onnxruntime.transformers.float16 import convert_float_to_float16
from torch import nn

from edgeopt.runtimes.contract import Artifact, Operation
from edgeopt.runtimes.export import export_artifact
from edgeopt.runtimes.integer_share import (
    LabelError,
    executed_graph,
    executed_macs,
    labelled,
    mac_shares,
    verify_label,
)
from edgeopt.runtimes.registry import RUNTIMES
from edgeopt.schema import INT8_PRECISIONS
from edgeopt.system.upstream import known_noise_silenced
from tests.artifacts import (
    MACS,
    TARGETS,
    artifact_of,
    calibration_loader,
    require_runtime,
    trained_cnn,
)

TOTAL = sum(MACS.values())


@pytest.mark.parametrize(("runtime", "precision"), TARGETS)
def test_every_mac_is_found_and_has_the_arithmetic_of_its_label(runtime, precision):
    artifact = artifact_of(runtime, precision)
    assert sum(count.macs for count in executed_macs(artifact)) == TOTAL
    integer = precision in INT8_PRECISIONS
    assert mac_shares(artifact) == {"int8" if integer else precision: 1.0}
    assert verify_label(artifact) == (1.0 if integer else 0.0)


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_a_batch_of_four_has_four_times_the_macs(runtime):
    counts = executed_macs(artifact_of(runtime, "fp32", 4))
    assert sum(count.macs for count in counts) == 4 * TOTAL


def artifact_from(path, runtime, precision):
    content = path.read_bytes()
    digest = hashlib.sha256(content).hexdigest()
    return Artifact(path, runtime, precision, (1, 1, 28, 28), digest, len(content))


class Reader:
    def __init__(self):
        self.pending = iter(calibration_loader())

    def get_next(self):
        batch = next(self.pending, None)
        return batch and {"images": batch[0].numpy()}


@pytest.mark.parametrize("runtime", ["onnxruntime", "openvino"])
@pytest.mark.parametrize("layer", ["conv1", "conv2"])
def test_a_layer_left_in_float_is_missing_from_the_share(runtime, layer, tmp_path):
    require_runtime(runtime)
    ort.quantize_static(
        artifact_of("onnxruntime", "fp32").path,
        tmp_path / "mixed.onnx",
        Reader(),
        per_channel=True,
        activation_type=ort.QuantType.QUInt8,
        weight_type=ort.QuantType.QInt8,
        nodes_to_exclude=[f"/{layer}/Conv"],
    )
    exported = artifact_from(tmp_path / "mixed.onnx", runtime, "int8")
    with pytest.raises(LabelError, match=r"it is not int8, which takes at least 95%"):
        verify_label(exported)
    named = labelled(exported)
    assert named.precision == "int8-mixed"
    assert verify_label(named) == pytest.approx(1 - MACS[layer] / TOTAL)


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_a_float_file_under_the_label_int8_is_found_out(runtime):
    mislabelled = dataclasses.replace(artifact_of(runtime, "fp32"), precision="int8")
    with pytest.raises(LabelError, match=rf"\({runtime} int8\) computes no MAC in integers"):
        verify_label(mislabelled)


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_verify_label_refuses_an_int8_file_under_the_label_fp32(runtime):
    mislabelled = dataclasses.replace(artifact_of(runtime, "int8"), precision="fp32")
    with pytest.raises(LabelError, match=rf"\({runtime} fp32\) computes its MACs 100.0% in int8"):
        verify_label(mislabelled)


@pytest.mark.parametrize(("found", "label"), [("fp32", "fp16"), ("fp16", "fp32"), ("int8", "fp16")])
def test_verify_label_refuses_a_torch_file_of_another_precision(found, label):
    mislabelled = dataclasses.replace(artifact_of("torch", found), precision=label)
    with pytest.raises(LabelError, match=rf"100.0% in {found}: it is not {label}, .* least 95%"):
        verify_label(mislabelled)


@pytest.mark.parametrize("found", ["fp32", "int8"])
def test_verify_label_refuses_bf16_that_the_runtime_does_not_execute(found, monkeypatch):
    pytest.importorskip("openvino")
    from edgeopt.runtimes.sessions import openvino

    def ignoring_the_hint(artifact, **options):
        return compile_artifact(dataclasses.replace(artifact, precision=found), **options)

    compile_artifact = openvino.compile_artifact
    monkeypatch.setattr(openvino, "compile_artifact", ignoring_the_hint)
    executed_graph.cache_clear()
    mislabelled = dataclasses.replace(artifact_of("openvino", found), precision="bf16")
    with pytest.raises(LabelError, match=rf"100.0% in {found}: it is not bf16"):
        verify_label(mislabelled)
    executed_graph.cache_clear()


def graph_of(narrow):
    return [
        Operation("conv", macs=narrow, precision="fp16"),
        Operation("linear", macs=100 - narrow, precision="fp32"),
    ]


def test_verify_label_takes_a_float_label_with_a_twentieth_in_another_type(monkeypatch):
    monkeypatch.setattr("edgeopt.runtimes.integer_share.executed_graph", lambda _: graph_of(95))
    assert mac_shares(artifact_of("torch", "fp16")) == {"fp16": 0.95, "fp32": 0.05}
    assert verify_label(artifact_of("torch", "fp16")) == 0


def test_verify_label_refuses_a_float_label_with_more_in_another_type(monkeypatch):
    monkeypatch.setattr("edgeopt.runtimes.integer_share.executed_graph", lambda _: graph_of(94))
    with pytest.raises(LabelError, match=r"94.0% in fp16, 6.0% in fp32: it is not fp16"):
        verify_label(artifact_of("torch", "fp16"))


def test_executed_macs_of_an_fp16_onnx_file_are_fp32_in_onnx_runtime(tmp_path):
    # why onnxruntime offers no fp16: its CPU provider casts the file's tensors to float32
    fp32 = onnx.load(artifact_of("onnxruntime", "fp32").path)
    onnx.save(convert_float_to_float16(fp32, keep_io_types=True), tmp_path / "half.onnx")
    stored = {t.data_type for t in onnx.load(tmp_path / "half.onnx").graph.initializer if t.dims}
    assert onnx.TensorProto.FLOAT16 in stored
    assert onnx.TensorProto.FLOAT not in stored
    artifact = artifact_from(tmp_path / "half.onnx", "onnxruntime", "fp32")
    assert mac_shares(artifact) == {"fp32": 1.0}
    assert sum(count.macs for count in executed_macs(artifact)) == TOTAL


def test_operators_that_no_delegate_takes_are_counted(tmp_path):
    require_runtime("executorch")
    with known_noise_silenced():
        from executorch.exir import to_edge

        program = torch.export.export(trained_cnn(), (torch.zeros(1, 1, 28, 28),))
        path = tmp_path / "portable.pte"
        path.write_bytes(to_edge(program).to_executorch().buffer)
    counts = executed_macs(artifact_from(path, "executorch", "fp32"))
    assert [count.macs for count in counts] == list(MACS.values())
    assert {count.precision for count in counts} == {"fp32"}


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_grouped_convolutions_count_their_own_inputs_only(runtime, tmp_path):
    require_runtime(runtime)
    model = nn.Sequential(
        nn.Conv2d(1, 8, 3, stride=2, padding=1),
        nn.ReLU(),
        nn.Conv2d(8, 8, 3, groups=8),
        nn.ReLU(),
        nn.Conv2d(8, 4, 1, groups=2),
        nn.Flatten(),
        nn.Linear(4 * 12 * 12, 5),
    )
    artifact = export_artifact(
        model, tmp_path / "grouped", runtime=runtime, precision="fp32", input_shape=(1, 1, 28, 28)
    )
    expected = 14 * 14 * 8 * 9 + 12 * 12 * 8 * 9 + 12 * 12 * 4 * 4 + 4 * 12 * 12 * 5
    assert sum(count.macs for count in executed_macs(artifact)) == expected


def test_a_network_without_macs_has_no_share(tmp_path):
    artifact = export_artifact(
        nn.Sequential(nn.MaxPool2d(7), nn.Flatten()),
        tmp_path / "pool",
        runtime="onnxruntime",
        precision="fp32",
        input_shape=(1, 1, 28, 28),
    )
    with pytest.raises(LabelError, match="executes no convolution and no matrix product"):
        verify_label(artifact)
