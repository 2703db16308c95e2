"""The batches of the store: how they begin, what they are, and how a client ends them early."""

from __future__ import annotations

import json
import secrets
import sqlite3
from collections.abc import Callable, Mapping
from dataclasses import asdict, fields

from .database import Database
from .errors import BatchApiError
from .files import find_file, number_of
from .folder import StoreFolder
from .input_file import InputCheck, InputLine, check_input
from .json_text import is_storable, shorten, write_json
from .settings import BatchSettings
from .values import ENDPOINTS, INPUT_PURPOSE, OPEN_STATUSES, WINDOW, InputError, StoredBatch

_COLUMNS = ", ".join(each.name for each in fields(StoredBatch))
_OPEN = ", ".join(f"'{status}'" for status in OPEN_STATUSES)
_MOST_PAIRS = 16
_MOST_KEY_CHARS = 64
_MOST_VALUE_CHARS = 512


class BatchTable:
    """Batches by their ids. Safe to use from any thread."""

    def __init__(
        self, database: Database, folder: StoreFolder, settings: BatchSettings, clock: Callable[[], float]
    ) -> None:
        """Use a database and the files in `folder`."""
        self._database = database
        self._folder = folder
        self._settings = settings
        self._clock = clock

    def create(
        self,
        *,
        input_file_id: str,
        endpoint: str,
        completion_window: str,
        metadata: Mapping[str, str] | None = None,
    ) -> StoredBatch:
        """Begin a batch; its input is checked later, by `validate`.

        Raises:
            BatchApiError: a value is none that OpenAI takes, the file does not exist or is no input file, or
                too many batches are open.
        """
        _check_values(endpoint, completion_window, metadata)
        batch_id = f"batch_{secrets.token_hex(16)}"
        now = int(self._clock())
        with self._database.transaction() as rows:
            self._check_limits(rows, input_file_id)
            rows.execute(
                "INSERT INTO batches (id, endpoint, input_file_id, completion_window, metadata, status, "
                "created_at, expires_at) VALUES (?, ?, ?, ?, ?, 'validating', ?, ?)",
                (
                    batch_id,
                    endpoint,
                    input_file_id,
                    completion_window,
                    write_json(dict(metadata)) if metadata is not None else None,
                    now,
                    now + self._settings.expires_after_s,
                ),
            )
            return find_batch(rows, batch_id)

    def get(self, batch_id: str) -> StoredBatch:
        """Return a batch.

        Raises:
            BatchApiError: there is none with this id.
        """
        with self._database.transaction() as rows:
            return find_batch(rows, batch_id)

    def page(self, *, limit: int, after: str | None = None) -> tuple[list[StoredBatch], bool]:
        """Return up to `limit` batches that follow `after`, the newest first, and whether there are more.

        Raises:
            BatchApiError: there is no batch `after`.
        """
        with self._database.transaction() as rows:
            found = rows.execute(
                f"SELECT {_COLUMNS} FROM batches WHERE (:after IS NULL OR number < :after) "
                "ORDER BY number DESC LIMIT :limit",
                {"after": number_of(rows, "batches", after, "batch"), "limit": limit + 1},
            ).fetchall()
        return [_from_row(row) for row in found[:limit]], len(found) > limit

    def open(self) -> list[StoredBatch]:
        """Return the batches that have not ended, the oldest first."""
        with self._database.transaction() as rows:
            found = rows.execute(
                f"SELECT {_COLUMNS} FROM batches WHERE status IN ({_OPEN}) ORDER BY number"
            ).fetchall()
        return [_from_row(row) for row in found]

    def validate(self, batch: StoredBatch) -> None:
        """Check the input of a batch that waits for it: afterwards, it has lines or has failed."""
        try:
            with self._folder.path_of(batch.input_file_id).open("rb") as source:
                check = check_input(source, endpoint=batch.endpoint, settings=self._settings)
        except FileNotFoundError:
            # someone has removed it by hand: no server deletes a file that a batch uses
            lost = InputError(code="file_not_found", message="the input file is lost; upload it again")
            check = InputCheck(lines=(), errors=(lost,))
        with self._database.transaction() as rows:
            if find_batch(rows, batch.id).status != "validating":
                return
            if check.errors:
                self._fail(rows, batch, check.errors)
            else:
                self._start(rows, batch, check.lines)

    def cancel(self, batch_id: str) -> StoredBatch:
        """Let a batch start no more lines; those that are being answered may end. Safe to call twice.

        Raises:
            BatchApiError: there is none with this id, or it has ended in another way.
        """
        with self._database.transaction() as rows:
            batch = find_batch(rows, batch_id)
            if batch.status in ("cancelling", "cancelled"):
                return batch
            if batch.status not in ("validating", "in_progress"):
                raise BatchApiError(
                    f"the batch {batch.id} is {batch.status}: only one that is validating or in_progress "
                    "can be cancelled",
                    status=409,
                    param="batch_id",
                    code="batch_not_cancellable",
                )
            rows.execute(
                "UPDATE batches SET status = 'cancelling', cancelling_at = ? WHERE number = ?",
                (int(self._clock()), batch.number),
            )
            return find_batch(rows, batch_id)

    def _check_limits(self, rows: sqlite3.Connection, input_file_id: str) -> None:
        stored = find_file(rows, input_file_id, param="input_file_id")
        if stored.purpose != INPUT_PURPOSE:
            raise BatchApiError(
                f"the file {stored.id} has the purpose {stored.purpose!r}; give one uploaded with the "
                f"purpose {INPUT_PURPOSE!r}",
                status=400,
                param="input_file_id",
            )
        (num_open,) = rows.execute(f"SELECT count(*) FROM batches WHERE status IN ({_OPEN})").fetchone()
        if num_open >= self._settings.most_open_batches:
            raise BatchApiError(
                f"{num_open:,} batches are open, which is the limit; wait until one has ended",
                status=429,
                code="too_many_batches",
            )

    def _fail(self, rows: sqlite3.Connection, batch: StoredBatch, errors: tuple[InputError, ...]) -> None:
        rows.execute(
            "UPDATE batches SET status = 'failed', failed_at = ?, errors = ? WHERE number = ?",
            (int(self._clock()), write_json([asdict(error) for error in errors]), batch.number),
        )

    def _start(self, rows: sqlite3.Connection, batch: StoredBatch, lines: tuple[InputLine, ...]) -> None:
        rows.executemany(
            "INSERT INTO lines (batch, number, custom_id, offset, num_bytes) VALUES (?, ?, ?, ?, ?)",
            ((batch.number, line.number, line.custom_id, line.offset, line.num_bytes) for line in lines),
        )
        rows.execute(
            "UPDATE batches SET status = 'in_progress', in_progress_at = ?, total = ? WHERE number = ?",
            (int(self._clock()), len(lines), batch.number),
        )


