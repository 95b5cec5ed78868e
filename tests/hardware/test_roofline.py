import pandas as pd
import pytest
from torch import nn

from edgeopt.hardware.layers import count_layers, layerwise_breakdown, measure_networks
from edgeopt.hardware.profiles import profile_candidates
from edgeopt.hardware.roofline import hardware_summary, place_on_roofline
from edgeopt.model.networks import SmallCNN
from edgeopt.runtimes.export import export_artifact

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


SHAPES = {"a": (1, 1, 28, 28), "b": (1, 1, 28, 28)}


@pytest.fixture
def networks():
    return {"a": SmallCNN(4, 6).eval(), "b": nn.ConvTranspose2d(1, 1, 3)}


def test_layers_are_counted_by_network_and_one_that_fails_is_named(networks):
    counted, reasons = count_layers(networks, shapes=SHAPES)
    assert set(counted["model"]) == {"a"}
    assert counted["macs"].sum() == 784 * 4 * 9 + 196 * 6 * 4 * 9 + 6 * 49 * 10
    assert list(reasons) == ["b"]
    assert "ConvTranspose2d" in reasons["b"]


def test_layers_are_timed_by_network(networks):
    layers = measure_networks(["a"], networks, shapes=SHAPES, threads=1)
    assert set(layers["model"]) == {"a"}
    assert layers["measured_share"].sum() == pytest.approx(1)


def test_profiles_are_those_of_the_runtimes_and_what_has_none_is_named(networks, tmp_path):
    counted, _ = count_layers(networks, shapes=SHAPES)
    options = {"runtime": "onnxruntime", "precision": "fp32", "input_shape": SHAPES["a"]}
    artifact = export_artifact(networks["a"], tmp_path / "a", **options)
    profile, reasons = profile_candidates(
        {"one": artifact, "two": artifact}, counted, owners={"one": "a", "two": "b"}, threads=1
    )
    assert set(profile["candidate"]) == {"one"}
    assert profile["share"].sum() == pytest.approx(1)
    assert reasons == {"two": "the layers of b could not be counted"}


def test_a_candidate_is_placed_by_its_own_network(networks):
    table = pd.DataFrame([("x", "a", "fp32", 0.01)])
    table.columns = ["candidate", "model", "precision", "latency_ms"]
    placed = place_on_roofline(table, networks, shapes=SHAPES, ceilings=CEILINGS)
    own = layerwise_breakdown(networks["a"], input_shape=SHAPES["a"], precision="fp32")
    alone = hardware_summary(
        own, candidate="x", precision="fp32", latency_ms=0.01, ceilings=CEILINGS
    )
    pd.testing.assert_frame_equal(placed, alone)
    assert place_on_roofline(table[:0], networks, shapes=SHAPES, ceilings=CEILINGS).empty
