"""Inspect a model: from its name to its sizes, without reading a weight.

`plan`, `simulate` and `load` share these steps: the checkpoint room finds the files, architecture builds the
empty model and the recipes of its tensors, streaming lays them out.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, fields, replace
from functools import partial
from pathlib import Path

from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel

from ..architecture.blocks import find_blocks
from ..architecture.chunking import chunk_feed_forward
from ..architecture.describe import (
    ModelUnits,
    describe_model,
    fit_activation,
    measure_forwards,
    sort_into_units,
)
from ..architecture.module_state import AttributeSnapshot, ModuleState
from ..architecture.recipe import ModelRecipe, give_dtypes, learn_recipe, recipe_of_shapes
from ..architecture.skeleton import build_skeleton, check_config, read_config, resolve_dtype
from ..architecture.weight_usage import find_weight_usage
from ..checkpoint.hub import downloads, remote_checkpoint, resolve_model
from ..checkpoint.index import Checkpoint, open_checkpoint
from ..checkpoint.made_copies import public_name
from ..checkpoint.url_copy import url_checkpoint
from ..checkpoint.urls import is_url
from ..errors import CheckpointError, ModelError, PlanError
from ..spec.options import LoadOptions
from ..spec.profiles import ActivationProfile, ModelProfile
from ..streaming.layout import host_bytes, slot_bytes
from .adapter_switch import AdapterSwitch
from .adapters import Adapter, AdapterSizes, find_adapters, measure_adapters

DEFAULTS = LoadOptions()
"""Load a model as its checkpoint describes it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelSpec:
    """A model that has been inspected but not loaded.

    Attributes:
        name: as the user gave it.
        options: how the user wants it loaded.
        directory: its checkpoint's directory; the config is in its `options.subfolder`.
        model: the empty model, on the meta device.
        recipe: how its tensors are made.
        units: its tensors, grouped into units.
        profile: its sizes.
        chunked: modules that process long prompts in chunks.
        state: attributes in which its modules keep state of their own.
        replicate: returns another empty model, for another device, with its own `chunked`.
        adapters: what is put on the model once it is built.
    """

    name: str
    options: LoadOptions
    directory: Path
    model: PreTrainedModel
    recipe: ModelRecipe
    units: ModelUnits
    profile: ModelProfile
    chunked: tuple[nn.Module, ...]
    state: ModuleState
    replicate: Callable[[], tuple[PreTrainedModel, tuple[nn.Module, ...]]]
    adapters: tuple[Adapter, ...] = ()


def inspect_any(model: str | Path | PreTrainedConfig, options: LoadOptions, *, on_host: bool) -> ModelSpec:
    """Inspect a checkpoint, or a config alone, for planning; no weight file is fetched."""
    if isinstance(model, PreTrainedConfig):
        return inspect_config(model, options, on_host=on_host)
    return inspect_model(model, options, on_host=on_host, weights=False)


def inspect_model(
    name: str | Path, options: LoadOptions = DEFAULTS, *, on_host: bool = True, weights: bool = True
) -> ModelSpec:
    """Inspect a checkpoint: read its config and headers, and build the empty model.

    Args:
        name: a directory or a Hub id.
        options: budget and devices are not used.
        on_host: the weights will be used from host memory, so slots have the host layout.
        weights: fetch a Hub id's weight files too, not only config and headers.

    Raises:
        CheckpointError, ModelError, PlanError: the checkpoint, the model or the options cannot be used.
    """
    checkpoint, directory = find_checkpoint(str(name), options, weights=weights)
    config = read_config(directory, options)
    dtype = resolve_dtype(config, options.dtype, checkpoint.tensors.values())
    make = partial(
        build_skeleton,
        config,
        dtype,
        attn_implementation=options.attn_implementation,
        trust_remote_code=options.trust_remote_code,
    )
    with _naming_settings(options):
        model = make()
        recipe = learn_recipe(model, checkpoint.tensors, dtype)
    skeletons = _Skeletons(make, recipe, options.prefill_chunk_tokens)
    spec = _describe(public_name(name), options, directory, skeletons, model, on_host)
    return _with_adapters(spec, options, weights=weights)


def inspect_config(
    config: PreTrainedConfig, options: LoadOptions = DEFAULTS, *, on_host: bool = True
) -> ModelSpec:
    """Inspect a model that exists only as a config, as if a checkpoint held every tensor in the run dtype.

    Raises:
        ModelError: transformers has no causal model for it, or the model has no blocks.
        PlanError: an option chooses files, and a config has none.
    """
    _refuse_file_options(options)
    config = check_config(config)
    dtype = resolve_dtype(config, options.dtype)
    make = partial(build_skeleton, config, dtype, attn_implementation=options.attn_implementation)
    model = make()
    skeletons = _Skeletons(make, recipe_of_shapes(model, dtype), options.prefill_chunk_tokens)
    name = config.name_or_path or config.model_type
    spec = _describe(name, options, Path(), skeletons, model, on_host)
    return _with_adapters(spec, options, weights=False)


