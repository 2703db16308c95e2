"""Find out which tensors a checkpoint directory holds, and where.

Room: bytes. It knows single-file and sharded layouts, their index, and the Hub cache's links, and reads them
as hostile input. It knows no model: whether the tensors suffice is decided elsewhere.
"""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import (
    CheckpointError,
    CheckpointNotFoundError,
    ShardCorruptError,
    TensorMissingError,
    UnsupportedFormatError,
)
from ..spec.profiles import StoredTensor
from .header import header_entries, load_header, read_header

CONFIG_NAME = "config.json"
SINGLE_NAME = "model.safetensors"
INDEX_NAME = "model.safetensors.index.json"
CONVERSION_NOTE = "layerstream-conversion.json"
"""Is in a folder while `layerstream convert` writes a checkpoint to it."""

PICKLED_SUFFIXES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")
GGUF_SUFFIX = ".gguf"
_FOREIGN = (".h5", ".msgpack", ".onnx")
# Files next to a model's weights that do not hold its weights, regardless of their suffix.
_NOT_WEIGHTS = re.compile(r"(adapter_model|optimizer|rng_state|scheduler|training_args)\b.*")


@dataclass(frozen=True, slots=True, kw_only=True)
class Checkpoint:
    """The table of contents of a checkpoint.

    Attributes:
        name: the name the user gave: a path or a Hub id.
        directory: where the config and the shards are.
        tensors: where each stored tensor is, by its name in the files.
        shards: the files' names, relative to `directory`.
        metadata: the index's metadata, or the single file's.
    """

    name: str
    directory: Path
    tensors: Mapping[str, StoredTensor]
    shards: tuple[str, ...]
    metadata: Mapping[str, Any]


def single_name(variant: str | None = None) -> str:
    """Return the name of a single file of weights, such as `model.fp16.safetensors`."""
    return SINGLE_NAME if variant is None else f"model.{variant}.safetensors"


def index_name(variant: str | None = None) -> str:
    """Return the name of an index, such as `model.safetensors.index.fp16.json`."""
    return INDEX_NAME if variant is None else f"model.safetensors.index.{variant}.json"


def open_checkpoint(directory: Path, name: str | None = None, *, variant: str | None = None) -> Checkpoint:
    """Return the table of contents of a checkpoint directory; headers are read, weights are not.

    `model.safetensors` takes precedence over an index, as in transformers; without a variant, a safetensors
    file of another name is used when it is the only one.

    Args:
        directory: a directory with a `config.json` and safetensors files.
        name: the checkpoint's name; the directory's path by default.
        variant: which weights, as in `model.<variant>.safetensors`.

    Raises:
        CheckpointNotFoundError: the directory, its config or its weights are missing.
        UnsupportedFormatError: the weights are pickled, GGUF or otherwise not safetensors.
        ShardCorruptError: a shard or the index is damaged; with `path`.
        TensorMissingError: the index names a missing file, or a tensor that its file does not hold; with
            `names`.
        CheckpointError: files are outside the directory, hold a tensor twice, or are ambiguous.
    """
    name = str(directory) if name is None else name
    if not directory.is_dir():
        raise CheckpointNotFoundError(
            f"{directory} is not a directory; give a checkpoint's directory or a Hub id"
        )
    if (directory / CONVERSION_NOTE).is_file():
        raise CheckpointNotFoundError(
            f"{directory} is an unfinished conversion; run the same `layerstream convert` again, and it "
            "goes on"
        )
    is_single = (directory / single_name(variant)).is_file() or not (
        directory / index_name(variant)
    ).is_file()
    # weights in another format are reported first: their config may be missing too, but would not help
    shard = _single_shard(directory, name, variant) if is_single else None
    if not (directory / CONFIG_NAME).is_file():
        if any(file.endswith(GGUF_SUFFIX) for file in weight_files(directory)):
            # Such a file needs no config next to it.
            _only_safetensors_name(directory, name)
        raise CheckpointNotFoundError(
            f"{directory} is not a checkpoint: it has no {CONFIG_NAME}; put the config next to the weights"
        )
    return _open_sharded(directory, name, variant) if shard is None else _open_single(directory, name, shard)


def read_index(path: Path) -> tuple[dict[str, str], dict[str, Any]]:
    """Return the weight map (tensor name to file name) and the metadata of an index file.

    Raises:
        ShardCorruptError: the file is not such an index; with `path`.
    """
    try:
        index = json.loads(path.read_bytes())
        weight_map, metadata = index["weight_map"], index.get("metadata") or {}
        sound = (
            isinstance(weight_map, dict)
            and isinstance(metadata, dict)
            and all(isinstance(v, str) for v in weight_map.values())
        )
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ShardCorruptError(
            f"{path} is not a safetensors index ({error!r}); download it again", path=str(path)
        ) from error
    if not sound or not weight_map:
        raise ShardCorruptError(
            f"{path} has no weight map of tensor names to file names; download it again", path=str(path)
        )
    return weight_map, metadata


def collect_tensors(
    shards: Mapping[str, Iterable[StoredTensor]], weight_map: Mapping[str, str]
) -> dict[str, StoredTensor]:
    """Return the tensors of all shards by name, checked against the index.

    Args:
        shards: each file's tensors, by the file's name.
        weight_map: the file name of each tensor, from the index; empty where there is no index.

    Raises:
        CheckpointError: two files hold a tensor of the same name.
        TensorMissingError: a file does not hold a tensor that the index says it holds; with `names`.
    """
    shard_of: dict[str, str] = {}
    tensors: dict[str, StoredTensor] = {}
    for shard, entries in shards.items():
        for tensor in entries:
            if tensor.name in shard_of:
                raise CheckpointError(
                    f"tensor {tensor.name!r} is in {shard_of[tensor.name]} and in {shard}; remove one of them"
                )
            shard_of[tensor.name] = shard
            tensors[tensor.name] = tensor
    missing = tuple(name for name, shard in weight_map.items() if shard_of.get(name) != shard)
    if missing:
        raise TensorMissingError(
            f"the index says that {weight_map[missing[0]]} holds {some(missing)}, but it does not; "
            "download that file and the index again, from one revision",
            names=missing,
        )
    return tensors


