"""The results of a run: one JSON object a line, appended as they come, so that a cut-off run loses nothing.

A file may hold several runs; the last one counts. Lines are of these kinds:

- `run`: what the run is of, once, at its start;
- `begun`: a case has started;
- `case`: it has ended, with its status, its rows of the table and its figures;
- `count`: how many cases a step has, where those that have not begun would be missed;
- `step`: a step has ended, and how.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

OK, FAILED, SKIPPED, CUT_OFF = "ok", "failed", "n/a", "cut off"


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One line of the table.

    Attributes:
        what: what was measured.
        found: the figure with its unit.
        target: what it should be; empty without a target.
        met: whether it is; None where there is no target, or where it does not count.
        note: what the figure is made of, or why it does not count.
        tally: rows of one `what` become one row that counts how many of them met their target.
        is_promise: a miss is an error of the program, not a slow machine.
    """

    what: str
    found: str = ""
    target: str = ""
    met: bool | None = None
    note: str = ""
    tally: bool = False
    is_promise: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """What a case found: rows of the table, and figures for the JSON file."""

    rows: tuple[Row, ...] = ()
    figures: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """One run as read from its file.

    Attributes:
        header: its `run` line.
        lines: all later lines, in order.
    """

    header: dict[str, Any]
    lines: list[dict[str, Any]]

    def cases(self) -> list[dict[str, Any]]:
        """Return the last line of each case that has ended, in order, then those that were cut off."""
        ended = {(line["step"], line["case"]): line for line in self.lines if line["kind"] == "case"}
        begun = {(line["step"], line["case"]): line for line in self.lines if line["kind"] == "begun"}
        return [*ended.values(), *(_cut_off(line) for key, line in begun.items() if key not in ended)]

    def steps(self) -> dict[str, dict[str, Any]]:
        """Return how each step ended; a step that has not ended is absent."""
        return {line["step"]: line for line in self.lines if line["kind"] == "step"}

    def counts(self) -> dict[str, int]:
        """Return how many cases each step has, of those that say so."""
        return {line["step"]: line["count"] for line in self.lines if line["kind"] == "count"}


def _cut_off(begun: dict[str, Any]) -> dict[str, Any]:
    ending = {"kind": "case", "status": CUT_OFF, "reason": "the process ended in the middle of it"}
    return {**begun, **ending, "rows": [], "figures": {}}


def append(path: Path, **line: Any) -> None:
    """Append one line in one write, so that processes may share the file."""
    text = json.dumps(line, default=_as_plain) + "\n"
    with path.open("ab+") as file:
        file.seek(0, os.SEEK_END)
        if file.tell():
            file.seek(-1, os.SEEK_END)
            # a writer that was killed may have left half a line
            text = text if file.read(1) == b"\n" else "\n" + text
        file.write(text.encode())


def _as_plain(value: object) -> object:
    if isinstance(value, Row):
        return asdict(value)
    return str(value)


def read_lines(path: Path) -> list[dict[str, Any]]:
    """Return every whole line of the file; none if there is no file."""
    return list(_parsed(path.read_bytes().splitlines())) if path.exists() else []


def _parsed(lines: Iterable[bytes]) -> Iterable[dict[str, Any]]:
    for text in lines:
        try:
            line = json.loads(text)
        except ValueError:
            continue  # half a line
        if isinstance(line, dict) and "kind" in line:
            yield line


def read_run(path: Path) -> Run:
    """Return the last run in the file.

    Raises:
        ValueError: there is none.
    """
    lines = read_lines(path)
    starts = [number for number, line in enumerate(lines) if line["kind"] == "run"]
    if not starts:
        raise ValueError(f"{path} holds no run: it has no line of the kind `run`")
    return Run(header=lines[starts[-1]], lines=lines[starts[-1] + 1 :])
