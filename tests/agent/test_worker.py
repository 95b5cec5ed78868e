"""What a worker leaves in the journal, in this process."""

import hashlib
from types import SimpleNamespace

import numpy as np
import pytest

from edgeopt.agent.journal import Journal
from edgeopt.agent.rounds import round_order
from edgeopt.agent.worker import _underway, work
from tests.agent.made_up import CLASSES, Counted, entry, write_file, write_plan

LOGITS = np.array([[1, -1], [-1, 1]], np.float32)  # of the first batch


def worked(folder):
    work(folder, show="")
    return Journal(folder)


def errors(journal):
    return {record["name"]: (record["at"], record["error"]) for record in journal.of_kind("failed")}


def visits(journal, number):
    """Names of a round's visits in their order, which their positions have to tell."""
    records = [record for record in journal.of_kind("visit") if record["round"] == number]
    return [record["name"] for record in sorted(records, key=lambda record: record["position"])]


def test_all_is_scored_and_then_timed_in_every_round(tmp_path):
    journal = worked(write_plan(tmp_path, [entry(tmp_path, name) for name in "abc"]))
    kinds = [kind for kind, _, _ in journal.records]
    assert kinds == ["scored"] * 3 + ["visit", "visit", "visit", "lap"] * 3
    for number in range(3):
        assert visits(journal, number) == round_order("abc", number=number, seed=0)
    places = [record["position"] for record in journal.of_kind("visit")]
    assert places == [0, 1, 2] * 3
    assert all(len(record["times"]) == 2 for record in journal.of_kind("visit"))
    assert [record["round"] for record in journal.of_kind("lap")] == [0, 1, 2]
    assert all(record["reference_ms"] > 0 for record in journal.of_kind("lap"))


def test_scores_are_the_class_of_every_image_and_a_digest_of_the_logits(tmp_path):
    [record] = worked(write_plan(tmp_path, [entry(tmp_path, "a")])).of_kind("scored")
    logits = np.array([[1, -1], [-1, 1], [1, -1], [-1, 1], [1, -1]], np.float32)
    assert record["classes"] == CLASSES
    assert record["digest"] == hashlib.sha256(logits.tobytes()).hexdigest()


def test_the_seed_of_the_plan_orders_the_rounds(tmp_path):
    artifacts = [entry(tmp_path, name, score=False) for name in "abcdef"]
    journal = worked(write_plan(tmp_path, artifacts, seed=5))
    assert visits(journal, 2) == round_order("abcdef", number=2, seed=5)


def test_loading_and_first_call_are_what_the_clock_gained(tmp_path, monkeypatch):
    ticks = iter([1_000, 4_000, 4_700])
    clock = SimpleNamespace(perf_counter_ns=lambda: next(ticks))
    monkeypatch.setattr("edgeopt.agent.worker.time", clock)
    [record] = worked(write_plan(tmp_path, [entry(tmp_path, "a")], rounds=1)).of_kind("visit")
    assert (record["load_ns"], record["first_ns"]) == (3_000, 700)


def test_a_session_is_loaded_anew_for_every_visit_beside_the_one_before(tmp_path):
    Counted.counts.clear()
    worked(write_plan(tmp_path, [entry(tmp_path, "a", "Counted", score=False)], rounds=4))
    assert Counted.counts == [1, 2, 2, 2]


@pytest.mark.parametrize(("off", "fails"), [(0.0, False), (0.03, False), (0.05, True)])
def test_what_is_only_timed_is_held_to_the_logits_of_the_plan(tmp_path, off, fails):
    # 2% of 1 + the largest logit, which is 1 here, are 0.04.
    expected = write_file(tmp_path, LOGITS + np.float32([[0, 0], [0, -off]]))
    artifact = entry(tmp_path, "a", score=False, logits=expected)
    journal = worked(write_plan(tmp_path, [artifact]))
    said = "RuntimeError: timed, its logits are up to 0.05 from those that were scored"
    assert errors(journal) == ({"a": (0, said)} if fails else {})
    assert not journal.of_kind("scored")


