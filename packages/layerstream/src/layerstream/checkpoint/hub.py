"""Turn a model's name into a directory: local paths as they are, Hub ids through huggingface_hub's cache.

Room: bytes. It knows huggingface_hub, its errors, and which files of a repository are needed, but not what is
in them. It writes nothing outside the Hub's own cache.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import huggingface_hub
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
    NotASafetensorsRepoError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
    SafetensorsParsingError,
)

from ..errors import CheckpointNotFoundError, ShardCorruptError, UnsupportedFormatError
from .header import header_entries
from .index import INDEX_NAME, SINGLE_NAME, Checkpoint, collect_tensors, read_index

ADAPTER_CONFIG = "adapter_config.json"
_ADAPTER_WEIGHTS = ("adapter_model.safetensors", "adapter_model.bin")
_SMALL_FILES = ["*.json", "*.model", "*.txt", "*.jinja", "*.py"]

# The HTTP library differs between versions of huggingface_hub; its errors' common base is the first base of
# this one.
_HttpError: type[Exception] = HfHubHTTPError.__bases__[0]


def resolve_model(
    name: str, *, revision: str | None = None, weights: bool, offline: bool | None = None
) -> Path:
    """Return the directory of a model, downloading from the Hub what is not yet in its cache.

    Args:
        name: a local directory, returned as it is, or a Hub id.
        revision: a branch, tag or commit of a Hub repository.
        weights: fetch the safetensors files too, not only config, tokenizer and other small files.
        offline: use only the cache; by default, `HF_HUB_OFFLINE` decides.

    Raises:
        CheckpointNotFoundError: there is no such directory or repository, access is refused, or the Hub
            cannot be reached.
        UnsupportedFormatError: weights are requested and the repository has none as safetensors.
        ShardCorruptError: the repository's index is damaged; with `path`.
    """
    local = Path(name).expanduser()
    if local.is_dir():
        return local
    if local.exists():
        raise CheckpointNotFoundError(
            f"{name} is a file; give the directory that contains it and its config.json"
        )
    if _looks_like_a_path(name):
        raise CheckpointNotFoundError(
            f"there is no directory {name}; give one that exists, or a Hub id like 'organisation/model'"
        )
    directory = _fetch(name, revision, offline, _SMALL_FILES)
    if weights:
        _fetch_weights(name, revision, offline, directory)
    return directory


def remote_checkpoint(name: str, revision: str | None = None) -> Checkpoint:
    """Return the table of contents of a Hub repository from its files' headers; no weight is downloaded.

    The tensors' offsets count from the start of each file's data and their paths are URLs, so they serve for
    sizes and shapes and not for reading.

    Args:
        name: a Hub id.
        revision: a branch, tag or commit.

    Raises:
        CheckpointNotFoundError: there is no such repository, access is refused, or the Hub cannot be reached.
        UnsupportedFormatError: the repository has no safetensors files.
        ShardCorruptError: a header cannot be read.
        TensorMissingError: the index names tensors that the files do not hold; with `names`.
    """
    directory = resolve_model(name, revision=revision, weights=False)
    with _hub_errors_translated(name, revision):
        remote = huggingface_hub.get_safetensors_metadata(name, revision=revision)
    shards = {}
    for shard, file in sorted(remote.files_metadata.items()):
        header = {
            tensor: {"dtype": entry.dtype, "shape": entry.shape, "data_offsets": entry.data_offsets}
            for tensor, entry in file.tensors.items()
        }
        shards[shard] = header_entries(
            header, 0, f"https://huggingface.co/{name}/resolve/{revision or 'main'}/{shard}"
        )
    tensors = collect_tensors(shards, remote.weight_map)
    return Checkpoint(
        name=name, directory=directory, tensors=tensors, shards=tuple(shards), metadata=remote.metadata or {}
    )


def resolve_adapter(name: str, *, weights: bool) -> Path:
    """Return the directory of an adapter, downloading from the Hub what is not yet in its cache.

    Args:
        name: a local directory, returned as it is, or a Hub id.
        weights: fetch the adapter's weights too, not only its config.

    Raises:
        CheckpointNotFoundError: there is no such directory or repository, access is refused, or the Hub
            cannot be reached.
    """
    path = Path(name).expanduser()
    if path.is_dir():
        return path
    if path.exists() or _looks_like_a_path(name):
        raise CheckpointNotFoundError(
            f"there is no directory {name} with an adapter; give one that peft's save_pretrained() wrote, or "
            "a Hub id like 'organisation/adapter'"
        )
    return _fetch(name, None, None, [ADAPTER_CONFIG, *(_ADAPTER_WEIGHTS if weights else ())])


def _looks_like_a_path(name: str) -> bool:
    # A Hub id has at most one slash, and none at its ends.
    return (
        Path(name).is_absolute()
        or name.startswith((".", "~"))
        or name.endswith("/")
        or name.count("/") > 1
        or "\\" in name
    )


def _fetch(name: str, revision: str | None, offline: bool | None, patterns: list[str]) -> Path:
    with _hub_errors_translated(name, revision):
        # Subdirectories hold copies of the weights, also in other formats; transformers does not look there.
        return Path(
            huggingface_hub.snapshot_download(
                name,
                revision=revision,
                local_files_only=bool(offline),
                allow_patterns=patterns,
                ignore_patterns=["*/*"],
            )
        )


def _fetch_weights(name: str, revision: str | None, offline: bool | None, directory: Path) -> None:
    """Download the files that belong together; repositories also hold the same weights under other names."""
    index = directory / INDEX_NAME
    _fetch(
        name,
        revision,
        offline,
        sorted(set(read_index(index)[0].values())) if index.is_file() else [SINGLE_NAME],
    )
    if not any(directory.glob("*.safetensors")):
        _fetch(name, revision, offline, ["*.safetensors"])
    if any(directory.glob("*.safetensors")):
        return
    if offline or huggingface_hub.constants.HF_HUB_OFFLINE:
        raise CheckpointNotFoundError(
            f"the weights of {name!r} are not in the local cache, and offline mode forbids a download; unset "
            "HF_HUB_OFFLINE once, or give a local directory"
        )
    raise UnsupportedFormatError(
        f"the Hub's {name} has no safetensors files, and layerstream reads no other format; "
        "convert it with https://huggingface.co/spaces/safetensors/convert, then give that revision"
    )


@contextmanager
def _hub_errors_translated(name: str, revision: str | None) -> Iterator[None]:
    where = f"{name!r}" if revision is None else f"{name!r} at revision {revision!r}"
    try:
        yield
    except HFValidationError as error:
        raise CheckpointNotFoundError(f"{name!r} is neither a directory nor a Hub id: {error}") from error
    except GatedRepoError as error:
        raise CheckpointNotFoundError(
            f"access to the Hub's {where} is restricted; request it on the model's page and sign in with "
            "`hf auth login`"
        ) from error
    except (RepositoryNotFoundError, RevisionNotFoundError) as error:
        raise CheckpointNotFoundError(
            f"there is no directory {name!r} here and the Hub has no {where}; check the spelling, and for a "
            "private model sign in with `hf auth login`"
        ) from error
    except NotASafetensorsRepoError as error:
        raise UnsupportedFormatError(
            f"the Hub's {where} has no safetensors files, and layerstream reads no other format"
        ) from error
    except SafetensorsParsingError as error:
        raise ShardCorruptError(
            f"a file header of the Hub's {where} cannot be read: {error}", path=name
        ) from error
    except LocalEntryNotFoundError as error:
        raise CheckpointNotFoundError(
            f"{where} is not completely in the local cache, and the Hub cannot be reached or offline mode "
            "forbids a download; connect once, unset HF_HUB_OFFLINE, or give a local directory"
        ) from error
    except (_HttpError, OSError) as error:
        raise CheckpointNotFoundError(
            f"there is no directory {name!r} here and the request to the Hub for {where} failed: {error}; "
            "check the network, or give a local directory"
        ) from error
