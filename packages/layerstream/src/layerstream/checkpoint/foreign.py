"""Find weights that are not safetensors: which files of a folder hold them.

Room: bytes. It knows the names that such files have, and an index of pickled files. It opens no file of
weights.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from ..errors import CheckpointError, CheckpointNotFoundError, TensorMissingError, UnsupportedFormatError
from .index import (
    GGUF_SUFFIX,
    INDEX_NAME,
    PICKLED_SUFFIXES,
    SINGLE_NAME,
    convert_command,
    file_inside,
    read_index,
    some,
    weight_files,
)

PICKLED_SINGLE = "pytorch_model.bin"
PICKLED_INDEX = "pytorch_model.bin.index.json"

_PART = re.compile(r"(?P<stem>.+)-(?P<number>\d{5})-of-(?P<count>\d{5})(?P<suffix>\.\w+)")


@dataclass(frozen=True, slots=True, kw_only=True)
class ForeignWeights:
    """A model's weights in another format than safetensors.

    Attributes:
        directory: where they are.
        files: their names, in order.
        is_gguf: they are GGUF; otherwise pickled.
        weight_map: the file of each tensor, where an index says it; else empty.
    """

    directory: Path
    files: tuple[str, ...]
    is_gguf: bool
    weight_map: Mapping[str, str]


def find_foreign(place: Path, gguf_file: str | None = None) -> ForeignWeights:
    """Return the weights in a folder, or those that a file belongs to.

    Args:
        place: a folder, a pickled file or a GGUF file.
        gguf_file: the name of the GGUF file to take, where the folder has several models.

    Raises:
        CheckpointNotFoundError: there are no such files.
        CheckpointError: there are several models.
        TensorMissingError: a file of several is missing.
        UnsupportedFormatError: the weights are safetensors already, or in yet another format.
    """
    if not place.is_dir():
        return _named(place.parent, place.name)
    if gguf_file is not None:
        return _named(place, gguf_file)
    names = set(weight_files(place))
    if names & {SINGLE_NAME, INDEX_NAME}:
        raise UnsupportedFormatError(
            f"{place} holds safetensors, which need no conversion: layerstream run {shlex.quote(str(place))}"
        )
    if names & {PICKLED_SINGLE, PICKLED_INDEX}:
        return _named(place, PICKLED_SINGLE if PICKLED_SINGLE in names else PICKLED_INDEX)
    for suffixes, advice in (
        ((GGUF_SUFFIX,), f"say which: {convert_command(str(place))} --gguf-file NAME"),
        (PICKLED_SUFFIXES, "give the file itself, or keep only one"),
    ):
        found = sorted(name for name in names if name.endswith(suffixes))
        first_parts = [name for name in found if _is_first(name)]
        if len(first_parts) == 1:
            return _named(place, first_parts[0])
        if found:
            raise CheckpointError(f"{place} has several files of weights ({some(found)}); {advice}")
    raise CheckpointNotFoundError(
        f"{place} has no weights to convert: neither {PICKLED_SINGLE}, {PICKLED_INDEX} nor a "
        f"{GGUF_SUFFIX} file"
    )


def sibling_parts(name: str) -> tuple[str, ...]:
    """Return the names of all parts of the model that the file `name` is a part of; a whole model is one."""
    part = _PART.fullmatch(name)
    if part is None:
        return (name,)
    count = int(part["count"])
    return tuple(f"{part['stem']}-{n:05}-of-{count:05}{part['suffix']}" for n in range(1, count + 1))


def _is_first(name: str) -> bool:
    part = _PART.fullmatch(name)
    return part is None or int(part["number"]) == 1


def _named(directory: Path, name: str) -> ForeignWeights:
    if name == PICKLED_INDEX:
        weight_map, _ = read_index(file_inside(directory, name))
        return _present(directory, sorted(set(weight_map.values())), weight_map, is_gguf=False)
    if name.endswith(GGUF_SUFFIX):
        return _present(directory, sibling_parts(name), {}, is_gguf=True)
    if name.endswith(PICKLED_SUFFIXES):
        if (directory / PICKLED_INDEX).is_file() and _PART.fullmatch(name):
            return _named(directory, PICKLED_INDEX)
        return _present(directory, sibling_parts(name), {}, is_gguf=False)
    if not (directory / name).exists():
        raise CheckpointNotFoundError(f"there is no {directory / name}; give a folder or a file that exists")
    raise UnsupportedFormatError(
        f"{directory / name} cannot be converted: only pickled weights ({', '.join(PICKLED_SUFFIXES)}) and "
        f"GGUF can"
    )


def _present(
    directory: Path, files: Iterable[str], weight_map: Mapping[str, str], *, is_gguf: bool
) -> ForeignWeights:
    files = tuple(files)
    missing = [name for name in files if not file_inside(directory, name).is_file()]
    if missing and len(files) == 1:
        raise CheckpointNotFoundError(f"there is no {directory / missing[0]}; give a file that exists")
    if missing:
        names = tuple(tensor for tensor, file in weight_map.items() if file in missing)
        raise TensorMissingError(
            f"{directory} lacks {some(missing)}, of the {len(files)} files that hold the weights; "
            "download what is missing",
            names=names,
        )
    return ForeignWeights(directory=directory, files=files, is_gguf=is_gguf, weight_map=weight_map)
