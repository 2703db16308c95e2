"""Make the table of a run: what was measured, its target, and whether it was met. Knows the lines only."""

from __future__ import annotations

import json
import textwrap
from dataclasses import asdict
from pathlib import Path
from typing import Any

from .children import DIED
from .lines import FAILED, OK, SKIPPED, Row, Run

COLUMNS = ("what", "measured", "target", "verdict", "note")


def rows_of(run: Run) -> list[Row]:
    """Return the rows of every step in order; equal tallies are counted together."""
    rows: list[Row] = []
    for step in run.header["steps"]:
        cases = [case for case in run.cases() if case["step"] == step]
        found = [Row(**row) for case in cases for row in case["rows"]]
        rows += _counted(found)
        rows += _without_result(step, [case for case in cases if case["status"] != OK])
        rows += _ending(run, step, sum(case["status"] == OK for case in cases))
    return rows


def _ending(run: Run, step: str, num_done: int) -> list[Row]:
    """Return a row for a step that has not come to its end."""
    ending = run.steps().get(step, {"ended": "not run to its end", "note": ""})
    if ending["ended"] == OK:
        return []
    total = run.counts().get(step)
    done = f"{num_done} of {total} cases have a result" if total else ""
    note = "; ".join(part for part in (done, ending["note"]) if part)
    has_died = ending["ended"].startswith(DIED)
    return [
        Row(
            what=f"step {step}",
            found=ending["ended"],
            target="runs" if has_died else "",
            met=False if has_died else None,
            note=note,
            is_promise=has_died,
        )
    ]


def _counted(rows: list[Row]) -> list[Row]:
    """Return the rows with each group of tallies as one, at the place of its first."""
    result: dict[object, Row] = {}
    for number, row in enumerate(rows):
        same = [each for each in rows if each.tally and each.what == row.what]
        result.setdefault(row.what if row.tally else number, _tally(same) if row.tally else row)
    return list(result.values())


def _tally(rows: list[Row]) -> Row:
    counted = [row for row in rows if row.met is not None]
    others = "; ".join(row.note for row in rows if not row.met and row.note)
    met = sum(bool(row.met) for row in counted)
    return Row(
        what=rows[0].what,
        found=f"{met} of {len(counted)}",
        target=rows[0].target or "all",
        met=met == len(counted) if counted else None,
        note=others,
        is_promise=rows[0].is_promise,
    )


def _without_result(step: str, cases: list[dict[str, Any]]) -> list[Row]:
    """Return a row for each reason why cases have no result."""
    names: dict[tuple[str, str], list[str]] = {}
    for case in cases:
        names.setdefault((case["status"], case["reason"]), []).append(case["case"])
    return [
        Row(
            what=f"{step}: {', '.join(same) if len(same) < 4 else f'{len(same)} cases'}",
            found=status,
            target="runs" if status == FAILED else "",
            met=False if status == FAILED else None,
            note=reason if len(same) < 4 else f"{reason}: {', '.join(same)}",
            is_promise=status == FAILED,
        )
        for (status, reason), same in names.items()
    ]


def verdict(row: Row) -> str:
    """Return `pass`, `MISS`, `n/a`, or nothing for a row without a target."""
    if row.met is not None:
        return "pass" if row.met else "MISS"
    return "n/a" if row.target or row.found == SKIPPED else ""


def broken_promises(run: Run) -> list[str]:
    """Return what is wrong, not only slow: tests, equality, memory above a budget, cases that raised."""
    return [row.what for row in rows_of(run) if row.is_promise and row.met is False]


def as_text(run: Run) -> str:
    """Return the table for a terminal."""
    cells = [(row.what, row.found, row.target, verdict(row)) for row in rows_of(run)]
    widths = [max(len(cell[column]) for cell in [COLUMNS, *cells]) for column in range(4)]
    lines = ["  ".join(map(str.ljust, COLUMNS[:4], widths)), "  ".join("-" * width for width in widths)]
    for cell, row in zip(cells, rows_of(run), strict=True):
        lines.append("  ".join(map(str.ljust, cell, widths)).rstrip())
        lines += [f"    {part}" for part in textwrap.wrap(row.note, 110)]
    return "\n".join(lines)


def as_markdown(run: Run) -> str:
    """Return the result file: table, how each step ended, hardware and versions."""
    header = run.header
    lines = [f"# layerstream on {header['card']}", "", f"{header['summary']}", ""]
    lines += [f"| {' | '.join(COLUMNS)} |", "|" + "---|" * len(COLUMNS)]
    for row in rows_of(run):
        cells = (row.what, row.found, row.target, verdict(row), row.note)
        lines.append("| " + " | ".join(_cell(cell) for cell in cells) + " |")
    lines += ["", "| step | ended | seconds |", "|---|---|---|"]
    for step in header["steps"]:
        ending = run.steps().get(step, {"ended": "not run", "seconds": 0.0})
        lines.append(f"| {step} | {_cell(ending['ended'])} | {ending['seconds']:.1f} |")
    lines += ["", "| | |", "|---|---|"]
    lines += [f"| {name} | {_cell(str(value))} |" for name, value in header["facts"].items()]
    return "\n".join(lines) + "\n"


def _cell(text: str) -> str:
    return " ".join(text.replace("|", "/").split())


def write_files(run: Run, stem: Path) -> None:
    """Write the table as `stem`.md, and every line and row as `stem`.json."""
    stem.with_suffix(".md").write_text(as_markdown(run), encoding="utf-8")
    content = {
        "run": run.header,
        "rows": [{**asdict(row), "verdict": verdict(row)} for row in rows_of(run)],
        "cases": run.cases(),
        "steps": run.steps(),
    }
    stem.with_suffix(".json").write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
