"""Copies of Hub models that layerstream itself has made: they stand in when the Hub cannot be reached.

Room: bytes. It knows where a copy lies and when it is complete. `default_model` makes it.
"""

from __future__ import annotations

from pathlib import Path

from .user_cache import cache_directory

DEFAULT_HUB_ID = "HuggingFaceTB/SmolLM2-135M-Instruct"
"""The Hub repository of the default model, the only one that has such a copy."""


def default_copy() -> Path:
    """Return the directory where the copy of the default model lies once it is made."""
    return cache_directory() / "SmolLM2-135M-Instruct-fp16"


def is_complete(directory: Path) -> bool:
    """Return whether `directory` has everything that the default model needs."""
    return all(
        (directory / name).is_file() for name in ("config.json", "model.safetensors", "tokenizer.json")
    )


def public_name(model: str | Path) -> str:
    """Return the Hub's name of a copy that layerstream has made, and any other `model` as it is."""
    return DEFAULT_HUB_ID if str(model) == str(default_copy()) else str(model)


def find_copy(name: str) -> Path | None:
    """Return the directory of the copy of the Hub's `name`; None if there is none."""
    if name != DEFAULT_HUB_ID:
        return None
    return default_copy() if is_complete(default_copy()) else None
