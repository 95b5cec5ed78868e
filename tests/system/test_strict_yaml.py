"""Parameter files: a value is what it looks like, and what is not plain is named."""

import math

import pytest
import yaml

from edgeopt.system import load_yaml, shortened
from tests.test_house import ROOT


@pytest.mark.parametrize("path", sorted((ROOT / "params").glob("*.yaml")), ids=lambda p: p.stem)
def test_the_projects_files_say_what_they_said(path) -> None:
    assert load_yaml(path.read_text()) == yaml.safe_load(path.read_text())


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("12:30:00", "12:30:00"),
        ("yes", "yes"),
        ("017", 17),
        ("-3", -3),
        ("1e3", 1000.0),
        ("3e-3", 0.003),
        (".5", 0.5),
        (".inf", math.inf),
        ("~", None),
        ("true", True),
        ("'0.5'", "0.5"),
        ("2020-01-01", "2020-01-01"),
        ("[1, a]", [1, "a"]),
    ],
)
def test_values_are_those_of_yaml_1_2(text, value) -> None:
    assert load_yaml(f"a: {text}") == {"a": value}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: 1\nb: 2\na: 3", "has the key 'a' twice"),
        ("a: {b: 1, b: 1}", "has the key 'b' twice"),
        ("a: &x [1]\nb: *x", "line 1 has an anchor or an alias"),
        ("a: !!timestamp x", "line 1 has the tag tag:yaml.org,2002:timestamp"),
        ("a: !!python/object:os.system x", "line 1 has the tag"),
        ("a: " + "[" * 100_000, "line 1 is nested too deeply"),
        ("a: [1", "expected"),
        ("? [1]\n: 2", "unhashable key"),
        ("a: \x00", "special characters are not allowed"),
    ],
)
def test_what_is_not_plain_is_named(text, message) -> None:
    with pytest.raises(ValueError, match=message):
        load_yaml(text)


def test_long_values_are_shortened_in_their_middle() -> None:
    assert shortened("x" * 100) == "x" * 100
    text = shortened("a" * 500 + "end")
    assert len(text) == 100
    assert text.startswith("aaa")
    assert text.endswith("end")