def _single_shard(directory: Path, name: str, variant: str | None) -> str:
    """Return the name of the one file that holds the weights."""
    shard = single_name(variant)
    if (directory / shard).is_file():
        return shard
    if variant is not None:
        raise _no_variant(directory, variant)
    return _only_safetensors_name(directory, name)


def _open_single(directory: Path, name: str, shard: str) -> Checkpoint:
    path = file_inside(directory, shard)
    header, data_start = load_header(path)
    tensors = collect_tensors({shard: header_entries(header, data_start, str(path))}, {})
    metadata = header.get("__metadata__") or {}
    return Checkpoint(name=name, directory=directory, tensors=tensors, shards=(shard,), metadata=metadata)


def _no_variant(directory: Path, variant: str) -> CheckpointNotFoundError:
    found = sorted(path.name for path in directory.iterdir() if path.name.endswith(".safetensors"))
    return CheckpointNotFoundError(
        f"{directory} has neither {single_name(variant)} nor {index_name(variant)}, but "
        f"{some(found) or 'no safetensors files'}; leave out variant={variant!r}, or give one that is there"
    )


def _open_sharded(directory: Path, name: str, variant: str | None) -> Checkpoint:
    index = directory / index_name(variant)
    weight_map, metadata = read_index(index)
    shards: dict[str, tuple[StoredTensor, ...]] = {}
    for shard in sorted(set(weight_map.values())):
        path = file_inside(directory, shard)
        if not path.is_file():
            names = tuple(tensor for tensor, file in weight_map.items() if file == shard)
            raise TensorMissingError(
                f"{index} names {shard}, which is missing; it should hold {some(names)}; download it again",
                names=names,
            )
        shards[shard] = read_header(path)
    tensors = collect_tensors(shards, weight_map)
    return Checkpoint(
        name=name, directory=directory, tensors=tensors, shards=tuple(shards), metadata=metadata
    )


def file_inside(directory: Path, shard: str) -> Path:
    """Return the path of a checkpoint's file, unresolved.

    Raises:
        CheckpointError: it leads out of the directory, or in the Hub's cache, out of the repository.
    """
    path = directory / shard
    home = directory.resolve()
    repository = home.parent.parent
    # In the Hub's cache every file is a link to ../../blobs, but its name must still stay within the
    # snapshot.
    is_snapshot = home.parent.name == "snapshots" and repository.name.startswith("models--")
    allowed = repository if is_snapshot else home
    try:
        real = path.resolve()
        named_inside = (home / shard).parent.resolve().is_relative_to(home)
    except (OSError, RuntimeError, ValueError) as error:
        raise CheckpointError(f"{path!s} cannot be resolved: {error}; copy the file itself there") from error
    if (
        ".." in Path(shard).parts
        or Path(shard).is_absolute()
        or not named_inside
        or not real.is_relative_to(allowed)
    ):
        raise CheckpointError(
            f"{shard!r} in {directory} leads out of it, to {real}; a checkpoint must contain all its files: "
            "copy the file there"
        )
    return path


def _only_safetensors_name(directory: Path, name: str) -> str:
    """Return the name of the only safetensors file.

    Raises:
        CheckpointError: there are several.
        UnsupportedFormatError: there is none, but there are weights in another format.
        CheckpointNotFoundError: there are no weights.
    """
    files = weight_files(directory)
    found = [file for file in files if file.endswith(".safetensors")]
    if len(found) == 1:
        return found[0]
    if found:
        raise CheckpointError(
            f"{directory} has {len(found)} safetensors files ({some(found)}) and no {INDEX_NAME} that says "
            "how they belong together; add the index, or keep only one file"
        )
    how = f"convert it once, in little memory: {convert_command(name)}"
    for suffixes, kind, advice in (
        (PICKLED_SUFFIXES, "pickled weights", how),
        ((GGUF_SUFFIX,), "GGUF weights", how),
        (_FOREIGN, "weights of another framework", "use a safetensors checkpoint of this model"),
    ):
        other = [file for file in files if file.endswith(suffixes)]
        if other:
            raise UnsupportedFormatError(
                f"{directory} has only {kind} ({some(other)}), but layerstream streams safetensors; {advice}"
            )
    found = sorted(path.name for path in directory.iterdir())
    raise CheckpointNotFoundError(
        f"{directory} has no weights: neither {SINGLE_NAME} nor {INDEX_NAME}, but "
        f"{some(found) or 'nothing, it is empty'}; give a directory with a whole checkpoint, or a Hub id"
    )


def weight_files(directory: Path) -> list[str]:
    """Return the names in `directory`, without those of files that hold an adapter or a trainer's state."""
    return sorted(path.name for path in directory.iterdir() if not _NOT_WEIGHTS.fullmatch(path.name))


def convert_command(name: str) -> str:
    """Return the command that makes a safetensors checkpoint of other weights."""
    return f"layerstream convert {shlex.quote(name)} TARGET"


def some(names: Iterable[str], most: int = 3) -> str:
    """Return the first of `names` as text, and how many more there are."""
    listed = list(names)
    rest = f" and {len(listed) - most} more" if len(listed) > most else ""
    return ", ".join(listed[:most]) + rest
