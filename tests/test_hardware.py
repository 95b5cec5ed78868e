import pandas as pd
import pytest

from edgeopt.hardware import hardware_summary, layerwise_breakdown
from edgeopt.model import SmallCNN

CEILINGS = pd.DataFrame(
    [
        ("compute", "fp32", 50.0, "GMAC/s", "measured", "matmul"),
        ("compute", "int8", 200.0, "GMAC/s", "configured", "peak_compute_gmacs"),
        ("memory", "", 25.0, "GB/s", "measured", "copy"),
        ("cache", "", 100.0, "GB/s", "measured", "copy"),
    ],
    columns=["name", "precision", "value", "unit", "kind", "how"],
)
LAYERS = pd.DataFrame(
    {
        "parameters": [1000, 500],
        "parameter_bytes": [4000, 2000],
        "activation_bytes": [1000, 3000],
        "macs": [90_000, 10_000],
    }
)


def summarize(breakdown=LAYERS, **changes):
    options = {
        "candidate": "a",
        "precision": "fp32",
        "latency_ms": 0.01,
        "ceilings": CEILINGS,
        **changes,
    }
    return hardware_summary(breakdown, **options).iloc[0]


def test_totals_rates_and_utilisation_by_hand():
    row = summarize()
    assert row["memory_bytes"] == 10_000
    assert row["macs"] == 100_000
    assert row["achieved_bandwidth_gbps"] == pytest.approx(1.0)  # 10 kB in 10 us
    assert row["achieved_gmacs"] == pytest.approx(10.0)
    assert row["bandwidth_utilization"] == pytest.approx(1 / 25)
    assert row["compute_utilization"] == pytest.approx(10 / 50)
    assert row["arithmetic_intensity"] == 10
    assert row["ridge_point"] == 2
    assert row["bound"] == "compute"


def test_left_of_the_ridge_is_memory_bound():
    assert summarize(LAYERS.assign(macs=[9_000, 1_000]))["bound"] == "memory"


@pytest.mark.parametrize(
    ("cache_bytes", "level", "ceiling"),
    [(None, "DRAM", 25), (8_999, "DRAM", 25), (9_000, "cache", 100)],
)
def test_the_memory_level_follows_weights_and_widest_layer(cache_bytes, level, ceiling):
    row = summarize(cache_bytes=cache_bytes)  # 6,000 bytes of weights + 3,000 of activations
    assert row["memory_level"] == level
    assert row["bandwidth_ceiling_gbps"] == ceiling


def test_without_a_cache_ceiling_the_memory_stays_dram():
    ceilings = CEILINGS[CEILINGS["name"] != "cache"]
    assert summarize(ceilings=ceilings, cache_bytes=10**9)["memory_level"] == "DRAM"


@pytest.mark.parametrize("precision", ["int8", "int8-dynamic"])
def test_the_ceiling_is_that_of_the_precision_and_says_its_kind(precision):
    row = summarize(precision=precision)
    assert row["compute_ceiling_gmacs"] == 200
    assert row["compute_ceiling_kind"] == "configured"
    assert row["bandwidth_ceiling_kind"] == "measured"


def test_a_real_breakdown_fits_in():
    breakdown = layerwise_breakdown(SmallCNN(), input_shape=(1, 1, 28, 28))
    assert summarize(breakdown)["macs"] == 1_031_744


def test_a_missing_ceiling_is_named_with_those_there_are():
    expected = "'compute bf16'; there are: compute fp32, compute int8, memory, cache"
    with pytest.raises(ValueError, match=expected):
        summarize(precision="bf16")


def test_a_latency_that_cannot_be_is_refused():
    with pytest.raises(ValueError, match="latency_ms of 'a' is 0; it must be above 0"):
        summarize(latency_ms=0)
    with pytest.raises(ValueError, match="latency_ms of 'a' is nan"):
        summarize(latency_ms=float("nan"))
