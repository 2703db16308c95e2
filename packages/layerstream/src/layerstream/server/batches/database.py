"""The database of files and batches: one connection, one transaction at a time, durable when it returns.

It does not know what the rows mean.
"""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from .errors import BatchStoreError

SCHEMA_VERSION = 2

_SCHEMA = """
CREATE TABLE files (
    number INTEGER PRIMARY KEY AUTOINCREMENT,
    id TEXT NOT NULL UNIQUE,
    name TEXT NOT NULL,
    purpose TEXT NOT NULL,
    num_bytes INTEGER NOT NULL,
    created_at INTEGER NOT NULL,
    is_deleted INTEGER NOT NULL DEFAULT 0
);
CREATE TABLE batches (
    number INTEGER PRIMARY KEY AUTOINCREMENT,
    id TEXT NOT NULL UNIQUE,
    endpoint TEXT NOT NULL,
    input_file_id TEXT NOT NULL REFERENCES files (id),
    completion_window TEXT NOT NULL,
    metadata TEXT,
    status TEXT NOT NULL,
    ending TEXT,
    created_at INTEGER NOT NULL,
    expires_at INTEGER NOT NULL,
    in_progress_at INTEGER,
    finalizing_at INTEGER,
    completed_at INTEGER,
    failed_at INTEGER,
    expired_at INTEGER,
    cancelling_at INTEGER,
    cancelled_at INTEGER,
    total INTEGER NOT NULL DEFAULT 0,
    completed INTEGER NOT NULL DEFAULT 0,
    failed INTEGER NOT NULL DEFAULT 0,
    input_tokens INTEGER NOT NULL DEFAULT 0,
    cached_tokens INTEGER NOT NULL DEFAULT 0,
    output_tokens INTEGER NOT NULL DEFAULT 0,
    output_file_id TEXT REFERENCES files (id),
    error_file_id TEXT REFERENCES files (id),
    errors TEXT NOT NULL DEFAULT '[]'
);
CREATE INDEX batches_by_status ON batches (status, number);
CREATE TABLE lines (
    batch INTEGER NOT NULL REFERENCES batches (number),
    number INTEGER NOT NULL,
    custom_id TEXT NOT NULL,
    offset INTEGER NOT NULL,
    num_bytes INTEGER NOT NULL,
    result TEXT,
    is_failed INTEGER,
    PRIMARY KEY (batch, number)
);
CREATE INDEX pending_lines ON lines (batch, number) WHERE result IS NULL;
"""

_UPGRADES = {
    1: """
ALTER TABLE batches ADD COLUMN input_tokens INTEGER NOT NULL DEFAULT 0;
ALTER TABLE batches ADD COLUMN cached_tokens INTEGER NOT NULL DEFAULT 0;
ALTER TABLE batches ADD COLUMN output_tokens INTEGER NOT NULL DEFAULT 0
"""
}
"""For each older version, what turns its database into one of the next version.

Of lines answered under version 1, no tokens are known; they count as 0.
"""


class Database:
    """An open database. Safe to use from any thread; its owner must close it."""

    def __init__(self, path: Path) -> None:
        """Open the database at `path`, or create it.

        Raises:
            BatchStoreError: it is no database, or one of another version.
        """
        self._lock = threading.Lock()
        try:
            # the lock above guards the connection, so any thread may use it
            self._connection = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
        except sqlite3.Error as error:
            raise BatchStoreError(f"cannot open the database of batches {path}: {error}") from error
        self._connection.row_factory = sqlite3.Row
        try:
            self._prepare(path)
        except sqlite3.Error as error:
            self._connection.close()
            raise BatchStoreError(
                f"cannot open the database of batches {path}: {error}; give another folder"
            ) from error
        except BaseException:
            self._connection.close()
            raise

    @contextmanager
    def transaction(self) -> Iterator[sqlite3.Connection]:
        """Run the block as one transaction: all of it is on disk afterwards, or none of it if it raises."""
        with self._lock:
            self._connection.execute("BEGIN IMMEDIATE")
            try:
                yield self._connection
                self._connection.execute("COMMIT")
            except BaseException:
                # some errors of SQLite have rolled it back already
                if self._connection.in_transaction:
                    self._connection.execute("ROLLBACK")
                raise

    def close(self) -> None:
        """Close the database. Safe to call twice."""
        with self._lock:
            self._connection.close()

    def _prepare(self, path: Path) -> None:
        self._connection.execute("PRAGMA journal_mode = WAL")
        # without it, a power cut could take back what was answered
        self._connection.execute("PRAGMA synchronous = FULL")
        self._connection.execute("PRAGMA foreign_keys = ON")
        with self.transaction() as rows:
            (version,) = rows.execute("PRAGMA user_version").fetchone()
            (num_tables,) = rows.execute("SELECT count(*) FROM sqlite_schema").fetchone()
            known = {SCHEMA_VERSION, *_UPGRADES, *(() if num_tables else (0,))}
            if version not in known:
                raise BatchStoreError(
                    f"the database of batches {path} has version {version}, this layerstream knows versions "
                    f"1 to {SCHEMA_VERSION}: give another folder, or use the layerstream that wrote it"
                )
            changes = [_UPGRADES[each] for each in range(version, SCHEMA_VERSION)] if version else [_SCHEMA]
            for statement in ";".join(changes).split(";"):
                rows.execute(statement)
            rows.execute(f"PRAGMA user_version = {SCHEMA_VERSION}")
