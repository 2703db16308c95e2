"""How a batch ends: every line gets its result, files are written, and only then does the batch name them.

A kill at any moment leaves one of three states, and each leads on: not settled, settled, ended. A file that
was written before the kill has no row; the next start removes it, and it is written again.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable
from contextlib import ExitStack

from .batches import find_batch
from .database import Database
from .files import insert_file
from .folder import NewFile, StoreFolder
from .lines import LineTable, store_result
from .results import CANCELLED, EXPIRED, result_without_response
from .values import OUTPUT_PURPOSE, StoredBatch

_TIME_COLUMNS = {"completed": "completed_at", "expired": "expired_at", "cancelled": "cancelled_at"}


class BatchEnding:
    """Ends batches. Safe to use from any thread, but one batch by one thread at a time."""

    def __init__(
        self, database: Database, folder: StoreFolder, lines: LineTable, clock: Callable[[], float]
    ) -> None:
        """Use a database and the files in `folder`."""
        self._database = database
        self._folder = folder
        self._lines = lines
        self._clock = clock

    def end(self, batch: StoredBatch) -> None:
        """End a batch, if it takes no more lines and has not ended. None of its lines may be in work.

        Raises:
            OSError: the disk refused a file; the batch is as it was, call this again.
        """
        settled = self._settle(batch)
        if settled.ending is None or not settled.is_open:
            return
        with ExitStack() as new_files:
            output, errors = self._write_files(settled, new_files)
            self._name_files(settled, output, errors)

    def _settle(self, batch: StoredBatch) -> StoredBatch:
        """Decide how the batch ends, and give the lines that it does not answer their errors."""
        now = self._clock()
        with self._database.transaction() as rows:
            current = find_batch(rows, batch.id)
            if current.ending is not None or not current.takes_no_line(now):
                return current
            if current.status == "cancelling":
                ending, reason = "cancelled", CANCELLED
            elif current.num_pending:
                ending, reason = "expired", EXPIRED
            else:
                ending, reason = "completed", None
            if reason is not None:
                _give_up(rows, current, reason)
            # a cancelled batch is cancelling until it has ended
            status = current.status if ending == "cancelled" else "finalizing"
            rows.execute(
                "UPDATE batches SET ending = ?, status = ?, finalizing_at = ? WHERE number = ?",
                (ending, status, int(now), current.number),
            )
            return find_batch(rows, batch.id)

    def _write_files(self, batch: StoredBatch, new_files: ExitStack) -> tuple[NewFile | None, NewFile | None]:
        """Write the answers and the errors, each into its file; None where there are none."""
        written: dict[bool, NewFile] = {}
        for result in self._lines.results(batch):
            new = written.get(result.is_failed)
            if new is None:
                new = written[result.is_failed] = new_files.enter_context(self._folder.new_file())
            new.write(result.text.encode() + b"\n")
        for new in written.values():
            new.publish()
        return written.get(False), written.get(True)

    def _name_files(self, batch: StoredBatch, output: NewFile | None, errors: NewFile | None) -> None:
        """Write the rows of the files, name them in the batch and end it, in one transaction."""
        now = int(self._clock())
        with self._database.transaction() as rows:
            for new, name in ((output, "output"), (errors, "error")):
                if new is not None:
                    insert_file(
                        rows, new, name=f"{batch.id}_{name}.jsonl", purpose=OUTPUT_PURPOSE, created_at=now
                    )
            rows.execute(
                f"UPDATE batches SET status = ending, {_TIME_COLUMNS[str(batch.ending)]} = ?, "
                "output_file_id = ?, error_file_id = ? WHERE number = ?",
                (now, output.id if output else None, errors.id if errors else None, batch.number),
            )
            # the files hold them now
            rows.execute("DELETE FROM lines WHERE batch = ?", (batch.number,))
        for kept in (output, errors):
            if kept is not None:
                kept.keep()


def _give_up(rows: sqlite3.Connection, batch: StoredBatch, reason: tuple[str, str]) -> None:
    pending = rows.execute(
        "SELECT number, custom_id FROM lines WHERE batch = ? AND result IS NULL", (batch.number,)
    ).fetchall()
    for line in pending:
        store_result(rows, batch.number, line["number"], result_without_response(line["custom_id"], *reason))
