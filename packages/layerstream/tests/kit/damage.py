"""Damage a checkpoint on disk.

Test kit. Uses safetensors and json only, nothing of layerstream.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file


def rewrite_tensors(path: Path, change: Callable[[dict[str, torch.Tensor]], None]) -> None:
    """Let `change` edit all tensors in place; write them back as one safetensors file without an index."""
    tensors: dict[str, torch.Tensor] = {}
    for shard in sorted(path.glob("*.safetensors")):
        tensors.update({name: tensor.clone() for name, tensor in load_file(shard).items()})
        shard.unlink()
    (path / "model.safetensors.index.json").unlink(missing_ok=True)
    change(tensors)
    save_file(tensors, path / "model.safetensors", metadata={"format": "pt"})


def rewrite_config(path: Path, **changes: Any) -> None:
    """Set entries of config.json."""
    config = json.loads((path / "config.json").read_text())
    (path / "config.json").write_text(json.dumps({**config, **changes}))
