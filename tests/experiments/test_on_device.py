import hashlib
import math
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch

from edgeopt.data import Split
from edgeopt.devices.results import DeviceResults
from edgeopt.experiments.candidates.candidate import Candidate, CandidateSpec
from edgeopt.experiments.candidates.floor import floor_images, floor_network, with_call_floor
from edgeopt.experiments.on_device import compare_devices, device_sweep, host_answers
from edgeopt.experiments.sweep import Target
from edgeopt.metrics import Measurement

ROUNDS = 12
LOGITS = np.array([[1, 0], [0, 1], [3, 2], [0, 5]], np.float32)  # answers 0, 1, 0, 1
LABELS = torch.tensor([0, 1, 1, 1])
IMAGES = {"small_cnn": Split(torch.zeros(4, 1, 2, 2), LABELS)}


def samples(**medians) -> pd.DataFrame:
    """Eleven calls a round, evenly around the median."""
    spread = np.linspace(0.9, 1.1, 11)
    rows = [
        (name, number, value)
        for name, median in medians.items()
        for number in range(ROUNDS)
        for value in median * spread
    ]
    return pd.DataFrame(rows, columns=["candidate", "round", "latency_ms"]).assign(error="")


def results(own, *, emulated=False, **answers) -> DeviceResults:
    conditions = pd.DataFrame({"round": range(ROUNDS), "reference_ms": 1.0})
    memory = pd.DataFrame({"candidate": ["c"], "peak_rss_bytes": [7.0]})
    return DeviceResults(
        device="ssh://board",
        facts={"emulated": emulated},
        before={},
        after={},
        measured=Measurement(own, conditions),
        starts=pd.DataFrame(),
        memory=memory,
        classes=answers.get("classes", {}),
        digests=answers.get("digests", {}),
        errors=answers.get("errors", {}),
    )


def sweep() -> pd.DataFrame:
    row = {
        "candidate": "c",
        "model": "small_cnn",
        "runtime": "onnxruntime",
        "precision": "fp32",
        "status": "ok",
        "error": "",
        "accepted": True,
        "latency_p50_ms": 99.0,
        "macs": 10,
        "weight_bytes": 4,
        "peak_activation_bytes": 4,
        "int8_mac_share": 0.0,
    }
    return pd.DataFrame([row])


FLOORS = pd.DataFrame(
    {"candidate": ["floor"], "runtime": ["onnxruntime"], "model": ["call-floor-1x2x2"]}
)
ANSWERS = pd.DataFrame({"candidate": ["c"], "digest": ["ab"], "classes": ["0 1 0 1"]})


def moved(found, answers=ANSWERS):
    options = {"answers": answers, "floors": FLOORS, "images": IMAGES}
    return device_sweep(found, sweep(), **options, target=Target(), batch_size=1).iloc[0]


def test_device_sweep_puts_the_devices_numbers_in_the_place_of_the_old():
    row = moved(results(samples(c=2.0, floor=0.5)))
    assert row["device"] == "ssh://board"
    assert row["latency_p50_ms"] == pytest.approx(2)
    assert row["peak_rss_bytes"] == 7
    assert row["call_share"] == pytest.approx(0.25)
    assert math.isnan(row["device_accuracy"])
    assert row["energy_proxy_j"] == pytest.approx(5 * 2 / 1000)


def test_device_sweep_compares_answers_and_logits():
    found = results(
        samples(c=2.0, floor=0.5), classes={"c": np.array([0, 1, 1, 1])}, digests={"c": "ab"}
    )
    row = moved(found)
    assert (row["device_accuracy"], row["device_differs"]) == (1.0, 1)
    assert row["device_logits"] == "equal bit for bit"
    other = moved(found, ANSWERS.assign(digest="cd"))
    assert other["device_logits"] == "not equal"


def test_device_sweep_takes_what_failed_there_out():
    broken = samples(floor=0.5).assign(error="")
    nothing = pd.DataFrame([("c", 0, math.nan, "gone")], columns=[*broken])
    row = moved(results(pd.concat([broken, nothing]), errors={"c": "gone"}))
    assert (row["status"], row["error"], row["accepted"]) == ("failed", "gone", False)
    assert math.isnan(row["latency_p50_ms"])


