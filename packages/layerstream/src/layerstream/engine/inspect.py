"""From a model's name to its numbers: the steps that `plan`, `simulate` and `load` share.

Layer: composition. Here the rooms meet: names become files (checkpoint), files become modules and recipes (architecture), recipes
get their layout (streaming). No weight is read.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel

from ..architecture.blocks import find_blocks
from ..architecture.chunking import chunk_feed_forward
from ..architecture.describe import ModelUnits, describe_model, measure_forwards, sort_into_units
from ..architecture.module_state import AttributeSnapshot, ModuleState
from ..architecture.recipe import ModelRecipe, give_dtypes, learn_recipe, recipe_of_shapes
from ..architecture.skeleton import build_skeleton, check_config, read_config, resolve_dtype
from ..architecture.weight_usage import find_weight_usage
from ..checkpoint.hub import remote_checkpoint, resolve_model
from ..checkpoint.index import Checkpoint, open_checkpoint
from ..spec.profiles import ModelProfile
from ..streaming.layout import slot_bytes

Replicate = Callable[[], tuple[PreTrainedModel, tuple[nn.Module, ...]]]


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelSpec:
    """A model that is known but not loaded.

    Attributes:
        name: as the user gave it.
        directory: its checkpoint's directory.
        model: the skeleton on the meta device.
        recipe: how its tensors are made.
        units: its tensors in units.
        profile: its numbers.
        chunked: modules that work through long prompts in chunks.
        state: of modules that keep theirs to themselves.
        replicate: makes the skeleton once more, for another device, with its own `chunked`.
    """

    name: str
    directory: Path
    model: PreTrainedModel
    recipe: ModelRecipe
    units: ModelUnits
    profile: ModelProfile
    chunked: tuple[nn.Module, ...]
    state: ModuleState
    replicate: Replicate


def inspect_model(
    name: str | Path,
    *,
    dtype: str | torch.dtype = "auto",
    attn_implementation: str | None = None,
    revision: str | None = None,
    trust_remote_code: bool = False,
    prefill_chunk_tokens: int | None = None,
    on_host: bool = True,
    weights: bool = True,
) -> ModelSpec:
    """Open a checkpoint: config and headers only.

    Args:
        name: a directory or a Hub id.
        dtype: the run dtype; `"auto"` keeps the checkpoint's.
        attn_implementation: transformers' name of the attention; None takes its default.
        revision: of a Hub id.
        trust_remote_code: run code from the repository; off unless asked.
        prefill_chunk_tokens: see `Workload`.
        on_host: the weights will run in host memory (slots are laid out like it).
        weights: fetch the weight files of a Hub id too; otherwise only config and headers.

    Raises:
        LayerstreamError: what is wrong with the checkpoint, the model or the wish; see the classes below it.
    """
    checkpoint, directory = _open_checkpoint(str(name), revision, weights=weights)
    config = read_config(directory, trust_remote_code=trust_remote_code)
    resolved = resolve_dtype(config, dtype, checkpoint.tensors.values())
    make = partial(
        build_skeleton,
        config,
        resolved,
        attn_implementation=attn_implementation,
        trust_remote_code=trust_remote_code,
    )
    model = make()
    recipe = learn_recipe(model, checkpoint.tensors, resolved)
    again = partial(_replicate, make, recipe, prefill_chunk_tokens)
    return _describe(str(name), directory, model, recipe, on_host, prefill_chunk_tokens, again)


def inspect_config(
    config: PreTrainedConfig,
    *,
    dtype: str | torch.dtype = "auto",
    name: str | None = None,
    prefill_chunk_tokens: int | None = None,
    on_host: bool = True,
) -> ModelSpec:
    """Describe a model of which only the config exists, as if its checkpoint held each tensor as the model uses it.

    Raises:
        ModelError: transformers has no causal model for it, or it has no blocks.
    """
    config = check_config(config)
    resolved = resolve_dtype(config, dtype)
    make = partial(build_skeleton, config, resolved)
    model = make()
    recipe = recipe_of_shapes(model, resolved)
    again = partial(_replicate, make, recipe, prefill_chunk_tokens)
    name = name or config.name_or_path or config.model_type
    return _describe(name, Path(), model, recipe, on_host, prefill_chunk_tokens, again)


def _open_checkpoint(name: str, revision: str | None, *, weights: bool) -> tuple[Checkpoint, Path]:
    directory = resolve_model(name, revision=revision, weights=weights)
    if weights or Path(name).exists():
        return open_checkpoint(directory, name), directory
    return remote_checkpoint(name, revision), directory


def _replicate(
    make: Callable[[], PreTrainedModel], recipe: ModelRecipe, chunk: int | None
) -> tuple[PreTrainedModel, tuple[nn.Module, ...]]:
    model = make()
    return model, _prepare(model, recipe, chunk)


def _prepare(model: PreTrainedModel, recipe: ModelRecipe, chunk: int | None) -> tuple[nn.Module, ...]:
    """Make a fresh skeleton ready for its weights; return the modules that work in chunks."""
    give_dtypes(model, recipe)
    return (
        ()
        if chunk is None
        else chunk_feed_forward(model, tuple(path for path, _ in find_blocks(model)), chunk)
    )


def _describe(
    name: str,
    directory: Path,
    model: PreTrainedModel,
    recipe: ModelRecipe,
    on_host: bool,
    chunk: int | None,
    replicate: Replicate,
) -> ModelSpec:
    chunked = _prepare(model, recipe, chunk)
    attributes = AttributeSnapshot(model)
    units = sort_into_units(model, recipe, find_weight_usage(model))
    profile = describe_model(
        model,
        units,
        measure_forwards(model, chunk if chunked else None),
        name=name,
        dtype=str(model.config.dtype).removeprefix("torch."),
        slot_bytes=lambda unit: slot_bytes(unit, on_host=on_host),
    )
    return ModelSpec(
        name=name,
        directory=directory,
        model=model,
        recipe=recipe,
        units=units,
        profile=profile,
        chunked=chunked,
        state=attributes.restore(),
        replicate=replicate,
    )
