import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgeopt.hardware.devices import estimate_on_devices, load_devices


def toy_device(**changes):
    values = {
        "clock_hz": 1e9,
        "memory_bandwidth_gbps": 2.0,
        "ram_bytes": 1000,
        "flash_bytes": 5000,
        "power_watts": 3.0,
        "weights_in_flash": 1,
        "operating_system": 1,
        "macs_per_cycle_fp32": 0.5,
        **changes,
    }
    rows = [
        ("toy", "core", name, value, "", "assumed", "made up") for name, value in values.items()
    ]
    columns = ["device", "core", "quantity", "value", "unit", "kind", "source"]
    return pd.DataFrame(rows, columns=columns).dropna(subset="value")


def candidate(**changes):
    row = {
        "candidate": "a",
        "precision": "fp32",
        "macs": 1_000_000,
        "weight_bytes": 3000,
        "peak_activation_bytes": 1000,
        "artifact_bytes": 4000,
    }
    return pd.DataFrame([{**row, **changes}])


def estimate(device=None, **changes):
    devices = toy_device() if device is None else device
    return estimate_on_devices(candidate(**changes), devices=devices).iloc[0]


def test_a_compute_bound_estimate_by_hand():
    row = estimate()
    assert row["compute_ms"] == pytest.approx(2.0)  # 1e6 MACs at 0.5 x 1e9 a second
    assert row["memory_ms"] == pytest.approx(0.002)  # 4 kB at 2 GB/s
    assert row["latency_estimate_ms"] == row["compute_ms"]
    assert row["energy_estimate_j"] == pytest.approx(0.006)
    assert row["bound"] == "compute"
    assert row["kind"] == "estimate"


def test_a_memory_bound_estimate_takes_the_memory_time():
    row = estimate(macs=10)
    assert row["latency_estimate_ms"] == row["memory_ms"]
    assert row["bound"] == "memory"


def test_weights_count_as_ram_unless_read_from_flash():
    assert estimate()["fits_ram"]
    assert not estimate(peak_activation_bytes=1001)["fits_ram"]
    linux = toy_device(weights_in_flash=0, ram_bytes=4000)
    assert estimate(linux)["fits_ram"]
    assert not estimate(linux, weight_bytes=3001)["fits_ram"]


def test_flash_holds_the_artifact():
    assert estimate(artifact_bytes=5000)["fits_flash"]
    assert not estimate(artifact_bytes=5001)["fits_flash"]


def test_headroom_is_that_of_the_scarcer_memory():
    assert estimate(peak_activation_bytes=250, artifact_bytes=1000)["headroom"] == 0.75  # RAM
    assert estimate(peak_activation_bytes=100, artifact_bytes=4000)["headroom"] == pytest.approx(
        0.2
    )  # flash
    assert estimate(peak_activation_bytes=1500)["headroom"] == -0.5


def test_the_high_end_is_as_far_above_the_bound_as_measured_here():
    rows = [("compute", "fp32", 10.0), ("compute", "int8", 40.0), ("memory", "", 1.0)]
    ceilings = pd.DataFrame(rows, columns=["name", "precision", "value"])
    device = toy_device(macs_per_cycle_int8=0.5)

    def over_estimate(**changes):
        own = candidate(**changes)
        row = estimate_on_devices(own, devices=device, ceilings=ceilings).iloc[0]
        return row["latency_estimate_high_ms"] / row["latency_estimate_ms"]

    # 1e6 MACs at 10 GMAC/s take 0.1 ms, 4 kB at 1 GB/s 0.004 ms
    assert over_estimate(latency_p50_ms=0.5) == pytest.approx(5)
    assert over_estimate(latency_p50_ms=0.01) == 1
    dynamic = {"precision": "int8-dynamic", "macs": 1000}
    assert over_estimate(latency_p50_ms=0.5, **dynamic) == pytest.approx(125)
    assert pd.isna(estimate()["latency_estimate_high_ms"])