def test_device_sweep_says_nothing_of_an_emulators_clock():
    row = moved(results(samples(c=2.0, floor=0.5), emulated=True))
    assert row["latency_kind"] == "unavailable: emulated"
    told = row.filter(regex="^(latency_(?!kind)|throughput|call_|energy_proxy)")
    assert told.isna().all()


def test_host_answers_are_those_of_the_first_seed():
    spec = CandidateSpec(0.0, "fp32")
    own = [
        Candidate(spec, logits=LOGITS),
        Candidate(CandidateSpec(0.0, "fp32", seed=1), logits=-LOGITS),
        Candidate(CandidateSpec(0.0, "int8"), error="no"),
    ]
    [row] = host_answers(own).to_dict("records")
    assert row["candidate"] == spec.name
    assert row["classes"] == "0 1 0 1"
    assert row["digest"] == hashlib.sha256(LOGITS.tobytes()).hexdigest()


def pick(name):
    return SimpleNamespace(pick={"candidate": name} if name else None)


def test_compare_devices_tells_the_regret_and_the_agreement_of_the_orders():
    floors = {"call-floor-1x2x2-p0-torch-fp32": 0.1}
    host = samples(a=1.0, b=2.0, c=3.0, **floors)
    board = samples(a=6.0, b=4.0, c=9.0, **floors)
    # Read back from a file, an empty error is missing.
    host = host.assign(error=math.nan)
    decisions = {"host": pick("a"), "board": pick("b")}
    [row] = compare_devices(decisions, {"host": host, "board": board}).to_dict("records")
    assert (row["device"], row["pick"], row["first_pick"]) == ("board", "b", "a")
    assert row["regret"] == pytest.approx(0.5)
    assert row["regret_low"] == pytest.approx(0.5)
    # Of three pairs two are in the same order: (2 - 1) / 3.
    assert row["tau"] == pytest.approx(1 / 3)
    assert row["tau_low"] == pytest.approx(1 / 3)


def test_orders_agree_where_one_device_was_disturbed_most_of_the_time():
    quiet = samples(a=1.0, b=1.3, c=1.6)
    busy = quiet.copy()
    busy.loc[(busy["candidate"] == "a") & (busy["round"] > 3), "latency_ms"] *= 2
    decisions = {"host": pick("a"), "board": pick("a")}
    [row] = compare_devices(decisions, {"host": quiet, "board": busy}).to_dict("records")
    assert row["tau"] == 1


def test_compare_devices_of_one_device_has_columns_and_no_row():
    table = compare_devices({"host": pick("a")}, {"host": samples(a=1.0)})
    assert table.empty
    assert "regret" in table


@pytest.mark.parametrize("names", [("a", ""), ("", "a"), ("a", "gone")])
def test_there_is_no_regret_without_two_picks_that_ran_there(names):
    own = {"host": samples(a=1.0, b=2.0), "board": samples(a=1.0, b=2.0)}
    decisions = dict(zip(own, map(pick, names), strict=True))
    [row] = compare_devices(decisions, own).to_dict("records")
    assert math.isnan(row["regret"])


def test_the_floor_is_that_of_the_runtime_and_the_shape_and_at_most_the_latency():
    table = pd.DataFrame(
        {
            "runtime": ["onnxruntime", "onnxruntime", "torch"],
            "model": ["small_cnn"] * 3,
            "latency_p50_ms": [2.0, 0.1, 1.0],
        }
    )
    found = with_call_floor(table, FLOORS, samples=samples(floor=0.5), images=IMAGES)
    assert found["call_share"].tolist()[:2] == pytest.approx([0.25, 1.0])
    assert math.isnan(found["call_floor_ms"].iloc[2])


def test_the_smallest_network_averages_each_channel():
    network = floor_network(2, num_classes=2)
    images = torch.zeros(1, 2, 3, 3)
    images[0, 1] = 6.0
    # Weights -1, -1/3, 1/3, 1: class 0 gets 6 * -1/3, class 1 gets 6 * 1.
    assert network(images)[0].tolist() == pytest.approx([-2, 6])
    assert [*floor_images(IMAGES)] == ["call-floor-1x2x2"]
