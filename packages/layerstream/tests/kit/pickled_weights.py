"""Rewrite a checkpoint's weights as `pytorch_model.bin`, as older versions of transformers wrote them.

Test kit. Uses torch and safetensors only, nothing of layerstream.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import torch
from safetensors.torch import load_file

SINGLE, INDEX = "pytorch_model.bin", "pytorch_model.bin.index.json"


def save_pickled(
    checkpoint: Path, target: Path, *, is_sharded: bool = False, is_old: bool = False
) -> dict[str, torch.Tensor]:
    """Write the checkpoint to `target` with pickled weights, and return its tensors.

    Args:
        checkpoint: a directory with safetensors files.
        target: the directory to write.
        is_sharded: keep the files apart and write an index.
        is_old: use the format of torch before version 1.6.
    """
    target.mkdir()
    for path in checkpoint.iterdir():
        if path.suffix != ".safetensors" and path.name != "model.safetensors.index.json":
            shutil.copy(path, target)
    shards = [load_file(path) for path in sorted(checkpoint.glob("*.safetensors"))]
    tensors = {name: tensor for shard in shards for name, tensor in shard.items()}
    if not is_sharded:
        save_bin(tensors, target / SINGLE, is_old=is_old)
        return tensors
    weight_map = {}
    for number, shard in enumerate(shards, start=1):
        name = f"pytorch_model-{number:05}-of-{len(shards):05}.bin"
        save_bin(shard, target / name, is_old=is_old)
        weight_map |= dict.fromkeys(shard, name)
    (target / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    return tensors


def save_bin(tensors: dict[str, torch.Tensor], path: Path, *, is_old: bool = False) -> None:
    """Write one pickled file."""
    torch.save(tensors, path, _use_new_zipfile_serialization=not is_old)