def test_what_was_scored_is_held_to_it_when_it_is_timed(tmp_path):
    other = write_file(tmp_path, LOGITS + 1)  # what the plan has is not asked for then
    artifacts = [entry(tmp_path, "a", "Drifting"), entry(tmp_path, "b", logits=other)]
    journal = worked(write_plan(tmp_path, artifacts))
    said = "RuntimeError: timed, its logits are up to 1 from those that were scored"
    assert errors(journal) == {"a": (0, said)}


def test_what_computes_with_other_threads_fails(tmp_path):
    journal = worked(write_plan(tmp_path, [entry(tmp_path, "a", "Restless")]))
    assert errors(journal) == {"a": (0, "RuntimeError: it computes with 3 threads, not 1")}


def test_what_cannot_be_scored_is_not_timed_and_the_others_are(tmp_path):
    artifacts = [entry(tmp_path, "bad", "Raising"), entry(tmp_path, "good")]
    journal = worked(write_plan(tmp_path, artifacts))
    assert errors(journal) == {"bad": (-1, "RuntimeError: operator Foo is not supported")}
    assert [record["name"] for record in journal.of_kind("visit")] == ["good"] * 3


def test_what_fails_while_it_is_timed_is_not_visited_again(tmp_path):
    artifacts = [entry(tmp_path, "bad", "Raising", score=False), entry(tmp_path, "good")]
    journal = worked(write_plan(tmp_path, artifacts))
    assert errors(journal) == {"bad": (0, "RuntimeError: operator Foo is not supported")}
    assert [sorted(visits(journal, number)) for number in range(3)] == [
        ["bad", "good"],
        ["good"],
        ["good"],
    ]
    assert [r["times"] for r in journal.of_kind("visit") if r["name"] == "bad"] == [[]]


def test_a_runtime_that_is_not_installed_fails_once_before_anything_runs(tmp_path):
    artifacts = [entry(tmp_path, "good"), entry(tmp_path, "gone", place="no_such_runtime:Session")]
    journal = worked(write_plan(tmp_path, artifacts))
    said = "RuntimeUnavailable: no_such_runtime is not installed"
    assert errors(journal) == {"gone": (-1, said)}
    assert next(iter(journal.records)) == ("failed", "gone", 0)
    assert {record["name"] for record in journal.of_kind("visit")} == {"good"}


def test_a_second_worker_does_what_is_missing_and_nothing_twice(tmp_path):
    folder = write_plan(tmp_path, [entry(tmp_path, name) for name in "abc"])
    before = Journal(folder)
    before.add("scored", "a", classes=[], digest="")
    before.add("lap", number=0)
    before.add("visit", "b", 1, position=2, times=[1, 2])
    before.add("failed", "c", at=1, error="it ended its process")
    journal = worked(folder)
    assert [record["name"] for record in journal.of_kind("scored")] == ["a", "b"]
    assert [record["round"] for record in journal.of_kind("lap")] == [0, 1, 2]
    assert visits(journal, 0) == []
    assert [record["times"] for record in journal.of_kind("visit")].count([1, 2]) == 1
    assert {r["name"] for r in journal.of_kind("visit") if r["round"] == 1} == {"a", "b"}
    # Who failed in a round keeps its place there, so that all others keep theirs.
    [a] = [r for r in journal.of_kind("visit") if (r["name"], r["round"]) == ("a", 1)]
    assert a["position"] == round_order("abc", number=1, seed=0).index("a")
    assert visits(journal, 2) == round_order("ab", number=2, seed=0)


def test_the_artifact_underway_is_on_disk_while_it_is(tmp_path):
    with _underway(tmp_path, "a"):
        assert (tmp_path / "underway").read_text() == "a"
    assert not (tmp_path / "underway").exists()
    with pytest.raises(KeyboardInterrupt), _underway(tmp_path, "b"):
        raise KeyboardInterrupt
    assert (tmp_path / "underway").read_text() == "b"
    worked(write_plan(tmp_path, [entry(tmp_path, "a"), entry(tmp_path, "b", "Raising")], rounds=1))
    assert not (tmp_path / "underway").exists()
