"""Tell checkpoints apart without reading them: a fingerprint of small files, headers and samples of weights.

Room: bytes. A snapshot in the Hub's cache is named by its commit, which settles all its files. Any other
directory is told by the contents of its small files, by its safetensors headers, and by a few bytes from the
middle of each tensor: a model that was trained further has the same headers.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable
from pathlib import Path

from ..errors import CheckpointError
from ..spec.options import LoadOptions
from ..spec.profiles import StoredTensor
from .hub import resolve_adapter, resolve_model
from .index import CONFIG_NAME, Checkpoint, open_checkpoint
from .urls import is_url

# The files besides the weights that can change a result.
_SMALL_FILES = (
    CONFIG_NAME,
    "generation_config.json",
    "tokenizer*",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template*",
    "vocab*",
    "merges.txt",
    "*.model",
    "*.jinja",
    "*.py",
)
_DEFAULTS = LoadOptions()
_MOST_SAMPLES = 1024
_SAMPLE_BYTES = 64


def fingerprint_model(name: str, options: LoadOptions = _DEFAULTS) -> dict[str, str]:
    """Return what identifies a model's contents: models with different values are different.

    Args:
        name: a directory, a Hub id or a URL; only the small files of a Hub id are fetched.
        options: only revision, token, cache directory, subfolder, variant and `local_files_only` are used.

    Returns:
        For a snapshot of the Hub, its `commit`. For any other directory, a digest for each small file
        (`config.json`, tokenizer files, ...), `safetensors headers` (names, shapes, dtypes, places, file
        sizes) and `weights` (64 bytes from the middle of each tensor, of 1,024 tensors at most).

    Raises:
        CheckpointError: the model is not there, or its files are damaged.
    """
    # The weights of a URL have no commit, so they must be here to be told apart.
    directory = resolve_model(name, options, weights=is_url(name))
    real = Path(os.path.realpath(directory))
    if real.parent.name == "snapshots" and real.parent.parent.name.startswith("models--"):
        return {"commit": real.name}
    directory /= options.subfolder
    checkpoint = open_checkpoint(directory, name, variant=options.variant)
    try:
        return {
            **_small_files(directory),
            "safetensors headers": _digest_of_headers(checkpoint),
            "weights": _digest_of_samples(checkpoint.tensors.values()),
        }
    except OSError as error:
        raise CheckpointError(f"{name} cannot be read: {error}") from error


def fingerprint_adapter(source: str, options: LoadOptions = _DEFAULTS) -> str:
    """Return a digest of an adapter's config and weights.

    Args:
        source: a directory or a Hub id, whose files are fetched.
        options: only token, cache directory and `local_files_only` are used.

    Raises:
        CheckpointError: the adapter is not there, or cannot be read.
    """
    directory = resolve_adapter(source, options, weights=True)
    try:
        digests = [f"{path.name}: {digest_file(path)}" for path in sorted(directory.glob("adapter_*"))]
    except OSError as error:
        raise CheckpointError(f"the adapter {source} cannot be read: {error}") from error
    return hashlib.sha256("\n".join(digests).encode()).hexdigest()[:16]


def digest_file(path: Path) -> str:
    """Return a short digest of a file's contents.

    Raises:
        OSError: it cannot be read.
    """
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()[:16]


def _small_files(directory: Path) -> dict[str, str]:
    paths = {path for pattern in _SMALL_FILES for path in directory.glob(pattern) if path.is_file()}
    return {path.name: digest_file(path) for path in sorted(paths)}


def _digest_of_headers(checkpoint: Checkpoint) -> str:
    sizes = [[shard, (checkpoint.directory / shard).stat().st_size] for shard in sorted(checkpoint.shards)]
    places = [
        [tensor.name, tensor.dtype, tensor.shape, Path(tensor.path).name, tensor.offset, tensor.num_bytes]
        for tensor in sorted(checkpoint.tensors.values(), key=lambda tensor: tensor.name)
    ]
    return hashlib.sha256(json.dumps([sizes, places]).encode()).hexdigest()[:16]


def _digest_of_samples(tensors: Iterable[StoredTensor]) -> str:
    by_place = sorted(tensors, key=lambda tensor: (tensor.path, tensor.offset))
    step = -(-len(by_place) // _MOST_SAMPLES) or 1
    digest = hashlib.sha256()
    path, descriptor = "", -1
    try:
        for tensor in by_place[::step]:
            if tensor.path != path:
                if descriptor >= 0:
                    os.close(descriptor)
                path, descriptor = tensor.path, _open_for_samples(tensor.path)
            middle = tensor.offset + tensor.num_bytes // 2
            last = tensor.offset + tensor.num_bytes - middle
            digest.update(os.pread(descriptor, min(_SAMPLE_BYTES, last), middle))
    finally:
        if descriptor >= 0:
            os.close(descriptor)
    return digest.hexdigest()[:16]


def _open_for_samples(path: str) -> int:
    descriptor = os.open(path, os.O_RDONLY)
    if hasattr(os, "posix_fadvise"):
        # Without it, each sample would have the system read ahead.
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_RANDOM)
    return descriptor