def test_a_runtime_that_needs_an_operating_system_is_left_out_where_there_is_none():
    bare = toy_device(operating_system=0)
    both = pd.concat([candidate(runtime="torch"), candidate(candidate="b", runtime="executorch")])
    assert estimate_on_devices(both, devices=bare)["candidate"].tolist() == ["b"]
    assert len(estimate_on_devices(both, devices=toy_device())) == 2
    assert len(estimate_on_devices(candidate(), devices=bare)) == 1


def test_dynamic_int8_runs_at_the_int8_rate():
    device = toy_device(macs_per_cycle_int8=2.0)
    assert estimate(device, precision="int8-dynamic")["compute_ms"] == pytest.approx(0.5)


def test_a_rate_that_is_not_known_is_not_guessed():
    row = estimate(precision="bf16")
    assert pd.isna(row["latency_estimate_ms"])
    assert pd.isna(row["energy_estimate_j"])
    assert (row["bound"], row["note"]) == ("", "no rate known for bf16")
    assert estimate()["note"] == ""


def test_every_pair_has_a_row_in_the_order_given():
    devices = load_devices()
    both = pd.concat([candidate(), candidate(candidate="b", precision="int8")])
    table = estimate_on_devices(both, devices=devices)
    names = list(devices["device"].drop_duplicates())
    assert list(table["device"]) == names * 2
    assert list(table["candidate"]) == ["a"] * len(names) + ["b"] * len(names)


@given(macs=st.integers(1, 10**9), factor=st.integers(1, 100))
def test_more_macs_are_never_faster(macs, factor):
    devices = load_devices()
    few = estimate_on_devices(candidate(macs=macs), devices=devices)
    many = estimate_on_devices(candidate(macs=macs * factor), devices=devices)
    assert (many["latency_estimate_ms"] >= few["latency_estimate_ms"]).all()


def test_the_table_of_the_package_is_sourced_throughout():
    table = load_devices()
    assert {"STM32H743", "Raspberry Pi 4", "Raspberry Pi 5"} <= set(table["device"])
    assert set(table["kind"]) == {"datasheet", "measured", "assumed"}
    assert table["source"].str.len().min() > 10


def test_rates_are_what_their_derivations_say():
    table = load_devices().set_index(["device", "quantity"])["value"]
    assert table["STM32H743", "macs_per_cycle_int8"] == pytest.approx(
        12.35e6 / (0.0991 * 216e6), rel=1e-2
    )
    assert table["Raspberry Pi 4", "macs_per_cycle_int8"] == pytest.approx(
        569e6 / (0.024 * 1.5e9 * 4), rel=1e-2
    )
    esp = (409_600 + 16_384 + 110_592) / (461_398 + 43_578 + 643_689)
    assert table["ESP32-S3-WROOM-1-N16R8", "macs_per_cycle_int8"] == pytest.approx(esp, rel=1e-2)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"kind": "guessed"}, "unknown kind of a device constant 'guessed'; allowed: datasheet"),
        ({"quantity": "colour"}, "unknown device quantity 'colour'"),
        ({"source": " "}, "clock_hz of toy has no source"),
        ({"value": 0.0}, "clock_hz of toy is 0.0; it must be above 0"),
    ],
)
def test_a_bad_constant_is_named(change, message):
    table = toy_device()
    for column, value in change.items():
        table.loc[0, column] = value
    with pytest.raises(ValueError, match=message):
        estimate(table)


def test_an_incomplete_table_is_named():
    with pytest.raises(ValueError, match=r"device table needs the column\(s\) source"):
        estimate(toy_device().drop(columns="source"))
    with pytest.raises(ValueError, match="toy lacks ram_bytes"):
        estimate(toy_device(ram_bytes=None))
    with pytest.raises(ValueError, match="clock_hz of toy is given twice"):
        estimate(pd.concat([toy_device(), toy_device().head(1)]))


def test_bad_candidates_are_named():
    with pytest.raises(ValueError, match=r"estimate_on_devices needs the column\(s\) macs"):
        estimate_on_devices(candidate().drop(columns="macs"), devices=toy_device())
    with pytest.raises(ValueError, match="unknown precision 'int4'"):
        estimate(precision="int4")
