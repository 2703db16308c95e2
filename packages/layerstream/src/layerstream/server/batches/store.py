"""Files and batches on disk: what this says is done survives a kill, and a power cut."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

from .batches import BatchTable
from .database import Database
from .ending import BatchEnding
from .files import FileTable
from .folder import StoreFolder
from .lines import LineTable
from .settings import BatchSettings


class BatchStore:
    """A folder of files and batches that belongs to this process. Its owner must close it.

    Safe to use from any thread. Every call may wait for the disk.

    Attributes:
        settings: the limits.
        files: the files.
        batches: the batches.
        lines: the lines of the batches that have not ended.
        ending: ends batches.
    """

    def __init__(
        self, folder: Path, settings: BatchSettings | None = None, *, clock: Callable[[], float] = time.time
    ) -> None:
        """Open the store in `folder`, or create it, and remove what a killed server has left half done.

        Args:
            folder: where everything is kept; nothing else should be in it.
            settings: the limits; None for OpenAI's.
            clock: returns seconds since 1970.

        Raises:
            BatchStoreError: another server uses the folder, it cannot be written, or has another version.
        """
        self.settings = settings or BatchSettings()
        self.clock = clock
        self._folder = StoreFolder(folder)
        try:
            self._database = Database(self._folder.database_path)
        except BaseException:
            self._folder.close()
            raise
        try:
            self.files = FileTable(self._database, self._folder, self.settings, clock)
        except BaseException:
            self.close()
            raise
        self.batches = BatchTable(self._database, self._folder, self.settings, clock)
        self.lines = LineTable(self._database, self._folder, clock)
        self.ending = BatchEnding(self._database, self._folder, self.lines, clock)

    def close(self) -> None:
        """Close the database and let another server have the folder. Safe to call twice."""
        self._database.close()
        self._folder.close()
