import numpy as np
import pandas as pd
import pytest

from edgeopt.hardware import ceilings as module
from edgeopt.hardware.ceilings import configure_ceilings, measure_ceilings

MEASURED = pd.DataFrame(
    [
        ("compute", "fp32", 50.0, "GMAC/s", "measured", "torch.mm"),
        ("compute", "int8", 200.0, "GMAC/s", "measured", "torch._int_mm"),
        ("memory", "", 30.0, "GB/s", "measured", "torch copy"),
        ("cache", "", 90.0, "GB/s", "measured", "torch copy"),
    ],
    columns=list(module.COLUMNS),
)


@pytest.fixture
def tiny(monkeypatch):
    monkeypatch.setattr(module, "MATRIX_SIZES", (16, 32))
    monkeypatch.setattr(module, "CONV_SIDE", 1)
    monkeypatch.setattr(module, "DRAM_BUFFER_BYTES", 2**16)
    monkeypatch.setattr(module, "SECONDS", 0.001)


@pytest.mark.usefixtures("tiny")
def test_every_ceiling_is_measured_and_says_how():
    table = measure_ceilings(cache_bytes=2**14)
    assert list(table["name"]) == ["compute"] * 4 + ["memory", "cache"]
    assert list(table["precision"][:4]) == ["fp32", "fp16", "bf16", "int8"]
    assert (table["value"] > 0).all()
    assert (table["kind"] == "measured").all()
    assert table["how"].str.contains("1 thread").all()
    assert table["how"][3].startswith(("torch._int_mm (S8S8)", "onnxruntime MatMulInteger (U8S8)"))


@pytest.mark.usefixtures("tiny")
def test_the_values_are_work_over_the_best_time(monkeypatch):
    monkeypatch.setattr(module, "_best_seconds", lambda *_, **__: 1e-6)
    table = measure_ceilings(cache_bytes=2**14)
    compute, *_, memory, cache = table["value"]
    assert compute == pytest.approx(32**3 / 1e-6 / 1e9)
    assert memory == pytest.approx(2 * 2**16 / 1e-6 / 1e9)
    assert cache == pytest.approx(2 * 2**12 / 1e-6 / 1e9)
    assert "32x32" in table["how"][0]


@pytest.mark.usefixtures("tiny")
def test_the_fastest_kind_of_layer_sets_the_ceiling(monkeypatch):
    monkeypatch.setattr(module, "_best_seconds", lambda *_, **__: 1e-6)
    monkeypatch.setattr(module, "CONV_SIDE", 28)
    table = measure_ceilings().set_index("precision")
    # 8 channels in and out, 9 taps, 28 x 28 pixels: more work in the same time than 32^3
    assert table["value"]["fp16"] == pytest.approx(8 * 8 * 9 * 28 * 28 / 1e-6 / 1e9)
    assert table["how"]["fp16"].startswith("torch conv2d 3x3, 8 channels, 28x28")


@pytest.mark.usefixtures("tiny")
def test_a_slow_type_is_not_tried_on_larger_matrices(monkeypatch):
    monkeypatch.setattr(module, "_best_seconds", lambda *_, **__: 2 * module.SLOW_CALL_S)
    compute = measure_ceilings().query("name == 'compute'")
    assert not compute["how"].str.contains("32x32").any()


@pytest.mark.parametrize(
    ("operator", "types", "result_type"),
    [
        ("MatMulInteger", (np.uint8, np.int8), "int32"),
        ("MatMul", (np.float32, np.float32), "float32"),
    ],
)
def test_onnxruntime_kernels_multiply_in_their_own_type(operator, types, result_type):
    left, right = (np.full((8, 8), 2, dtype) for dtype in types)
    result = module._onnxruntime_matmul(operator, left, right, threads=1)()[0]
    assert result.dtype.name == result_type
    assert (result == 8 * 2 * 2).all()


def test_configured_ceilings_replace_and_say_so():
    table = configure_ceilings(MEASURED, memory_bandwidth_gbps=10)
    assert list(table["name"]) == ["compute", "compute", "memory"]
    assert list(table["value"]) == [50, 200, 10]
    assert list(table["kind"]) == ["measured", "measured", "configured"]
    assert list(table["how"]) == ["torch.mm", "torch._int_mm", "memory_bandwidth_gbps"]


def test_one_configured_peak_holds_for_every_precision():
    table = configure_ceilings(MEASURED, peak_compute_gmacs=75.0)
    assert list(table["value"]) == [75, 75, 30, 90]
    assert list(table["kind"]) == ["configured", "configured", "measured", "measured"]


def test_nothing_configured_changes_nothing():
    assert configure_ceilings(MEASURED).equals(MEASURED)


def test_the_given_table_is_not_changed():
    before = MEASURED.copy()
    configure_ceilings(MEASURED, memory_bandwidth_gbps=1, peak_compute_gmacs=1)
    assert before.equals(MEASURED)


def test_bad_ceilings_are_refused():
    with pytest.raises(ValueError, match="memory_bandwidth_gbps is 0; it must be above 0"):
        configure_ceilings(MEASURED, memory_bandwidth_gbps=0)
    with pytest.raises(ValueError, match="peak_compute_gmacs is nan; it must be above 0"):
        configure_ceilings(MEASURED, peak_compute_gmacs=float("nan"))
