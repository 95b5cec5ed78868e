"""YAML that says one thing: no tags or aliases, each key once, numbers as YAML 1.2 has them."""

import re
from collections.abc import Hashable
from typing import Any

import yaml

DEPTH = 20  # of lists and mappings in each other


class _Loader(yaml.SafeLoader):
    """The safe loader without what can surprise: a value is what it looks like."""

    yaml_implicit_resolvers: dict[str, Any] = {}  # noqa: RUF012  # PyYAML reads it of the class

    def compose_node(self, parent: Any, index: Any) -> yaml.Node:
        """Refuse aliases, anchors and tags, and what is nested too deeply."""
        event = self.peek_event()
        if isinstance(event, yaml.AliasEvent) or getattr(event, "anchor", None):
            raise yaml.YAMLError(f"line {event.start_mark.line + 1} has an anchor or an alias")
        if getattr(event, "tag", None):
            raise yaml.YAMLError(f"line {event.start_mark.line + 1} has the tag {event.tag}")
        self._depth = getattr(self, "_depth", 0) + 1
        if self._depth > DEPTH:
            raise yaml.YAMLError(f"line {event.start_mark.line + 1} is nested too deeply")
        node = super().compose_node(parent, index)
        self._depth -= 1
        return node

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        """Refuse a key that is there twice."""
        names = [key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode)]
        if twice := sorted({name for name in names if names.count(name) > 1}):
            line = node.start_mark.line + 1
            raise yaml.YAMLError(f"the mapping at line {line} has the key {twice[0]!r} twice")
        return super().construct_mapping(node, deep)


RESOLVED = (
    ("null", r"~|null|Null|NULL|", ["~", "n", "N", ""]),
    ("bool", r"true|True|TRUE|false|False|FALSE", [*"tTfF"]),
    ("int", r"[-+]?[0-9]{1,30}", [*"-+0123456789"]),
    ("float", r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?", [*"-+.0123456789"]),
    ("float", r"[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)", [*"-+."]),
)
for tag, pattern, first in RESOLVED:
    whole = re.compile(f"^(?:{pattern})$")
    _Loader.add_implicit_resolver(f"tag:yaml.org,2002:{tag}", whole, first)
# PyYAML's own takes 017 for octal.
_Loader.add_constructor("tag:yaml.org,2002:int", lambda loader, node: int(node.value))


def load_yaml(text: str) -> Any:
    """Read one document of the YAML 1.2 core schema; ``ValueError`` says what is not in it.

    Source: https://yaml.org/spec/1.2.2/#103-core-schema
    """
    try:
        return yaml.load(text, _Loader)
    except (yaml.YAMLError, RecursionError, ValueError) as error:
        raise ValueError(" ".join(str(error).split())) from error


def shortened(value: object, length: int = 100) -> str:
    """Write a value for a message, its middle left out where it is longer than ``length``."""
    text = str(value)
    return text if len(text) <= length else f"{text[: length - 20]}...{text[-17:]}"
