"""Convert a checkpoint to safetensors: prepare finds out and decides, run writes.

Everything that can be known from headers is checked before the first byte is written: the format, whether the
model gets every tensor that it needs, and the space on the disk.
"""

from __future__ import annotations

import importlib.util
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from importlib import import_module
from pathlib import Path
from time import perf_counter
from typing import Any

from transformers import PreTrainedModel

from ..architecture import compat
from ..architecture.recipe import UnusedTensorWarning, learn_recipe
from ..architecture.skeleton import build_skeleton, resolve_dtype
from ..checkpoint.foreign import ForeignWeights, find_foreign
from ..checkpoint.hub import resolve_foreign
from ..checkpoint.index import CONFIG_NAME, INDEX_NAME
from ..checkpoint.new_shards import NewShard, NewTensor, index_text, plan_shards, write_shard
from ..errors import CheckpointError, ConversionError, TensorMissingError, UnsupportedFormatError
from ..spec.conversion import ConversionProgress, ConversionReport
from ..spec.options import LoadOptions
from ..spec.sizes import format_bytes, parse_size
from .dtypes import as_stored, check_dtype, main_dtype, stored_dtype
from .model_files import CopiedFiles, GgufFiles, ModelFiles
from .pickled import PickledSource
from .source import Source, SourceTensor
from .target import check_space, complete, finished_files, open_target

OnProgress = Callable[[ConversionProgress], None]
_MAX_SHARD_SIZE = "5 GB"
# Raised when the same source would be written differently.
_EDITION = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Conversion:
    """A conversion that is known to be possible. Nothing has been written.

    Attributes:
        target: the folder to write.
        shards: the files of weights that it will have.
        notes: what the user should know about the values and the memory, in sentences.
    """

    target: Path
    shards: tuple[NewShard, ...]
    notes: tuple[str, ...]
    _source: Source
    _files: ModelFiles
    _config: bytes
    _job: dict[str, Any]

    @property
    def weight_bytes(self) -> int:
        """Bytes of the tensors that the target will hold."""
        return sum(tensor.num_bytes for shard in self.shards for tensor in shard.tensors)

    def run(self, on_progress: OnProgress | None = None) -> ConversionReport:
        """Write the target; files that an earlier, interrupted attempt completed are kept.

        Args:
            on_progress: called after every piece that is written.

        Raises:
            ConversionError: the target is in use, or its disk is full.
            CheckpointError: the source cannot be read.
        """
        started_s = perf_counter()
        open_target(self.target, self._job)
        kept = finished_files(self.target, self.shards)
        check_space(self.target, sum(shard.num_bytes for shard in self.shards if shard.file not in kept))
        meter = _Meter(self.shards, kept, on_progress)
        try:
            self._files.write_first(self.target)
            for shard in self.shards:
                if shard.file not in kept:
                    write_shard(self.target, shard, self._pieces(shard, meter))
                    meter.files_done += 1
            last = {CONFIG_NAME: self._config}
            if len(self.shards) > 1:
                last[INDEX_NAME] = index_text(self.shards).encode()
            complete(self.target, last)
        except ConversionError:
            raise
        except OSError as error:
            raise ConversionError(
                f"{self.target} cannot be written: {error.strerror or error}; {meter.files_done} of "
                f"{len(self.shards)} files of weights are complete and are kept: the same command goes on"
            ) from error
        return ConversionReport(
            target=self.target,
            num_files=len(self.shards),
            num_tensors=sum(len(shard.tensors) for shard in self.shards),
            weight_bytes=self.weight_bytes,
            kept_bytes=meter.kept_bytes,
            seconds=perf_counter() - started_s,
            notes=self.notes,
        )

    def _pieces(self, shard: NewShard, meter: _Meter) -> Iterator[memoryview]:
        for tensor in shard.tensors:
            pieces = self._source.read(tensor.name)
            while True:
                try:
                    piece = next(pieces, None)
                except OSError as error:
                    raise CheckpointError(
                        f"tensor {tensor.name!r} cannot be read from the source: {error.strerror or error}"
                    ) from error
                if piece is None:
                    break
                data = as_stored(piece, tensor.dtype, tensor.name)
                yield data
                meter.count(data.nbytes)


