"""Results files without a model: a job's header, rows from text, and what a file holds, in short."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from layerstream.cli.job_header import JobHeader
from layerstream.cli.jobs import JobRow, read_rows
from layerstream.cli.result_file import ResultFile, Resume

LINES = [
    '{"id": "a", "prompt": "x"}',
    "",
    '{"prompt": "Ünïcödé"}',
    "not json",
    "[1, 2]",
    '{"id": {"deep": 1}, "prompt": "y"}',
]
JOB = JobHeader(
    command="batch",
    model={"name": "m", "revision": None, "fingerprint": {"config.json": "c0", "weights": "w0"}},
    settings={"max_new_tokens": 8, "temperature": None, "chat": False},
    versions={"layerstream": "1", "torch": "2"},
)
OTHER = replace(JOB, settings={**JOB.settings, "max_new_tokens": 9, "temperature": 0.5})


def rows_of(tmp_path: Path, *lines: str) -> list[JobRow]:
    path = tmp_path / "in.jsonl"
    path.write_text("\n".join(lines), encoding="utf-8")
    return read_rows(path)


def opened(path: Path, rows: Sequence[JobRow], job: JobHeader = JOB, **resume: bool) -> ResultFile:
    return ResultFile(path, rows, lambda: job, Resume(**resume))


def answer_all(file: ResultFile, rows: Sequence[JobRow], text: str = "answer") -> list[int]:
    """Give each open row a result, an error where the row has one; return their numbers."""
    open_rows = [row for row in rows if row.number not in file.done]
    for row in open_rows:
        file.write(row, {"text": text} if row.error is None else {"error": row.error})
    return [row.number for row in open_rows]


def records_of(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def shape_of(path: Path) -> list[Any]:
    """Return the file as the settings of its headers and the rows and texts of its results."""
    return [
        record["settings"].get("max_new_tokens", "unknown")
        if "layerstream_job" in record
        else (record["row"], record.get("text", "error"))
        for record in records_of(path)
    ]


def write_lines(path: Path, *records: Any) -> Path:
    """Write a line for each record; a text is a line as it is."""
    lines = (record if isinstance(record, str) else json.dumps(record) for record in records)
    path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    return path


def results_of(path: Path) -> dict[int, dict[str, Any]]:
    """Return the result of each row of one job, however often it was started: below one header."""
    header, *results = records_of(path)
    assert header["layerstream_job"] == 1
    assert len({record["row"] for record in results}) == len(results), "a row has two results"
    return {record["row"]: record for record in results}
