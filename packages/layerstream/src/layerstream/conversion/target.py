"""The folder that a conversion writes: what is in it, whether it may be used, and what is still to do.

While a conversion is not complete, the folder has a note of what is being converted and no `config.json`, so
nothing takes it for a checkpoint.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from ..checkpoint.index import CONFIG_NAME, CONVERSION_NOTE
from ..checkpoint.new_shards import NewShard, write_whole
from ..errors import ConversionError
from ..spec.sizes import MIB, format_bytes

# For the tokenizer, the config and the index.
_SMALL_FILES_BYTES = 64 * MIB


def open_target(target: Path, job: Mapping[str, Any]) -> None:
    """Make the folder, or check that it holds an unfinished conversion of the same source.

    Args:
        target: the folder.
        job: what is being converted, and how; as JSON.

    Raises:
        ConversionError: the folder holds something else, or cannot be written.
    """
    note = target / CONVERSION_NOTE
    try:
        target.mkdir(parents=True, exist_ok=True)
        if not any(target.iterdir()):
            write_whole(note, [json.dumps(job, indent=2).encode()])
            return
        found = json.loads(note.read_bytes()) if note.is_file() else None
    except ValueError:
        found = {}
    except OSError as error:
        raise ConversionError(f"{target} cannot be written: {error.strerror or error}") from error
    if found is None:
        raise ConversionError(f"{target} is not empty; give a folder that does not exist yet")
    if found != json.loads(json.dumps(job)):
        raise ConversionError(
            f"{target} holds an unfinished conversion of {found.get('source', 'something else')}, from other "
            "files or with other options; remove it, or give another folder"
        )
    for partial in target.glob(".*.partial"):
        with suppress(OSError):
            partial.unlink()


def finished_files(target: Path, shards: Sequence[NewShard]) -> set[str]:
    """Return the names of the files of weights that an earlier attempt has completed."""
    return {
        shard.file
        for shard in shards
        if (target / shard.file).is_file() and (target / shard.file).stat().st_size == shard.num_bytes
    }


def check_space(target: Path, needed_bytes: int) -> None:
    """Check that the disk has room for what is still to be written.

    Raises:
        ConversionError: it has not; with `needed_bytes`.
    """
    needed_bytes += _SMALL_FILES_BYTES
    free_bytes = shutil.disk_usage(target).free
    if free_bytes < needed_bytes:
        raise ConversionError(
            f"{target} needs {format_bytes(needed_bytes)} more on its disk, which has "
            f"{format_bytes(free_bytes)} free; make room, or give a folder on another disk",
            needed_bytes=needed_bytes,
        )


def complete(target: Path, files: Mapping[str, bytes]) -> None:
    """Write the last small files, `config.json` at the very end, and remove the note."""
    for name in sorted(files, key=lambda name: name == CONFIG_NAME):
        write_whole(target / name, [files[name]])
    (target / CONVERSION_NOTE).unlink(missing_ok=True)