class _Meter:
    """Counts what is written and tells the caller."""

    def __init__(self, shards: Sequence[NewShard], kept: set[str], on_progress: OnProgress | None) -> None:
        sizes = {shard.file: sum(tensor.num_bytes for tensor in shard.tensors) for shard in shards}
        self.kept_bytes = sum(sizes[file] for file in kept)
        self.files_done = len(kept)
        self._num_files, self._total_bytes = len(shards), sum(sizes.values())
        self._written_bytes = 0
        self._on_progress = on_progress
        self._started_s = perf_counter()

    def count(self, num_bytes: int) -> None:
        self._written_bytes += num_bytes
        if self._on_progress is None:
            return
        elapsed_s = perf_counter() - self._started_s
        self._on_progress(
            ConversionProgress(
                files_done=self.files_done,
                num_files=self._num_files,
                bytes_done=self.kept_bytes + self._written_bytes,
                total_bytes=self._total_bytes,
                bytes_per_s=self._written_bytes / elapsed_s if elapsed_s > 0 else 0.0,
            )
        )


def convert_checkpoint(
    source: str | Path,
    target: str | Path,
    *,
    dtype: str = "auto",
    max_shard_size: int | str = _MAX_SHARD_SIZE,
    gguf_file: str | None = None,
    revision: str | None = None,
    cache_dir: str | Path | None = None,
    local_files_only: bool = False,
    trust_remote_code: bool = False,
    on_progress: OnProgress | None = None,
) -> ConversionReport:
    """Convert pickled (`.bin`) or GGUF weights to a safetensors checkpoint, in little memory.

    Weights are read and written in pieces of 16 MiB, so the memory does not depend on the model; only files
    that torch wrote before version 1.6 are loaded whole, one at a time. No code in them is run. Values stay
    bit for bit as they are, unless `dtype` asks for another dtype, or GGUF weights are quantized: then the
    values that they stand for are stored.

    An interrupted conversion goes on when it is called again: files of weights that are complete are kept.
    The target gets its `config.json` last, so an incomplete one is never taken for a checkpoint.

    Args:
        source: a folder, a file of weights or a Hub id. Pickled weights need their `config.json` next to
            them.
        target: the folder to write; it must not exist, be empty, or hold this conversion unfinished.
        dtype: `"float16"`, `"bfloat16"` or `"float32"` for all floating weights; `"auto"` keeps each tensor's
            own dtype, and takes float16 for what is quantized.
        max_shard_size: the largest file of weights, in bytes or as text such as `"5 GB"`.
        gguf_file: the name of the GGUF file, where the source has several.
        revision: the revision of a Hub id.
        cache_dir: the directory of the Hub's cache.
        local_files_only: download nothing.
        trust_remote_code: build the model's class from code in its repository, to check the names of its
            tensors.
        on_progress: called with a `ConversionProgress` after every piece.

    Returns:
        What was written; its `notes` say what is not exact.

    Raises:
        CheckpointNotFoundError: there is no such source.
        UnsupportedFormatError: the source is something else, runs code when it is read, or has an
            architecture that cannot be converted.
        ShardCorruptError: a file is damaged; with `path`.
        TensorMissingError: the model needs tensors that the source does not hold; with `names`.
        ConversionError: the target is in use, or its disk is full; with `needed_bytes`.
        UnsupportedModelError: transformers has no causal language model for the config.
    """
    options = LoadOptions(
        dtype=dtype,
        revision=revision,
        cache_dir=cache_dir,
        local_files_only=local_files_only,
        trust_remote_code=trust_remote_code,
    )
    conversion = prepare_conversion(
        str(source), Path(target), options, gguf_file=gguf_file, max_shard_bytes=parse_size(max_shard_size)
    )
    return conversion.run(on_progress)


def prepare_conversion(
    name: str, target: Path, options: LoadOptions, *, gguf_file: str | None, max_shard_bytes: int
) -> Conversion:
    """Find out what the source holds, and decide what the target will hold; nothing is written.

    Raises:
        LayerstreamError: as `convert_checkpoint`, apart from what concerns the target's disk.
    """
    check_dtype(options.dtype)
    weights = find_foreign(resolve_foreign(name, options, gguf_file), gguf_file)
    source, files, notes = _open_source(weights, options)
    model = build_skeleton(
        files.config,
        resolve_dtype(files.config, "auto"),
        trust_remote_code=options.trust_remote_code,
    )
    tensors = _needed(source.tensors, model, weights.directory / weights.files[0])
    new = [
        NewTensor(name=tensor.name, dtype=stored_dtype(tensor, options.dtype), shape=tensor.shape)
        for tensor in tensors
    ]
    changes_dtype = weights.is_gguf or options.dtype != "auto"
    return Conversion(
        target=target,
        shards=plan_shards(new, max_shard_bytes, target),
        notes=tuple(notes),
        _source=source,
        _files=files,
        _config=files.config_text(main_dtype(new) if changes_dtype else None, type(model).__name__),
        _job=_job(name, weights, options.dtype, max_shard_bytes),
    )


