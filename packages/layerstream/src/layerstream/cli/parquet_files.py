"""Rows and results of a job as parquet files; needs pyarrow, which comes with Ray.

A parquet file cannot grow row by row, so the results of a job are lines of JSON as always, in a file beside
it, and become parquet whenever the job stops.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from ..errors import JobError
from .job_header import KEY
from .jobs import JobRow, refuse_special_file, row_of
from .row_columns import KEYS_THEMSELVES, Columns

SUFFIX = ".parquet"


def lines_beside(path: Path) -> Path:
    """Return the file of lines that the results in the parquet file `path` are made of."""
    return path.with_name(path.name + ".jsonl")


def read_parquet_rows(path: Path, columns: Columns = KEYS_THEMSELVES) -> list[JobRow]:
    """Return the rows of a parquet file. An empty cell is as a key that is not there.

    Args:
        path: the file.
        columns: the columns that make a row, where others than the keys of a row are named.

    Raises:
        JobError: the file cannot be read.
    """
    refuse_special_file(path, f"the rows {path}", "give a parquet file")
    try:
        records = pq.read_table(path).to_pylist()
    except (OSError, pa.ArrowException) as error:
        raise JobError(f"cannot read the rows {path}: {error}") from error
    return [row_of(number, record, columns) for number, record in enumerate(records, start=1)]


def write_parquet_results(path: Path) -> None:
    """Make the parquet file `path` of the lines beside it. It takes the place of an older one at once.

    Raises:
        JobError: it cannot be written.
    """
    with lines_beside(path).open("rb") as lines:
        records = [record for record in map(json.loads, lines) if KEY not in record]
    records.sort(key=lambda record: record["row"])
    names = list(dict.fromkeys(name for record in records for name in record))
    table = pa.table({name: _column([record.get(name) for record in records]) for name in names})
    unfinished = path.with_name(path.name + ".unfinished")
    try:
        pq.write_table(table, unfinished)
        os.replace(unfinished, path)
    except OSError as error:
        raise JobError(f"cannot write the results {path}: {error.strerror or error}") from error


def _column(values: Sequence[Any]) -> pa.Array:
    """Return values as a column; as JSON where they are not of one type."""
    try:
        return pa.array(values)
    except pa.ArrowException:
        return pa.array([None if value is None else json.dumps(value) for value in values])
