"""Where the rows of a job are: in a file, or in a data set. Finds out which, and has them read.

A name means a data set if it is a folder, begins with `hf://datasets/`, or looks like an id of the Hub while
no such file exists. What reads data sets and parquet files is imported only for them.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from urllib.parse import unquote

from ..errors import JobError
from . import parts
from .jobs import JobRow, read_rows
from .row_columns import KEYS_THEMSELVES, Columns

_HUB = "hf://datasets/"
_HUB_ID = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*(@\S+)?")
_HUB_PATH = re.compile(r"[\w-][\w.-]*(/[\w-][\w.-]*)?(@[^\s/]+)?/?")
_FILE_SUFFIXES = (".jsonl", ".ndjson", ".json", ".parquet", ".csv", ".tsv", ".txt", ".arrow", ".gz", ".zst")


@dataclass(frozen=True, slots=True, kw_only=True)
class RowSource:
    """Where rows are, as the user names it.

    Attributes:
        text: a file, a folder or a data set of the Hub.
        config: the configuration of the data set; None takes its only one, or its default.
        split: the split of the data set, or a part of it; None takes its only one.
        columns: the columns that make a row.
    """

    text: str
    config: str | None = None
    split: str | None = None
    columns: Columns = KEYS_THEMSELVES

    @property
    def path(self) -> Path:
        """The file or folder."""
        return Path(self.text)

    @property
    def is_folder(self) -> bool:
        """Whether it is a folder here."""
        return self.path.is_dir()

    @property
    def is_dataset(self) -> bool:
        """Whether it is a data set: here, or on the Hub."""
        if self.text.startswith(_HUB) or self.is_folder:
            return True
        is_id = _HUB_ID.fullmatch(self.text) is not None and not self.text.lower().endswith(_FILE_SUFFIXES)
        return is_id and not self.path.exists()

    def hub_place(self) -> tuple[str, str | None]:
        """Return the id of the data set on the Hub, and the revision, if one is named.

        Raises:
            JobError: a URL names no data set.
        """
        name = self.text.removeprefix(_HUB)
        if not _HUB_PATH.fullmatch(name):
            raise JobError(
                f"{self.text!r} names no data set of the Hub; write owner/name, owner/name@revision or "
                f"{_HUB}owner/name, with %2F for each / in the revision"
            )
        name, _, revision = name.rstrip("/").partition("@")
        return name, unquote(revision) or None


def read_source(source: RowSource, *, command: str, local_files_only: bool, shown: bool) -> list[JobRow]:
    """Return the rows.

    Args:
        source: where they are.
        command: `batch` or `score`.
        local_files_only: download nothing.
        shown: say on stderr what is read of a data set.

    Raises:
        JobError: they cannot be read, or it is not clear which ones are meant.
    """
    if source.is_dataset:
        if find_spec("datasets") is None:
            found = "is a folder" if source.is_folder else "is no file here"
            raise JobError(
                f"{source.text} {found}; to read it as a data set, install the package datasets: "
                "pip install 'layerstream[datasets]'"
            )
        return parts.read_dataset_rows(
            source, command=command, local_files_only=local_files_only, shown=shown
        )
    if source.config is not None or source.split is not None:
        raise JobError(f"--config and --split are for a data set, and {source.text} names a file")
    rows = (parts.read_parquet_rows if is_parquet(source.path) else read_rows)(source.path, source.columns)
    if source.columns and rows and all(row.error is not None for row in rows):
        raise JobError(f"no row of {source.text} can be read, the first one because {rows[0].error}")
    return rows


def is_parquet(path: Path) -> bool:
    """Return whether `path` means a parquet file.

    Raises:
        JobError: it does, and what reads and writes such files is not installed.
    """
    if path.suffix != ".parquet":
        return False
    if find_spec("pyarrow") is None:
        raise JobError(f"{path} needs the package pyarrow, which is not installed: pip install pyarrow")
    return True
