"""What every remote folder of a checkpoint offers, whichever protocol leads to it.

Room: bytes. It knows which files make a checkpoint, but not how they are moved.
"""

from __future__ import annotations

import fnmatch
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from ..errors import CheckpointNotFoundError, FetchError, UnsupportedFormatError
from .index import (
    CONFIG_NAME,
    GGUF_SUFFIX,
    PICKLED_SUFFIXES,
    Checkpoint,
    index_name,
    single_name,
    some,
)

SMALL_FILES = ("*.json", "*.model", "*.txt", "*.jinja", "*.py")
"""The files besides the weights that a model needs."""

READ_BYTES = 4 * 1024**2
"""What one step of a copy moves at most."""


class RemoteChangedError(FetchError):
    """A file changed after it was listed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RemoteFile:
    """A file as its server describes it.

    Attributes:
        name: its name in the folder.
        size: its bytes; None if the server does not say.
        tag: changes whenever the contents change: an ETag, a checksum or a time; empty if there is none.
    """

    name: str
    size: int | None
    tag: str


class RemoteFolder(Protocol):
    """A folder somewhere else.

    Attributes:
        url: where it is.
    """

    url: str

    def list_files(self, variant: str | None) -> dict[str, RemoteFile]:
        """Return the files by name; where nothing can be listed, those of a checkpoint's names.

        Raises:
            CheckpointNotFoundError: there is no such folder, it has no config, or access is refused.
            FetchError: the server or its driver fails.
        """
        ...

    def look(self, name: str) -> RemoteFile | None:
        """Return what the server says of a file now; None if it is not there."""
        ...

    def stream(self, file: RemoteFile, start: int, end: int | None = None) -> Iterator[bytes]:
        """Yield the bytes from `start` to `end`, or to the file's end, in pieces.

        Raises:
            FetchError: the server or its driver fails; a later call may go on from where this one stopped.
        """
        ...


def is_small_file(name: str) -> bool:
    """Return whether a file belongs to a model besides its weights."""
    return any(fnmatch.fnmatch(name, pattern) for pattern in SMALL_FILES)


def read_range(folder: RemoteFolder, file: RemoteFile, start: int, end: int) -> bytes:
    """Return the bytes from `start` to `end`, or fewer where the file ends before."""
    return b"".join(folder.stream(file, start, end))


def weights_of(
    url: str, files: Mapping[str, RemoteFile], weight_map: Mapping[str, str], variant: str | None
) -> list[RemoteFile]:
    """Return the files that hold the weights, as `open_checkpoint` would choose them.

    Args:
        url: the folder, for errors.
        files: what it has.
        weight_map: the index's map from tensors to files; empty without an index.
        variant: which weights, as in `model.<variant>.safetensors`.

    Raises:
        CheckpointNotFoundError: there are none, or files that the index names are missing.
        UnsupportedFormatError: they are in another format.
    """
    if single_name(variant) in files:
        return [files[single_name(variant)]]
    names = sorted(set(weight_map.values()))
    if not names and variant is None:
        names = [name for name in files if name.endswith(".safetensors") and "adapter_model" not in name]
    if not names:
        raise _no_weights(url, files, variant)
    outside = [name for name in names if "/" in name or "\\" in name or name.startswith(".")]
    missing = [name for name in names if name not in files]
    if outside or missing:
        raise CheckpointNotFoundError(
            f"the index of {url} names {some(outside or missing)}, which "
            f"{'leads out of the folder' if outside else 'is not there'}; put all files into one folder"
        )
    return [files[name] for name in names]


def _no_weights(
    url: str, files: Mapping[str, RemoteFile], variant: str | None
) -> CheckpointNotFoundError | UnsupportedFormatError:
    foreign = [name for name in files if name.endswith((GGUF_SUFFIX, *PICKLED_SUFFIXES))]
    if foreign:
        return UnsupportedFormatError(
            f"{url} has no safetensors files, but {some(foreign)}; copy them here and convert them once with "
            "`layerstream convert`"
        )
    return CheckpointNotFoundError(
        f"{url} has neither {single_name(variant)} nor {index_name(variant)}, but "
        f"{some(sorted(files)) or 'nothing'}; give the folder that holds {CONFIG_NAME} and the weights"
    )


def outside_blocks_first(files: Sequence[RemoteFile], checkpoint: Checkpoint) -> list[RemoteFile]:
    """Return `files` with those first that a model needs before its first block runs.

    Embeddings, norms and the head are in the first and the last file; their names hold no block's number.
    """
    outside = {
        Path(tensor.path).name
        for tensor in checkpoint.tensors.values()
        if not any(part.isdigit() for part in tensor.name.split("."))
    }
    return sorted(files, key=lambda file: (file.name not in outside, file.name))
