"""Finished rows that may not be written yet, in files: after a kill they need not be computed again.

Ray hands a finished block on to a task that writes it, and holds it in memory until then: the kill of a
driver loses these blocks. So each worker keeps its latest ones in the folder of the job's progress. A worker
that starts later, in this job or after it is started again, takes their rows from there.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
from collections import deque
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from uuid import uuid4

import pyarrow as pa
import pyarrow.dataset
import pyarrow.parquet as pq
from pyarrow.fs import FileSelector, FileSystem, FileType

from .rows import with_columns

MOST_FILES = 64
"""How many blocks a worker keeps. Older ones are written, unless writing is that far behind."""

_MOST_READS = 16
_KEY = "layerstream_key"
_PENDING = ".pending.parquet"
"""How Ray's record of a block ends that is being written."""

_LOG = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class KeptFolder:
    """Where the workers of a job keep finished rows.

    Attributes:
        filesystem: what holds the folder.
        path: the folder, as the filesystem names it.
        id_column: the column that tells rows apart.
    """

    filesystem: FileSystem
    path: str
    id_column: str

    def tables(self, columns: Sequence[str] | None = None) -> dict[str, pa.Table | None]:
        """Return each kept block, or some of its columns, by its path; None for half a block.

        Raises:
            OSError: the folder cannot be read.
        """
        paths = _files(self.filesystem, self.path)
        # each is small, and may be far away
        with ThreadPoolExecutor(_MOST_READS) as pool:
            return dict(zip(paths, pool.map(partial(self._read, columns=columns), paths), strict=True))

    def _read(self, path: str, columns: Sequence[str] | None) -> pa.Table | None:
        try:
            return pq.read_table(path, columns=columns, filesystem=self.filesystem)
        except (OSError, pa.ArrowException) as error:
            # a killed worker wrote half of it, or another one has removed it
            _LOG.info("%s is not used: %s", path, error)
            return None

    def forget_written(self, record: str) -> None:
        """Remove the blocks whose rows are all written.

        Args:
            record: the folder with Ray's record of written rows, on the same filesystem.

        Raises:
            OSError: a folder cannot be read.
        """
        ids = {
            path: pa.array([]) if table is None else table[self.id_column].combine_chunks()
            for path, table in self.tables([self.id_column]).items()
        }
        known = [each for each in ids.values() if len(each)]
        written = self._written(record, pa.concat_arrays(known)) if known else set()
        for path, each in ids.items():
            if written.issuperset(each.to_pylist()):
                self.remove(path)

    def _written(self, record: str, ids: pa.Array) -> set[object]:
        """Return those of `ids` that are written."""
        paths = [path for path in _files(self.filesystem, record) if not path.endswith(_PENDING)]
        if not paths:
            return set()
        rows = pyarrow.dataset.dataset(paths, filesystem=self.filesystem, format="parquet")
        is_asked_for = pyarrow.dataset.field(self.id_column).isin(ids)
        return set(rows.to_table(columns=[self.id_column], filter=is_asked_for)[self.id_column].to_pylist())

    def remove(self, path: str) -> None:
        """Remove a kept block, if it is still there."""
        try:
            self.filesystem.delete_file(path)
        except OSError as error:
            _LOG.info("%s is not removed: %s", path, error)


class KeptRows:
    """A worker's finished rows, and those that others had finished before it started."""

    def __init__(self, folder: KeptFolder | None, settings: object) -> None:
        """Read what is kept.

        Args:
            folder: where it is; None keeps nothing.
            settings: all that decides the results of a row, apart from the row: what was kept with others is
                not used. Told apart by their `repr`.
        """
        self._folder = folder
        self._settings = repr(settings)
        self._own: deque[str] = deque()
        self._found = {} if folder is None else _kept_results(folder)

    async def completed(
        self, block: pa.Table, complete: Callable[[pa.Table], Awaitable[pa.Table]]
    ) -> pa.Table:
        """Return the rows of `block` with their results, and keep them.

        Args:
            block: rows.
            complete: returns the rows that it is given with their results in further columns; called with
                those that are not kept, if there are any.
        """
        if self._folder is None:
            return await complete(block)
        keys = [self._key(row) for row in block.to_pylist()]
        open_places = [place for place, key in enumerate(keys) if key not in self._found]
        if not open_places:
            return self._merged(block, keys, iter(()))
        new = await complete(block if len(open_places) == len(keys) else block.take(open_places))
        await asyncio.to_thread(self._keep, self._folder, new, block.column_names, keys, open_places)
        if len(open_places) == len(keys):
            return new
        names = [name for name in new.column_names if name not in block.column_names]
        return self._merged(block, keys, _rows(new.select(names)))

    def _merged(self, block: pa.Table, keys: Sequence[bytes], new: Iterator[pa.Table]) -> pa.Table:
        """Return the rows of `block` with what is kept of each, or else with the next of `new`."""
        rows = [self._found[key] if key in self._found else next(new) for key in keys]
        results = pa.concat_tables(rows).combine_chunks()
        return with_columns(block, dict(zip(results.column_names, results.columns, strict=True)))

    def _key(self, row: Mapping[str, object]) -> bytes:
        return hashlib.sha256(f"{self._settings}\n{row!r}".encode()).digest()

    def _keep(
        self,
        folder: KeptFolder,
        new: pa.Table,
        given: Sequence[str],
        keys: Sequence[bytes],
        open_places: Sequence[int],
    ) -> None:
        """Write new results, and remove this worker's oldest ones. An error costs no row."""
        results = new.drop_columns([name for name in given if name != folder.id_column])
        keyed = results.append_column(_KEY, pa.array([keys[place] for place in open_places]))
        path = f"{folder.path}/{uuid4().hex}.parquet"
        try:
            folder.filesystem.create_dir(folder.path, recursive=True)
            pq.write_table(keyed, path, filesystem=folder.filesystem)
        except OSError as error:
            _LOG.warning("a finished block is not kept; a kill may have it computed again: %s", error)
            return
        self._own.append(path)
        if len(self._own) > MOST_FILES:
            folder.remove(self._own.popleft())


def _kept_results(folder: KeptFolder) -> dict[bytes, pa.Table]:
    """Return the results of each row that is kept, by its key. An error costs what is kept, and no worker."""
    try:
        tables = [table for table in folder.tables().values() if table is not None]
        keys = [key for table in tables for key in table[_KEY].to_pylist()]
        rows = [row for table in tables for row in _rows(table.drop_columns([_KEY, folder.id_column]))]
    except (OSError, KeyError) as error:
        _LOG.warning("what is kept in %s is not used: %s", folder.path, error)
        return {}
    return dict(zip(keys, rows, strict=True))


def _rows(table: pa.Table) -> Iterator[pa.Table]:
    """Yield each row of a table, as a table."""
    return (table.slice(place, 1) for place in range(table.num_rows))


def _files(filesystem: FileSystem, folder: str) -> list[str]:
    found = filesystem.get_file_info(FileSelector(folder, allow_not_found=True))
    return [each.path for each in found if each.type == FileType.File and each.path.endswith(".parquet")]