@contextmanager
def _naming_settings(options: LoadOptions) -> Iterator[None]:
    """Name the user's settings of the config in an error about a model that does not fit its weights."""
    try:
        yield
    except (CheckpointError, ModelError) as error:
        if isinstance(options.config, PreTrainedConfig):
            error.args = (f"{error.args[0]}; the config is the one given as config=...",)
        elif options.config:
            error.args = (f"{error.args[0]}; config replaces {', '.join(options.config)}",)
        raise


def _refuse_file_options(options: LoadOptions) -> None:
    names = ("revision", "cache_dir", "local_files_only", "subfolder", "variant", "config")
    given = [name for name in names if getattr(options, name) != getattr(DEFAULTS, name)]
    if given:
        raise PlanError(
            f"{', '.join(given)} cannot be used: the model is a config, without files; leave it out, or name "
            "a checkpoint"
        )


def find_checkpoint(name: str, options: LoadOptions, *, weights: bool) -> tuple[Checkpoint, Path]:
    """Return a checkpoint's table of contents, and the directory of its small files.

    Args:
        name: a directory or a Hub id.
        options: those that say where the files are.
        weights: fetch a Hub id's weight files too, not only their headers.

    Raises:
        CheckpointError: the checkpoint is not there or its files cannot be used.
    """
    if is_url(name):
        return url_checkpoint(name, options, weights=weights)
    only_headers = not weights and downloads(name, options)
    directory = resolve_model(name, options, weights=not only_headers)
    if only_headers:
        return remote_checkpoint(name, options), directory
    return open_checkpoint(directory / options.subfolder, name, variant=options.variant), directory


@dataclass(frozen=True, slots=True)
class _Skeletons:
    """Makes the empty model, once for each device.

    Attributes:
        make: builds it on the meta device.
        recipe: how its tensors are made.
        chunk_tokens: chunked prefill; None is off.
    """

    make: Callable[[], PreTrainedModel]
    recipe: ModelRecipe
    chunk_tokens: int | None

    def replicate(self) -> tuple[PreTrainedModel, tuple[nn.Module, ...]]:
        """Return another empty model, with its modules that work in chunks."""
        model = self.make()
        return model, self.prepare(model)

    def prepare(self, model: PreTrainedModel) -> tuple[nn.Module, ...]:
        """Give a new empty model its dtypes; return the modules that work in chunks."""
        give_dtypes(model, self.recipe)
        if self.chunk_tokens is None:
            return ()
        return chunk_feed_forward(model, tuple(path for path, _ in find_blocks(model)), self.chunk_tokens)


def _describe(
    name: str,
    options: LoadOptions,
    directory: Path,
    skeletons: _Skeletons,
    model: PreTrainedModel,
    on_host: bool,
) -> ModelSpec:
    chunked = skeletons.prepare(model)
    attributes = AttributeSnapshot(model)
    units = sort_into_units(model, skeletons.recipe, find_weight_usage(model))
    profile = describe_model(
        model,
        units,
        measure_forwards(model, skeletons.chunk_tokens if chunked else None),
        name=name,
        dtype=str(model.config.dtype).removeprefix("torch."),
        slot_bytes=lambda unit: slot_bytes(unit, on_host=on_host),
        host_bytes=host_bytes,
    )
    return ModelSpec(
        name=name,
        options=options,
        directory=directory,
        model=model,
        recipe=skeletons.recipe,
        units=units,
        profile=profile,
        chunked=chunked,
        state=attributes.restore(),
        replicate=skeletons.replicate,
    )


def _with_adapters(spec: ModelSpec, options: LoadOptions, *, weights: bool) -> ModelSpec:
    """Return `spec` with the adapters of `options` and what they take, measured on another empty model."""
    adapters = find_adapters(options, weights=weights)
    if not adapters:
        return spec
    model, chunked = spec.replicate()
    sizes = measure_adapters(model, adapters, weights=weights)
    activations = [_with_virtual_tokens(spec.profile.activation, sizes)]
    switch = AdapterSwitch(model)
    for name in () if sizes.virtual_tokens else sizes.distinct:
        switch.choose(name)
        forwards = measure_forwards(model, options.prefill_chunk_tokens if chunked else None)
        activations += [fit_activation(forwards)] if forwards else []
    profile = replace(spec.profile, adapter_bytes=sizes.num_bytes, activation=_largest(activations))
    return replace(spec, adapters=adapters, profile=profile)


def _with_virtual_tokens(activation: ActivationProfile, sizes: AdapterSizes) -> ActivationProfile:
    """Return `activation` with the tokens that prompt learning puts in front of each sequence."""
    cache_bytes_per_token = activation.cache_bytes_per_token + activation.window_bytes_per_token
    added = round(sizes.virtual_tokens * (activation.bytes_per_token + cache_bytes_per_token))
    return replace(activation, state_bytes=activation.state_bytes + added)


def _largest(activations: list[ActivationProfile]) -> ActivationProfile:
    names = [field.name for field in fields(ActivationProfile)]
    return ActivationProfile(**{name: max(getattr(each, name) for each in activations) for name in names})
