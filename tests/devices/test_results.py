import json
import math

import pytest

from edgeopt.agent.offline import sealed
from edgeopt.devices import ResultsError, facts_table, read_results, results_of, write_bundle
from edgeopt.devices.results import SHOWN_FACTS


@pytest.fixture
def plan(tmp_path, tasks, images):
    counts = {"rounds": 2, "calls_per_round": 2}
    return write_bundle(tmp_path / "bundle", tasks, images={"net": images}, **counts)


def record(kind, name="", number=0, **values):
    return {"kind": kind, "name": name, "round": number, **values}


@pytest.fixture
def records(plan):
    begin = record("begin", plan=plan.digest, facts={"cpu": "Z80"}, state={"clock_mhz": 4.0})
    visits = [
        record("visit", "onnxruntime", n, position=0, times=times, load_ns=2_000_000, first_ns=500)
        for n, times in enumerate(([1_000_000, 3_000_000], [2_000_000, 2_500_000]))
    ]
    return [
        begin,
        record("failed", "torch", at=-1, error="RuntimeUnavailable: torch is not installed"),
        record("scored", "onnxruntime", classes=[2, 0, 1], digest="ab"),
        *visits,
        *(record("lap", number=n, reference_ms=0.5) for n in (1, 0)),
        record("memory", "onnxruntime", idle_rss_bytes=5, peak_rss_bytes=9, added_rss_bytes=1),
        record("done", state={"clock_mhz": 3.5}),
    ]


def test_records_become_tables(plan, records):
    found = results_of(records, plan=plan, device="board")
    assert (found.device, found.facts, found.after) == ("board", {"cpu": "Z80"}, {"clock_mhz": 3.5})
    samples = found.measured.samples
    own = samples[samples["candidate"] == "onnxruntime"]
    assert own["latency_ms"].tolist() == [1, 3, 2, 2.5]
    assert own["round"].tolist() == [0, 0, 1, 1]
    [failed] = samples[samples["candidate"] == "torch"].to_dict("records")
    assert math.isnan(failed["latency_ms"])
    assert failed["error"] == "RuntimeUnavailable: torch is not installed"
    assert found.measured.conditions["round"].tolist() == [0, 1]
    assert found.starts["load_ms"].tolist() == [2, 2]
    assert found.memory["peak_rss_bytes"].tolist() == [9]
    assert found.classes["onnxruntime"].tolist() == [2, 0, 1]


def test_times_and_memory_of_an_emulated_device_are_not_told(plan, records):
    facts = {"cpu": "Z80", "emulated": True}
    found = results_of(changed(records, 0, facts=facts), plan=plan, device="board")
    errors = found.measured.samples.set_index("candidate")["error"].to_dict()
    assert errors == {
        "onnxruntime": "unavailable: emulated",
        "torch": "RuntimeUnavailable: torch is not installed",
    }
    assert found.measured.samples["latency_ms"].isna().all()
    assert found.starts.empty
    assert found.memory["peak_rss_bytes"].isna().all()
    assert found.memory["rss_unavailable"].eq("unavailable: emulated").all()
    assert found.classes["onnxruntime"].tolist() == [2, 0, 1]
    assert [*found.errors] == ["torch"]


def test_a_record_that_came_twice_counts_once(plan, records):
    twice = results_of([*records, *records], plan=plan, device="board")
    assert len(twice.measured.samples) == 5


def changed(records, number, **values):
    return [{**r, **values} if n == number else r for n, r in enumerate(records)]


@pytest.mark.parametrize(
    ("number", "values", "message"),
    [
        (0, {"plan": "0" * 64}, "are not of plan"),
        (3, {"name": "../../etc/passwd"}, "not in the plan"),
        (3, {"name": 7}, "a result is"),
        (3, {"times": [1.5]}, "times that are no whole numbers"),
        (2, {"classes": ["shoe"]}, "classes that are no whole numbers"),
        (2, {"round": None}, "a result is"),
        (3, {"times": "fast"}, "has times 'fast'"),
        (3, {"kind": "visits"}, "allowed: begin, failed, scored"),
        (8, {"kind": "lap", "reference_ms": 1.0}, "are not complete"),
    ],
)
def test_results_of_refuses(plan, records, number, values, message):
    with pytest.raises(ResultsError, match=message):
        results_of(changed(records, number, **values), plan=plan, device="board")


def test_read_results_gives_the_records_and_refuses_what_was_changed_or_cut(
    tmp_path, plan, records
):
    path = tmp_path / "results.json"
    text = json.dumps(sealed(records, plan=plan.digest))
    path.write_text(text)
    assert read_results(path) == records
    path.write_text(text.replace("3000000", "1000000"))
    with pytest.raises(ResultsError, match="was changed"):
        read_results(path)
    for broken in (text[:-20], "[]", "{}", "[" * 100_000):
        path.write_text(broken)
        with pytest.raises(ResultsError, match="is not a results file"):
            read_results(path)


def test_facts_table_shows_a_state_twice_only_where_it_changed():
    facts = dict.fromkeys(SHOWN_FACTS, "x") | {"isa": ["neon", "i8mm"], "memory_bytes": 2**30}
    around = {
        "before": {"clock_mhz": 1500.0, "throttling": "no"},
        "after": {"clock_mhz": None, "throttling": "no"},
    }
    table = facts_table({"board": {**facts, **around, "packages": {"numpy": "2.4.6"}}})["board"]
    assert table["Instruction sets"] == "neon, i8mm"
    assert table["Memory"] == "1,024 MiB"
    assert table["Clock (MHz)"] == "1500.0 \N{RIGHTWARDS ARROW} \N{EN DASH}"
    assert table["Throttling"] == "no"
    assert table["Packages"] == "numpy 2.4.6"