def find_batch(rows: sqlite3.Connection, batch_id: str) -> StoredBatch:
    """Return a batch, inside a transaction.

    Raises:
        BatchApiError: there is none with this id.
    """
    row = None
    if is_storable(batch_id):
        row = rows.execute(f"SELECT {_COLUMNS} FROM batches WHERE id = ?", (batch_id,)).fetchone()
    if row is None:
        raise BatchApiError(
            f"there is no batch {shorten(batch_id)}; list the batches to see which there are",
            status=404,
            param="batch_id",
            code="batch_not_found",
        )
    return _from_row(row)


def _from_row(row: sqlite3.Row) -> StoredBatch:
    values = dict(row)
    metadata = values["metadata"]
    values["metadata"] = None if metadata is None else json.loads(metadata)
    values["errors"] = tuple(InputError(**error) for error in json.loads(values["errors"]))
    return StoredBatch(**values)


def _check_values(endpoint: str, completion_window: str, metadata: Mapping[str, str] | None) -> None:
    if endpoint not in ENDPOINTS:
        raise BatchApiError(
            f"endpoint must be {' or '.join(ENDPOINTS)}, not {shorten(endpoint)}",
            status=400,
            param="endpoint",
        )
    if completion_window != WINDOW:
        raise BatchApiError(
            f"completion_window must be {WINDOW!r}, not {shorten(completion_window)}",
            status=400,
            param="completion_window",
        )
    pairs = metadata or {}
    is_good = len(pairs) <= _MOST_PAIRS and all(
        len(key) <= _MOST_KEY_CHARS and len(value) <= _MOST_VALUE_CHARS and is_storable(key + value)
        for key, value in pairs.items()
    )
    if not is_good:
        raise BatchApiError(
            f"metadata can have {_MOST_PAIRS} pairs of text, keys of {_MOST_KEY_CHARS} characters and values "
            f"of {_MOST_VALUE_CHARS} at most",
            status=400,
            param="metadata",
        )
