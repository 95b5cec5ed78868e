import json

import pytest

from edgeopt.agent.journal import Journal, parsed, read_records

LINE = '{"kind": "lap", "name": "", "round": 1, "seconds": 2.5}\n'


def test_a_record_is_one_line_at_once(tmp_path):
    Journal(tmp_path).add("lap", number=1, seconds=2.5)
    assert (tmp_path / "journal.jsonl").read_text() == LINE


def test_a_journal_is_its_owner_s_alone(tmp_path):
    Journal(tmp_path)
    assert (tmp_path / "journal.jsonl").stat().st_mode & 0o777 == 0o600


def test_records_are_known_by_kind_name_and_round(tmp_path):
    journal = Journal(tmp_path)
    journal.add("visit", "a", 2, times=[1])
    assert journal.has("visit", "a", 2)
    others = [("scored", "a", 2), ("visit", "b", 2), ("visit", "a", 1), ("visit", "a")]
    assert not any(journal.has(*other) for other in others)


def test_the_first_record_of_a_key_stays(tmp_path):
    journal = Journal(tmp_path)
    journal.add("visit", "a", times=[1])
    journal.add("visit", "a", times=[2])
    journal.add("visit", "b", times=[3])
    assert [record["times"] for record in journal.of_kind("visit")] == [[1], [3]]
    text = (tmp_path / "journal.jsonl").read_text()
    assert [json.loads(line)["times"] for line in text.splitlines()] == [[1], [3]]
    (tmp_path / "journal.jsonl").write_text(LINE + LINE.replace("2.5", "9.0"))
    [record] = read_records(tmp_path / "journal.jsonl").values()
    assert record["seconds"] == 2.5


def test_of_kind_gives_that_kind_in_the_order_of_coming(tmp_path):
    journal = Journal(tmp_path)
    for name in "zay":
        journal.add("failed", name)
        journal.add("scored", name)
    assert [record["name"] for record in journal.of_kind("failed")] == [*"zay"]


def test_half_a_line_is_removed_and_the_next_record_has_its_own(tmp_path):
    path = tmp_path / "journal.jsonl"
    path.write_text(LINE + LINE.replace("1,", "2,")[:30])
    journal = Journal(tmp_path)
    assert path.read_text() == LINE
    journal.add("done")
    assert path.read_text() == LINE + '{"kind": "done", "name": "", "round": 0}\n'


def test_a_record_whose_line_has_no_end_is_left_out(tmp_path):
    path = tmp_path / "journal.jsonl"
    path.write_text(LINE.strip())
    assert read_records(path) == {}
    assert read_records(tmp_path / "none.jsonl") == {}


def test_two_journals_of_one_folder_write_side_by_side(tmp_path):
    first, second = Journal(tmp_path), Journal(tmp_path)
    first.add("scored", "a")
    second.add("scored", "b")
    assert not first.has("scored", "b")
    first.reload()
    assert first.has("scored", "a")
    assert first.has("scored", "b")


@pytest.mark.parametrize(
    "line",
    [
        "a library that talks\n",
        LINE[:20],
        '{"kind": "lap", "name": ""}\n',
        '{"name": "", "kind": "lap", "round": 1}\n',
    ],
)
def test_what_is_no_record_is_none(line):
    assert parsed(line) is None
    assert parsed(LINE) == {"kind": "lap", "name": "", "round": 1, "seconds": 2.5}


@pytest.mark.parametrize(
    ("show", "expected"),
    [("", ""), ("records", "\n" + LINE), ("progress", "begin\nscored a\nlap 3\nlap\n")],
)
def test_records_are_shown_as_asked_for(tmp_path, capsys, show, expected):
    if show == "records":
        Journal(tmp_path, show=show).add("lap", number=1, seconds=2.5)
    else:
        journal = Journal(tmp_path, show=show)
        journal.add("begin")
        journal.add("scored", "a", classes=[1])
        journal.add("visit", "a", 3, times=[1])
        journal.add("lap", number=3)
        journal.add("lap", number=0)
    assert capsys.readouterr().out == expected
    Journal(tmp_path, show=show).show_all()
    assert capsys.readouterr().out == expected
