"""The files of the store: a row and the bytes for each.

A file is on disk before its row is, and its row goes before its bytes do. So whatever has a row is whole, and
what a killed server leaves behind has none.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable
from pathlib import Path

from .database import Database
from .errors import BatchApiError
from .folder import NewFile, StoreFolder
from .json_text import is_storable, shorten
from .settings import BatchSettings
from .values import INPUT_PURPOSE, OPEN_STATUSES, StoredFile

_COLUMNS = "number, id, name, purpose, num_bytes, created_at"
_OPEN = ", ".join(f"'{status}'" for status in OPEN_STATUSES)


class FileTable:
    """Files by their ids. Safe to use from any thread."""

    def __init__(
        self, database: Database, folder: StoreFolder, settings: BatchSettings, clock: Callable[[], float]
    ) -> None:
        """Remove from `folder` what no row names."""
        self._database = database
        self._folder = folder
        self._settings = settings
        self._clock = clock
        with database.transaction() as rows:
            kept = {row["id"] for row in rows.execute("SELECT id FROM files WHERE NOT is_deleted")}
        folder.remove_all_but(kept)

    def refuse_if_full(self) -> None:
        """Refuse an upload when there are too many files already.

        Raises:
            BatchApiError: there are.
        """
        with self._database.transaction() as rows:
            self._refuse_if_full(rows)

    def new_file(self) -> NewFile:
        """Return a file to write; use it in a `with` block, and give it to `keep_upload`."""
        return self._folder.new_file()

    def keep_upload(self, new: NewFile, name: str) -> StoredFile:
        """Keep an uploaded file; when this returns, it is on disk.

        Raises:
            BatchApiError: there are too many files.
        """
        new.publish()
        with self._database.transaction() as rows:
            self._refuse_if_full(rows)
            stored = insert_file(rows, new, name=name, purpose=INPUT_PURPOSE, created_at=int(self._clock()))
        new.keep()
        return stored

    def get(self, file_id: str) -> StoredFile:
        """Return a file.

        Raises:
            BatchApiError: there is none with this id.
        """
        with self._database.transaction() as rows:
            return find_file(rows, file_id, param="file_id")

    def path(self, file_id: str) -> Path:
        """Return where the bytes of a file are.

        Raises:
            BatchApiError: there is none with this id.
        """
        return self._folder.path_of(self.get(file_id).id)

    def page(
        self,
        *,
        limit: int,
        after: str | None = None,
        purpose: str | None = None,
        is_newest_first: bool = True,
    ) -> tuple[list[StoredFile], bool]:
        """Return up to `limit` files and whether there are more.

        Args:
            limit: how many.
            after: the id of the last file of the page before; it may have been deleted since.
            purpose: only files with this purpose; None for all.
            is_newest_first: the order.

        Raises:
            BatchApiError: there was never a file `after`.
        """
        comparison, order = ("<", "DESC") if is_newest_first else (">", "ASC")
        with self._database.transaction() as rows:
            found = rows.execute(
                f"SELECT {_COLUMNS} FROM files WHERE NOT is_deleted "
                "AND (:purpose IS NULL OR purpose = :purpose) "
                f"AND (:after IS NULL OR number {comparison} :after) ORDER BY number {order} LIMIT :limit",
                {
                    "purpose": purpose,
                    "after": number_of(rows, "files", after, "file"),
                    "limit": limit + 1,
                },
            ).fetchall()
        return [StoredFile(**row) for row in found[:limit]], len(found) > limit

    def delete(self, file_id: str) -> None:
        """Delete a file.

        Raises:
            BatchApiError: there is none with this id, or a batch that has not ended reads it.
        """
        with self._database.transaction() as rows:
            stored = find_file(rows, file_id, param="file_id")
            user = rows.execute(
                f"SELECT id FROM batches WHERE input_file_id = ? AND status IN ({_OPEN})", (stored.id,)
            ).fetchone()
            if user is not None:
                raise BatchApiError(
                    f"the batch {user['id']} uses the file {stored.id}: cancel the batch or wait for its end",
                    status=409,
                    param="file_id",
                    code="file_in_use",
                )
            # the row stays: a client that deletes page by page goes on after a file that is gone
            rows.execute("UPDATE files SET is_deleted = 1 WHERE number = ?", (stored.number,))
        self._folder.remove(stored.id)

    def _refuse_if_full(self, rows: sqlite3.Connection) -> None:
        (num_files,) = rows.execute("SELECT count(*) FROM files WHERE NOT is_deleted").fetchone()
        if num_files >= self._settings.most_files:
            raise BatchApiError(
                f"{num_files:,} files are stored, which is the limit; delete some",
                status=400,
                code="too_many_files",
            )


def find_file(rows: sqlite3.Connection, file_id: str, *, param: str) -> StoredFile:
    """Return a file, inside a transaction.

    Raises:
        BatchApiError: there is none with this id.
    """
    row = None
    if is_storable(file_id):
        row = rows.execute(
            f"SELECT {_COLUMNS} FROM files WHERE id = ? AND NOT is_deleted", (file_id,)
        ).fetchone()
    if row is None:
        raise BatchApiError(
            f"there is no file {shorten(file_id)}; list the files to see which there are",
            status=404,
            param=param,
            code="file_not_found",
        )
    return StoredFile(**row)


def insert_file(
    rows: sqlite3.Connection, new: NewFile, *, name: str, purpose: str, created_at: int
) -> StoredFile:
    """Write the row of a published file, inside a transaction."""
    number = rows.execute(
        "INSERT INTO files (id, name, purpose, num_bytes, created_at) VALUES (?, ?, ?, ?, ?)",
        (new.id, name, purpose, new.num_bytes, created_at),
    ).lastrowid
    assert number is not None, "an inserted row has a number"
    return StoredFile(
        number=number, id=new.id, name=name, purpose=purpose, num_bytes=new.num_bytes, created_at=created_at
    )


def number_of(rows: sqlite3.Connection, table: str, after: str | None, kind: str) -> int | None:
    """Return the number of the row where the page before ended; None for the first page.

    Raises:
        BatchApiError: there was never such a row.
    """
    if after is None:
        return None
    row = None
    if is_storable(after):
        row = rows.execute(f"SELECT number FROM {table} WHERE id = ?", (after,)).fetchone()
    if row is None:
        raise BatchApiError(f"after: there is no {kind} {shorten(after)}", status=400, param="after")
    return int(row["number"])
