import pytest
import torch

from edgeopt.hardware.profiles import operator_table
from edgeopt.runtimes.export import export_artifact
from tests.specimens import splits, trained_cnn

MACS = {"conv1", "conv2", "classifier"}


def exported(tmp_path, runtime, precision):
    options = {"precision": precision, "input_shape": (1, 1, 28, 28)}
    if precision == "int8":
        options["calibration"] = [*splits()[0].loader(32)]
    return export_artifact(trained_cnn(), tmp_path / "net", runtime=runtime, **options)


def macs_of(model):
    """Multiply-accumulates of the three layers, by hand from the weights and the output's size."""
    sizes = {"conv1": 28 * 28, "conv2": 14 * 14, "classifier": 1}
    return [getattr(model, name).weight.numel() * size for name, size in sizes.items()]


@pytest.mark.filterwarnings("ignore")  # of a profiler that says it is experimental
@pytest.mark.parametrize("runtime", ["torch", "onnxruntime", "executorch", "openvino"])
def test_int8_operators_have_their_macs_in_order(tmp_path, runtime):
    table = operator_table(exported(tmp_path, runtime, "int8"))
    assert list(table) == ["operator", "precision", "macs", "macs_share", "measured_ms", "share"]
    counted = table.dropna(subset="macs")
    assert counted["macs"].tolist() == macs_of(trained_cnn())
    assert set(counted["precision"]) == {"int8"}
    assert counted["macs_share"].sum() == pytest.approx(1)
    assert table["measured_ms"].isna().all() == (runtime == "torch")


def test_where_macs_cannot_be_matched_they_stay_unknown(tmp_path):
    table = operator_table(exported(tmp_path, "onnxruntime", "fp32"))
    assert table["macs"].isna().all()
    multiplying = table["precision"] == "fp32"
    assert multiplying.sum() == len(MACS)
    assert table.loc[multiplying, "measured_ms"].gt(0).all()


def test_macs_of_the_test_network_are_what_torch_counts():
    model = trained_cnn()
    counted = []
    for name in ("conv1", "conv2"):
        layer = getattr(model, name)
        layer.register_forward_hook(
            lambda m, _, out: counted.append(out[0, 0].numel() * m.weight.numel())
        )
    model(torch.zeros(1, 1, 28, 28))
    assert counted == macs_of(model)[:2]
