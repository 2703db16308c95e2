"""The lines of batches: which come next, and the one result of each.

A line has a result or it has none; nothing says that it is being answered. So after a kill, it is answered
again. A result is written in one transaction, and only where there is none yet.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from .database import Database
from .folder import StoreFolder
from .input_file import read_body
from .results import LineResult, result_of_response, result_without_response
from .values import PendingLine, StoredBatch

_PAGE_LINES = 200


class LineTable:
    """Lines by their batch and number. Safe to use from any thread."""

    def __init__(self, database: Database, folder: StoreFolder, clock: Callable[[], float]) -> None:
        """Use a database and the files in `folder`."""
        self._database = database
        self._folder = folder
        self._clock = clock

    def pending(self, limit: int) -> list[PendingLine]:
        """Return up to `limit` lines without a result: those of the oldest batch first, in their order."""
        with self._database.transaction() as rows:
            found = rows.execute(
                "SELECT lines.batch, lines.number, custom_id, endpoint, input_file_id, offset, num_bytes "
                "FROM batches CROSS JOIN lines ON lines.batch = batches.number "
                "WHERE status = 'in_progress' AND expires_at > ? AND result IS NULL "
                "ORDER BY lines.batch, lines.number LIMIT ?",
                (self._clock(), limit),
            ).fetchall()
        return [PendingLine(**row) for row in found]

    def read_body(self, line: PendingLine) -> dict[str, Any]:
        """Return the request of a line.

        Raises:
            OSError: its file cannot be read.
            ValueError: its file was changed by someone.
        """
        with self._folder.path_of(line.input_file_id).open("rb") as source:
            source.seek(line.offset)
            return read_body(source.read(line.num_bytes))

    def answer(self, line: PendingLine, status: int, body: Mapping[str, Any]) -> bool:
        """Give a line its result; when this returns, it is on disk.

        Args:
            line: the line.
            status: the HTTP status of its answer.
            body: the answer.

        Returns:
            Whether it is the line's result now; False if there was one already, which stays.

        Raises:
            TypeError, ValueError: the answer cannot be written as JSON.
        """
        return self._store(line, result_of_response(line.custom_id, status, body))

    def fail(self, line: PendingLine, code: str, message: str) -> bool:
        """Give a line that nothing has answered an error as its result; see `answer`."""
        return self._store(line, result_without_response(line.custom_id, code, message))

    def results(self, batch: StoredBatch) -> Iterator[LineResult]:
        """Yield the results of a batch in the order of its lines."""
        number = 0
        while True:
            with self._database.transaction() as rows:
                found = rows.execute(
                    "SELECT number, result, is_failed FROM lines WHERE batch = ? AND number > ? "
                    "AND result IS NOT NULL ORDER BY number LIMIT ?",
                    (batch.number, number, _PAGE_LINES),
                ).fetchall()
            if not found:
                return
            for row in found:
                yield LineResult(text=row["result"], is_failed=bool(row["is_failed"]))
            number = found[-1]["number"]

    def _store(self, line: PendingLine, result: LineResult) -> bool:
        with self._database.transaction() as rows:
            return store_result(rows, line.batch, line.number, result)


def store_result(rows: sqlite3.Connection, batch: int, number: int, result: LineResult) -> bool:
    """Write the result of a line and count it, inside a transaction; return False if there is one already."""
    done = rows.execute(
        "UPDATE lines SET result = ?, is_failed = ? WHERE batch = ? AND number = ? AND result IS NULL",
        (result.text, result.is_failed, batch, number),
    )
    if done.rowcount != 1:
        return False
    counter = "failed" if result.is_failed else "completed"
    usage = result.usage
    rows.execute(
        f"UPDATE batches SET {counter} = {counter} + 1, input_tokens = input_tokens + ?, "
        "cached_tokens = cached_tokens + ?, output_tokens = output_tokens + ? WHERE number = ?",
        (usage.input_tokens, usage.cached_tokens, usage.output_tokens, batch),
    )
    return True
