import hashlib

import numpy as np
import pytest

from edgeopt.agent.plan import PlanError, read_plan
from tests.agent.made_up import PIXELS, entry, write_file, write_plan

FIELDS = ["artifacts", "calls_per_round", "images", "memory", "packages", "rounds", "seed"]


@pytest.fixture
def folder(tmp_path):
    expected = write_file(tmp_path, np.ones((2, 2), np.float32))
    second = entry(tmp_path, "b", threads=2, score=False, logits=expected)
    return write_plan(tmp_path, [entry(tmp_path, "a"), second])


def test_a_job_is_what_the_plan_says(folder):
    first, second = read_plan(folder).jobs
    assert (first.name, first.threads, first.score, first.logits) == ("a", 1, True, "")
    assert (second.name, second.threads, second.score) == ("b", 2, False)
    assert (first.place, first.images) == ("tests.agent.made_up:Product", "shown")
    assert first.artifact.path.parent == folder / "files"
    assert first.artifact.sha256 == hashlib.sha256(first.artifact.path.read_bytes()).hexdigest()
    assert first.artifact.size_bytes == first.artifact.path.stat().st_size
    assert (first.artifact.runtime, first.artifact.precision) == ("made up", "fp32")
    assert first.artifact.input_shape == (2, 1, 2, 2)


def test_a_plan_names_every_file_once(folder):
    files = read_plan(folder).files()
    assert len(files) == 3  # images, weights of both, logits of the second
    assert sorted(files) == sorted((folder / "files").iterdir())


def test_a_plan_has_the_digest_of_its_file(folder):
    content = (folder / "plan.json").read_bytes()
    assert read_plan(folder).digest == hashlib.sha256(content).hexdigest()


def test_batches_are_all_images_as_many_at_a_time(folder):
    batches = [*read_plan(folder).batches("shown", 2)]
    assert [len(batch) for batch in batches] == [2, 2, 1]
    assert np.concatenate(batches) == pytest.approx(PIXELS / 255)
    assert batches[0].dtype == np.float32


def test_first_logits_are_those_of_the_plan(folder):
    plan = read_plan(folder)
    first, second = map(plan.first_logits, plan.jobs)
    assert first is None
    assert second.tolist() == [[1, 1], [1, 1]]


@pytest.mark.parametrize(
    "name", ["../plan.json", "a" * 63, "A" * 64, "a" * 64 + ".", "a" * 64 + "/b", "a" * 65]
)
def test_a_file_is_named_by_a_sha256_or_refused(folder, name):
    plan = read_plan(folder)
    assert plan.file("0123456789abcdef" * 4 + ".npy").parent == folder / "files"
    with pytest.raises(PlanError, match=r"allowed: a SHA-256 and a suffix"):
        plan.file(name)


@pytest.mark.parametrize("text", ["", "{", "7", "[" * 100_000])
def test_what_is_no_json_object_is_refused(folder, text):
    (folder / "plan.json").write_text(text)
    with pytest.raises(PlanError, match=r"plan\.json is not a plan: "):
        read_plan(folder)


@pytest.mark.parametrize("field", FIELDS)
def test_a_plan_without_a_field_is_refused(folder, field):
    text = (folder / "plan.json").read_text()
    (folder / "plan.json").write_text(text.replace(f'"{field}":', '"other":'))
    with pytest.raises(PlanError, match=rf"format 1; missing: \['{field}'\]"):
        read_plan(folder)


def test_another_format_is_refused(folder):
    text = (folder / "plan.json").read_text()
    (folder / "plan.json").write_text(text.replace('"format": 1', '"format": 2'))
    with pytest.raises(PlanError, match=r"is not a plan of format 1; missing: \[\]"):
        read_plan(folder)


def test_files_that_are_missing_or_changed_are_refused_unless_told_not_to_look(folder):
    file = read_plan(folder).jobs[0].artifact.path
    file.write_bytes(b"another")
    digest = hashlib.sha256(b"another").hexdigest()
    with pytest.raises(PlanError, match=rf"{file.name} was changed: its SHA-256 is {digest}"):
        read_plan(folder)
    file.unlink()
    with pytest.raises(PlanError, match=rf"the bundle lacks .*{file.name}"):
        read_plan(folder)
    assert len(read_plan(folder, verify=False).jobs) == 2