def _job(name: str, weights: ForeignWeights, dtype: str, max_shard_bytes: int) -> dict[str, Any]:
    status = {file: (weights.directory / file).stat() for file in weights.files}
    return {
        "source": name,
        "files": {file: [found.st_size, found.st_mtime_ns] for file, found in status.items()},
        "dtype": dtype,
        "max_shard_bytes": max_shard_bytes,
        "edition": _EDITION,
    }


def _open_source(weights: ForeignWeights, options: LoadOptions) -> tuple[Source, ModelFiles, list[str]]:
    paths = [weights.directory / file for file in weights.files]
    if weights.is_gguf:
        return _open_gguf(paths, options.dtype)
    files = CopiedFiles(weights.directory, trust_remote_code=options.trust_remote_code)
    source = PickledSource(paths)
    _check_index(weights, source)
    notes = []
    if source.whole_file_bytes:
        notes.append(
            "These files are older than torch 1.6, or compressed, and cannot be read in pieces: each is "
            f"loaded whole, which takes up to {format_bytes(source.whole_file_bytes)} of memory."
        )
    return source, files, notes


def _check_index(weights: ForeignWeights, source: PickledSource) -> None:
    held = {tensor.name for tensor in source.tensors}
    if missing := tuple(name for name in weights.weight_map if name not in held):
        raise TensorMissingError(
            f"the index in {weights.directory} names {len(missing)} tensors that no file holds, such as "
            f"{missing[0]}; download the files and the index again, from one revision",
            names=missing,
        )


def _open_gguf(paths: Sequence[Path], dtype: str) -> tuple[Source, ModelFiles, list[str]]:
    if importlib.util.find_spec("gguf") is None:
        raise UnsupportedFormatError(
            f"{paths[0]} is read with the package gguf, which is not installed: pip install gguf"
        )
    # imported here only: the package is optional
    source = import_module(".gguf_source", __package__).GgufSource(paths)
    shapes = {tensor.name: tensor.shape for tensor in source.tensors}
    if "model.embed_tokens.weight" not in shapes:
        raise UnsupportedFormatError(f"{paths[0]} holds no embedding; is it a whole language model?")
    files = GgufFiles(
        paths[0],
        source.metadata,
        vocabulary=shapes["model.embed_tokens.weight"][0],
        has_head="lm_head.weight" in shapes,
    )
    return source, files, _gguf_notes(source, files, dtype)


def _gguf_notes(source: Any, files: GgufFiles, dtype: str) -> list[str]:
    notes = []
    if kinds := source.quantized_kinds:
        stored = "float16" if dtype == "auto" else dtype
        notes.append(
            f"The file is quantized ({', '.join(kinds)}). Its values are stored as {stored}: they are those "
            "of this file, not of the original model."
        )
    prefix = source.metadata["general.architecture"]
    scaling = source.metadata.get(f"{prefix}.rope.scaling.type", "none")
    if source.computed or scaling != "none":
        notes.append(
            "The file scales its rotary embeddings for long texts, which transformers does not read from "
            "GGUF: copy the original model's config.json into the new folder, or answers may differ."
        )
    if not files.has_tokenizer:
        notes.append("The file holds no tokenizer: copy the original model's into the new folder.")
    return notes


def _needed(
    tensors: tuple[SourceTensor, ...], model: PreTrainedModel, path: Path
) -> tuple[SourceTensor, ...]:
    """Return what must be written: all tensors, but of tied ones that share their bytes only one.

    Raises:
        TensorMissingError: the model needs others; with `names`.
        CheckpointError: a shape is not the model's.
    """
    self_made = _self_made(tensors, model, path)
    tied = compat.tied_names(model)
    groups: dict[str, list[SourceTensor]] = {}
    for tensor in tensors:
        groups.setdefault(tensor.same_as or tensor.name, []).append(tensor)
    kept = {min(group, key=lambda tensor: tensor.name in tied).name for group in groups.values()}
    fewer = tuple(tensor for tensor in tensors if tensor.name in kept)
    try:
        # a copy that the model does not tie must stay
        return fewer if _self_made(fewer, model, path) == self_made else tensors
    except TensorMissingError:
        return tensors


def _self_made(tensors: Sequence[SourceTensor], model: PreTrainedModel, path: Path) -> frozenset[str]:
    """Return what the model would initialize itself, if a checkpoint held `tensors` and nothing else."""
    new = [NewTensor(name=tensor.name, dtype=tensor.dtype, shape=tensor.shape) for tensor in tensors]
    (shard,) = plan_shards(new, sum(tensor.num_bytes for tensor in new) + 1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UnusedTensorWarning)
        return learn_recipe(
            model, {tensor.name: replace(tensor, path=str(path)) for tensor in shard.tensors}, model.dtype
        ).self_made
