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
from collections.abc import Awaitable, Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from uuid import uuid4

import pyarrow as pa
import pyarrow.dataset
import pyarrow.parquet as pq
from pyarrow.fs import FileSelector, FileSystem, FileType

from .rows import check_columns, with_columns

_MOST_FILES = 32
"""How many blocks a worker keeps. It removes older ones, written or not."""

_MOST_READS = 16
_KEY = "layerstream_key"
_PENDING = ".pending.parquet"
"""How Ray ends the name of a record while its block is being written."""

_LOG = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class KeptFolder:
    """Where the workers of a job keep finished rows, with a folder for each kind of work.

    Attributes:
        filesystem: what holds the folder.
        path: the folder, as the filesystem names it.
        id_column: the column that tells rows apart.
    """

    filesystem: FileSystem
    path: str
    id_column: str

    def paths(self, kind: str = "") -> list[str]:
        """Return the paths of all kept blocks, or of those of one kind of work.

        Raises:
            OSError: the folder cannot be read.
        """
        return _files(self.filesystem, f"{self.path}/{kind}".rstrip("/"))

    def read(self, path: str, columns: Sequence[str] | None = None) -> pa.Table | None:
        """Return a kept block, or some of its columns; None if it cannot be read.

        A killed worker may have written half of it, and another one may have removed it.
        """
        try:
            return pq.read_table(path, columns=columns, filesystem=self.filesystem)
        except (OSError, pa.ArrowException) as error:
            _LOG.info("%s is not used: %s", path, error)
            return None

    def forget_written(self, record: str) -> None:
        """Remove the blocks whose rows are all written.

        Args:
            record: the folder with Ray's record of written rows, on the same filesystem.

        Raises:
            OSError, pyarrow.ArrowException: a folder or the record cannot be read.
        """
        ids = {}
        for path, table in _in_parallel(partial(self.read, columns=[self.id_column]), self.paths()):
            if table is not None:
                ids[path] = set(table[self.id_column].to_pylist())
        written = self._written(record, set().union(*ids.values()))
        for path, each in ids.items():
            if each <= written:
                self.remove(path)

    def _written(self, record: str, ids: set[object]) -> set[object]:
        """Return those of `ids` that are written."""
        written: set[object] = set()
        if not ids:
            return written
        paths = [path for path in _files(self.filesystem, record) if not path.endswith(_PENDING)]
        if paths:
            rows = pyarrow.dataset.dataset(paths, filesystem=self.filesystem, format="parquet")
            for batch in rows.to_batches(columns=[self.id_column]):
                written |= ids.intersection(batch[self.id_column].to_pylist())
        return written

    def write(self, block: pa.Table, kind: str) -> str:
        """Keep a block, and return its path.

        Raises:
            OSError, pyarrow.ArrowException: it cannot be written.
        """
        folder = f"{self.path}/{kind}"
        self.filesystem.create_dir(folder, recursive=True)
        path = f"{folder}/{uuid4().hex}.parquet"
        pq.write_table(block, path, filesystem=self.filesystem)
        return path

    def remove(self, path: str) -> None:
        """Remove a kept block, if it is still there."""
        try:
            self.filesystem.delete_file(path)
        except OSError as error:
            _LOG.info("%s is not removed: %s", path, error)


class KeptRows:
    """A worker's finished rows, and those that others had finished before it started."""

    def __init__(self, folder: KeptFolder | None, settings: object, inputs: Sequence[str]) -> None:
        """Read what is kept.

        Args:
            folder: where it is; None keeps nothing.
            settings: all that decides the results of a row, apart from the row: what was kept with others is
                not used. Told apart by their `repr`.
            inputs: the columns that results depend on.
        """
        self._folder = folder
        self._kind = hashlib.sha256(repr(settings).encode()).hexdigest()[:16]
        self._inputs = tuple(inputs)
        self._own: deque[str] = deque()
        self._found = {} if folder is None else _kept_results(folder, self._kind)

    async def completed(
        self, block: pa.Table, complete: Callable[[pa.Table], Awaitable[pa.Table]]
    ) -> pa.Table:
        """Return the rows of `block` with their results, and keep them.

        Args:
            block: rows.
            complete: returns the rows that it is given with their results in further columns; called with
                those that are not kept, if there are any.

        Raises:
            PlanError: the rows have no column that tells them apart.
        """
        if self._folder is None:
            return await complete(block)
        keys = self._keys(block, self._folder.id_column)
        open_places = [place for place, key in enumerate(keys) if key not in self._found]
        if not open_places:
            return self._merged(block, keys, iter(()))
        new = await complete(block if len(open_places) == len(keys) else block.take(open_places))
        names = [name for name in new.column_names if name not in block.column_names]
        kept = new.select([self._folder.id_column, *names]).append_column(
            _KEY, pa.array([keys[place] for place in open_places])
        )
        await asyncio.to_thread(self._keep, self._folder, kept)
        if len(open_places) == len(keys):
            return new
        return self._merged(block, keys, _rows(new.select(names)))

    def _keys(self, block: pa.Table, id_column: str) -> list[bytes]:
        check_columns(block.column_names, needed=[id_column], added=())
        rows = block.select([id_column, *(name for name in self._inputs if name != id_column)])
        return [hashlib.sha256(repr(row).encode()).digest() for row in rows.to_pylist()]

    def _merged(self, block: pa.Table, keys: Sequence[bytes], new: Iterator[pa.Table]) -> pa.Table:
        """Return the rows of `block` with what is kept of each, or else with the next of `new`."""
        rows = [self._found[key] if key in self._found else next(new) for key in keys]
        results = pa.concat_tables(rows).combine_chunks()
        return with_columns(block, dict(zip(results.column_names, results.columns, strict=True)))

    def _keep(self, folder: KeptFolder, results: pa.Table) -> None:
        """Write new results, and remove this worker's oldest ones. An error costs no row."""
        try:
            self._own.append(folder.write(results, self._kind))
        except (OSError, pa.ArrowException) as error:
            _LOG.warning("a finished block is not kept; a kill may have it computed again: %s", error)
        if len(self._own) > _MOST_FILES:
            folder.remove(self._own.popleft())


def _kept_results(folder: KeptFolder, kind: str) -> dict[bytes, pa.Table]:
    """Return the results of each row that is kept, by its key. An error costs what is kept, and no worker."""
    results: dict[bytes, pa.Table] = {}
    try:
        for _, table in _in_parallel(folder.read, folder.paths(kind)):
            if table is not None and {_KEY, folder.id_column} <= set(table.column_names):
                rows = _rows(table.drop_columns([_KEY, folder.id_column]))
                results.update(zip(table[_KEY].to_pylist(), rows, strict=True))
    except (OSError, pa.ArrowException) as error:
        _LOG.warning("what is kept in %s is not used: %s", folder.path, error)
    return results


def _in_parallel(
    read: Callable[[str], pa.Table | None], paths: Sequence[str]
) -> Iterator[tuple[str, pa.Table | None]]:
    """Yield each path with its table; files are small, and may be far away."""
    with ThreadPoolExecutor(_MOST_READS) as pool:
        yield from zip(paths, pool.map(read, paths), strict=True)


def _rows(table: pa.Table) -> Iterator[pa.Table]:
    """Yield each row of a table, as a table."""
    return (table.slice(place, 1) for place in range(table.num_rows))


def _files(filesystem: FileSystem, folder: str) -> list[str]:
    found = filesystem.get_file_info(FileSelector(folder, allow_not_found=True, recursive=True))
    return [each.path for each in found if each.type == FileType.File and each.path.endswith(".parquet")]
