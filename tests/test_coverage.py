import dataclasses
import hashlib

import pytest
import torch
from onnxruntime import quantization as ort
from torch import nn

from edgeopt._upstream import known_noise_silenced
from edgeopt.coverage import LabelError, executed_macs, int8_mac_share, verify_label
from edgeopt.export import Artifact, export_artifact
from edgeopt.schema import INT8_PRECISIONS, RUNTIMES
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
    expected = 1.0 if precision in INT8_PRECISIONS else 0.0
    assert int8_mac_share(artifact) == verify_label(artifact) == expected


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
    share = int8_mac_share(artifact_from(tmp_path / "mixed.onnx", runtime, "int8"))
    assert share == pytest.approx(1 - MACS[layer] / TOTAL)


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_a_float_file_under_the_label_int8_is_found_out(runtime):
    mislabelled = dataclasses.replace(artifact_of(runtime, "fp32"), precision="int8")
    with pytest.raises(LabelError, match=rf"\({runtime} int8\) computes no MAC in integers"):
        verify_label(mislabelled)


def test_operators_that_no_delegate_takes_are_counted(tmp_path):
    require_runtime("executorch")
    with known_noise_silenced():
        from executorch.exir import to_edge

        program = torch.export.export(trained_cnn(), (torch.zeros(1, 1, 28, 28),))
        path = tmp_path / "portable.pte"
        path.write_bytes(to_edge(program).to_executorch().buffer)
    counts = executed_macs(artifact_from(path, "executorch", "fp32"))
    assert [count.macs for count in counts] == list(MACS.values())
    assert not any(count.integer for count in counts)


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
        int8_mac_share(artifact)
