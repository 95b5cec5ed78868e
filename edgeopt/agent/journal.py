"""The journal of a measurement: one line a result, as it comes; what survives a kill."""

from __future__ import annotations

import errno
import json
import os
import sys
from pathlib import Path
from typing import Any

JOURNAL = "journal.jsonl"
WAITING = "waiting"  # kind of what is shown while another plan is measured; its name is by whom
KIND = '{"kind": '  # how a line begins that is a record


class Journal:
    """Records of one plan on disk, each a JSON object with its ``kind``, ``name`` and ``round``.

    ``show`` writes them to standard output too: ``records`` as they are, ``progress`` in words.
    """

    def __init__(self, folder: Path, *, show: str = "") -> None:
        self.path, self._text = folder / JOURNAL, SHOWN[show]
        self.records = read_records(self.path)
        text = "".join(_line(record) for record in self.records.values())
        if self.path.exists() and self.path.read_text(encoding="utf-8") != text:
            _replace(self.path, text)  # a kill in the middle of a line left half of it
        self._file = _opened(self.path)

    def add(self, kind: str, name: str = "", number: int = 0, **values: Any) -> None:
        """Write a record, unless there is one of its kind, name and round."""
        record = {"kind": kind, "name": name, "round": number, **values}
        if key_of(record) in self.records:
            return
        self.records[key_of(record)] = record
        line = _line(record).encode()
        if os.write(self._file, line) != len(line):
            raise OSError(errno.ENOSPC, "a record was cut", str(self.path))
        self._show(record)

    def has(self, kind: str, name: str = "", number: int = 0) -> bool:
        """Whether a record is there."""
        return (kind, name, number) in self.records

    def of_kind(self, kind: str) -> list[dict[str, Any]]:
        """Return the records of a kind, in the order in which they came."""
        return [record for record in self.records.values() if record["kind"] == kind]

    def reload(self) -> None:
        """Read what another process has added; it may have put another file in the place."""
        self.records = read_records(self.path)
        os.close(self._file)
        self._file = _opened(self.path)

    def show_all(self) -> None:
        """Show what is there already."""
        for record in self.records.values():
            self._show(record)

    def _show(self, record: dict[str, Any]) -> None:
        sys.stdout.write(self._text(record))
        sys.stdout.flush()


def _opened(path: Path) -> int:
    return os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)


def show_waiting(holder: str, *, show: str) -> None:
    """Show who holds what this process waits for; no journal keeps it."""
    sys.stdout.write(SHOWN[show]({"kind": WAITING, "name": holder, "round": 0}))
    sys.stdout.flush()


def key_of(record: dict[str, Any]) -> tuple[str, str, int]:
    """Kind, name and round, by which a record is known."""
    return record["kind"], record["name"], record["round"]


def read_records(path: Path) -> dict[tuple[str, str, int], dict[str, Any]]:
    """Whole records of a journal by their keys, the first of each; half a last line is left out."""
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True) if path.exists() else []
    records: dict[tuple[str, str, int], dict[str, Any]] = {}
    for line in lines:
        if line.endswith("\n") and (record := parsed(line)):
            records.setdefault(key_of(record), record)
    return records


def parsed(line: str) -> dict[str, Any] | None:
    """Return the record that a line holds; None for what a library printed, or half a record."""
    if not line.startswith(KIND):
        return None
    try:
        record = json.loads(line)
    except ValueError:
        return None
    return record if {"kind", "name", "round"} <= set(record) else None


def _line(record: dict[str, Any]) -> str:
    return json.dumps(record) + "\n"


def _progress(record: dict[str, Any]) -> str:
    what = record["name"] or record["round"] or ""
    return "" if record["kind"] == "visit" else f"{record['kind']} {what}".strip() + "\n"


def _line_of_its_own(record: dict[str, Any]) -> str:
    """Begin a line: a library may have printed without ending its own."""
    return "\n" + _line(record)


SHOWN = {"": lambda record: "", "records": _line_of_its_own, "progress": _progress}


def _replace(path: Path, text: str) -> None:
    temporary = path.with_suffix(".tmp")
    temporary.write_text(text, encoding="utf-8")
    temporary.replace(path)
