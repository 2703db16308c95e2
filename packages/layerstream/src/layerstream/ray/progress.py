"""The folder with a job's progress: which rows are written, and finished rows that are not written yet."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

import pyarrow as pa
from ray.data.checkpoint import CheckpointConfig
from ray.data.checkpoint.interfaces import InvalidCheckpointingConfig

from ..errors import PlanError
from .kept_rows import KeptFolder


@dataclass(frozen=True, slots=True, kw_only=True)
class JobProgress:
    """Where a job's progress is.

    Attributes:
        folder: the folder, as the caller named it.
        checkpoint: what tells Ray to record which rows are written, and to skip them next time.
        kept: where workers keep finished rows.
    """

    folder: str | Path
    checkpoint: CheckpointConfig
    kept: KeptFolder

    @classmethod
    def of(cls, folder: str | Path | None, id_column: str | None) -> JobProgress | None:
        """Return the progress in a folder, as every node knows it; None without one.

        Args:
            folder: a path, which becomes absolute, or an address such as `s3://…`.
            id_column: the column that tells rows apart.

        Raises:
            PlanError: one of the two is missing, or Ray cannot use one.
        """
        if (id_column is None) != (folder is None):
            raise PlanError("to go on after a kill, give both id_column and progress_dir, or neither")
        if folder is None or id_column is None:
            return None
        address = str(folder) if "://" in str(folder) else str(Path(folder).expanduser().absolute())
        try:
            checkpoint = CheckpointConfig(
                id_column=id_column,
                checkpoint_path=_below(address, "written"),
                delete_checkpoint_on_success=False,
            )
        except InvalidCheckpointingConfig as error:
            raise PlanError(
                f"progress_dir={folder} with id_column={id_column!r} cannot be used: give a folder that "
                "every node can write to, or an address such as s3://bucket/folder, and the name of a column"
            ) from error
        kept = KeptFolder(
            filesystem=checkpoint.filesystem, path=_within(_below(address, "kept")), id_column=id_column
        )
        return cls(folder=folder, checkpoint=checkpoint, kept=kept)

    def forget_written(self) -> None:
        """Remove what workers keep of rows that are written.

        Raises:
            PlanError: the folder cannot be read.
        """
        try:
            self.kept.forget_written(_within(self.checkpoint.checkpoint_path))
        except (OSError, pa.ArrowException) as error:
            raise PlanError(f"progress_dir={self.folder} cannot be read: {error}") from error


def _below(address: str, name: str) -> str:
    """Return the address of a folder within the one at `address`."""
    start, mark, settings = address.partition("?") if "://" in address else (address, "", "")
    return f"{start.rstrip('/')}/{name}{mark}{settings}"


def _within(address: str) -> str:
    """Return an address as its filesystem names it: without protocol, credentials and settings."""
    if "://" not in address:
        return address
    parts = urlsplit(address, allow_fragments=False)
    return parts.netloc.rpartition("@")[2] + parts.path
