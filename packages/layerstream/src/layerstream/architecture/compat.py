"""Every private or version-dependent name of transformers that layerstream uses, with version and reason.

Room: architecture. Tested with transformers 5.20, 5.23 and 5.24. When an upgrade breaks something, it breaks
here.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import (
    AutoModelForCausalLM,
    DynamicCache,
    GenerationConfig,
    PreTrainedConfig,
    PreTrainedModel,
    StaticCache,
)
from transformers import initialization as init

# 5.x: cache layers. A cache layer of our own derives from the mixin and wraps a dynamic layer.
from transformers.cache_utils import CacheLayerMixin as CacheLayerMixin
from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer, StaticLayer
from transformers.conversion_mapping import get_model_conversion_mapping

# 5.x: the operations that fuse experts; layerstream recognises them and reads each expert straight into its
# place.
from transformers.core_model_loading import Concatenate as Concatenate
from transformers.core_model_loading import MergeModulelist as MergeModulelist

# 5.x: the order in which tensors reach a converter (`dot_natural_key`); stacked experts depend on it.
from transformers.core_model_loading import WeightConverter as WeightConverter
from transformers.core_model_loading import WeightRenaming, build_glob_alternation, dot_natural_key
from transformers.core_model_loading import rename_source_key as rename_source_key
from transformers.generation.utils import GENERATION_MODES_MAPPING
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

try:
    # 5.23 added this placeholder for layers without a cache of their own; before, such layers had no entry in
    # the cache.
    from transformers.cache_utils import DummyLayer
except ImportError:
    DummyLayer = None

natural_key = dot_natural_key


@contextmanager
def building_on_meta() -> Iterator[None]:
    """Build modules without memory and without tying weights, as `PreTrainedModel.get_init_context` does."""
    with init.no_tie_weights(), torch.device("meta"), init.meta_device_safe_creation_ops():
        yield


def has_causal_class(config: PreTrainedConfig) -> bool:
    """Return whether transformers itself has a causal language model for this config."""
    return type(config) in AutoModelForCausalLM._model_mapping


def causal_config(config: PreTrainedConfig) -> PreTrainedConfig:
    """Return the config that the causal model is built from, a composite's text part for example.

    `AutoModelForCausalLM` swaps them silently; here it must happen before the dtype is resolved.
    """
    if not has_causal_class(config):
        return config
    model_class = AutoModelForCausalLM._model_mapping[type(config)]
    if isinstance(model_class, (list, tuple)):
        return config
    text_class = config.sub_configs.get("text_config")
    if text_class is not None and getattr(model_class, "config_class", None) == text_class:
        return config.get_text_config()
    return config


def has_attention_kernel(model: PreTrainedModel) -> bool:
    """Return whether the model's attention kernel is loaded; True if it takes none from the Hub.

    5.20 tries to load a kernel once in a process: a second model is built without it and without an error.
    """
    name = model.config._attn_implementation or ""
    return "/" not in name or name in ALL_ATTENTION_FUNCTIONS.valid_keys()


def generation_config_of(directory: Path, subfolder: str = "") -> GenerationConfig:
    """Return the generation settings of the checkpoint in `directory`, as `from_pretrained` does."""
    try:
        return GenerationConfig.from_pretrained(directory, subfolder=subfolder)
    except OSError:
        # Without generation_config.json, transformers derives the settings from config.json.
        return GenerationConfig.from_pretrained(
            directory, config_file_name="config.json", subfolder=subfolder, _from_model_config=True
        )


def is_marked_as_block(model: PreTrainedModel, module: nn.Module) -> bool:
    """Return whether transformers marks `module` as a decoder block of `model`."""
    names = model._no_split_modules or ()
    return isinstance(module, GradientCheckpointingLayer) or type(module).__name__ in names


def dtype_policy(model: PreTrainedModel, dtype: torch.dtype) -> Callable[[str], torch.dtype | None]:
    """Return a function from a parameter's name to the dtype the model forces (`keep_in_fp32`), or None."""
    plan = model._get_dtype_plan(dtype)
    if not plan:
        return lambda name: None
    pattern, by_group, _ = build_glob_alternation(list(plan))

    def policy(name: str) -> torch.dtype | None:
        match = pattern.search(name)
        return None if match is None or match.lastgroup is None else plan[by_group[match.lastgroup]]

    return policy


def weight_transforms(model: PreTrainedModel) -> tuple[list[WeightRenaming], list[WeightConverter]]:
    """Return transformers' renamings and converters from checkpoint names to this model's names, in order."""
    mapping = get_model_conversion_mapping(model)
    renamings = [entry for entry in mapping if isinstance(entry, WeightRenaming)]
    converters = [entry for entry in mapping if isinstance(entry, WeightConverter)]
    return renamings, converters


def tied_names(model: PreTrainedModel) -> dict[str, str]:
    """Return `{tied name: name of the tensor it shares}` as transformers computed it at construction."""
    return dict(getattr(model, "all_tied_weights_keys", {}))


def ignored_patterns(model: PreTrainedModel) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Return the regular expressions of the names that `from_pretrained` accepts as (missing, unexpected)."""
    unexpected = set(model._keys_to_ignore_on_load_unexpected or ())
    names = [name for name, _ in model.named_buffers()]
    # Old checkpoints store these buffers for each layer; transformers 5 computes them itself.
    if any(name.endswith("rotary_emb.inv_freq") for name in names):
        unexpected.add(r"rotary_emb\.inv_freq")
    if any(name.endswith("position_ids") for name in names):
        unexpected.add(r"(^|\.)position_ids$")
    return tuple(model._keys_to_ignore_on_load_missing or ()), tuple(unexpected)


def non_persistent_buffers(model: PreTrainedModel) -> Iterator[tuple[nn.Module, str, torch.Tensor]]:
    """Yield (module, attribute, tensor) of every buffer that no checkpoint holds."""
    for module in model.modules():
        for name in module._non_persistent_buffers_set:
            tensor = module._buffers.get(name)
            if tensor is not None:
                yield module, name, tensor


def initialize_unloaded(model: PreTrainedModel, loaded: Iterator[torch.Tensor]) -> None:
    """Run transformers' own initialization on what no checkpoint provides: rotary tables, masks, buffers.

    Args:
        model: the model.
        loaded: the tensors that the checkpoint provides; they are marked, so that nothing is computed for
            them.
    """
    for tensor in loaded:
        tensor._is_hf_initialized = True  # type: ignore[attr-defined]
    model.initialize_weights()


def never_compile(model: PreTrainedModel) -> Callable[[], None]:
    """Keep `generate()` from compiling the model by itself; return a function that undoes this.

    It would do so on an accelerator with a static cache.

    transformers asks this private method (5.20 to 5.24). A device map with weights on disk would also do, but
    `load_adapter` would then leave the adapter on disk too.
    """
    name = "_valid_auto_compile_criteria"
    model.__dict__[name] = lambda *_, **__: False

    def undo() -> None:
        model.__dict__.pop(name, None)

    return undo


def keeps_state(model: PreTrainedModel) -> bool:
    """Return whether the model keeps recurrent, convolutional or compressed state besides keys and values."""
    return bool(model._is_stateful)


def cache_keyword(model: PreTrainedModel) -> str | None:
    """Return the name of the forward's `Cache` argument and of its output's attribute; None without one.

    Through 5.23 it is `past_key_values`. 5.24 calls it `cache` and warns about the old name. Code from a
    repository keeps the name it was written with.
    """
    parameters = inspect.signature(type(model).forward).parameters
    for name in ("cache", "past_key_values"):
        # In every version, XLM and Flaubert have a `cache` that is a dictionary of tensors.
        if name in parameters and "dict" not in str(parameters[name].annotation):
            return name
    return None


def cache_argument(model: PreTrainedModel, cache: Any) -> dict[str, Any]:
    """Return the keyword argument that passes `cache` to the forward of a model that takes one."""
    keyword = cache_keyword(model)
    assert keyword is not None, f"{type(model).__name__} takes no cache"
    return {keyword: cache}


def cache_input(model: PreTrainedModel, inputs: Mapping[str, Any]) -> Any:
    """Return the cache among a forward's keyword arguments; None when there is none."""
    keyword = cache_keyword(model)
    return None if keyword is None else inputs.get(keyword)


def cache_of(model: PreTrainedModel, output: Any) -> Any:
    """Return the cache in the output of the model's forward; None when there is none."""
    keyword = cache_keyword(model)
    return None if keyword is None else getattr(output, keyword, None)


def is_plain_cache_layer(layer: Any) -> bool:
    """Return whether a cache layer holds keys and values and nothing else, or nothing at all."""
    return type(layer) in (DynamicLayer, DynamicSlidingWindowLayer) or is_placeholder(layer)


def is_placeholder(layer: Any) -> bool:
    """Return whether a cache layer stands for a layer of the model that has no cache of its own."""
    return DummyLayer is not None and type(layer) is DummyLayer


def held_tokens(cache: Any, new_tokens: int) -> int | None:
    """Return the tokens of each sequence that a cache holds on the device after `new_tokens` more.

    A cache of fixed size holds all it can from the start. Nothing is copied from the device to find out.

    Returns:
        The tokens; None for a cache whose memory is elsewhere or not as the profile has it: offloaded,
        quantized, paged, of one model alone, or one of layerstream's own.
    """
    if type(cache) not in (DynamicCache, StaticCache) or cache.offloading:
        return None
    if type(cache) is StaticCache:
        lengths = (layer.max_cache_len for layer in cache.layers if isinstance(layer, StaticLayer))
        return max(lengths, default=new_tokens)
    for layer in cache.layers:
        if isinstance(layer, DynamicLayer):
            return int(layer.get_seq_length()) + new_tokens
        if isinstance(layer, CacheLayerMixin):
            return None
    return new_tokens


def keep_past_states(cache: Any) -> None:
    """Make a cache keep what `drop_last_tokens` may need again: sliding windows and recurrent states.

    5.23: such layers forget what is outside their window with each forward unless asked not to.
    """
    keep = getattr(cache, "activate_past_recording", None)
    if keep is not None:
        keep()


def drop_last_tokens(cache: Any, num_tokens: int) -> None:
    """Remove the last tokens from a cache; with 0, let it forget what is outside its windows.

    5.23: `crop` takes minus the number of tokens to remove, and 0 is such a number. Before, 0 was the length
    to keep.
    """
    is_used = cache.get_seq_length() > 0
    if is_used and (num_tokens or hasattr(cache, "activate_past_recording")):
        cache.crop(-num_tokens)


def decode_plainly(
    model: PreTrainedModel, *args: Any, generation_config: GenerationConfig, **kwargs: Any
) -> Any:
    """Decode as `generate()` does without `custom_generate`, from inside one.

    5.20 to 5.24: the decoding methods are private, and a mapping names that of each generation mode.
    """
    method = GENERATION_MODES_MAPPING[generation_config.get_generation_mode()]
    return getattr(type(model), method)(model, *args, generation_config=generation_config, **kwargs)


def before_generation(model: PreTrainedModel, call: Callable[..., object]) -> Callable[[], None]:
    """Call `call` in every `generate()` when its lengths are known and nothing has been computed.

    5.20 to 5.24: `generate()` then prepares its cache, with the arguments `generation_config`,
    `model_kwargs`, `batch_size` (of the prompts) and `max_cache_length`.

    Args:
        model: the model; only this instance is changed.
        call: called with these arguments by keyword.

    Returns:
        Undoes it.
    """
    name = "_prepare_cache_for_generation"
    prepare = getattr(model, name)
    signature = inspect.signature(prepare)
    needed = ("generation_config", "model_kwargs", "batch_size", "max_cache_length")

    def watched(*args: Any, **kwargs: Any) -> Any:
        given = signature.bind(*args, **kwargs).arguments
        if all(key in given for key in needed):
            call(**{key: given[key] for key in needed})
        return prepare(*args, **kwargs)

    model.__dict__[name] = watched
    return lambda: model.__dict__.pop(name, None)


# State that transformers keeps outside the cache; generate() calls that interleave each need their own copy.
STATE_OF_MODEL = ("_previous_max_cache_length",)
"""generate() never makes a static cache shorter than the previous one."""

STATE_OF_CONFIG = ("_experts_implementation_internal",)
"""generate() uses another experts kernel for decoding on accelerators, and restores the first at its end."""

STATE_OF_ROTARY = ("max_seq_len_cached",)
"""A rotary embedding that scales with the length remembers the longest; its frequencies are buffers."""


def remembers_lengths(module: nn.Module) -> bool:
    """Return whether a rotary embedding depends on the longest text it has seen."""
    has_state = all(name in module.__dict__ for name in STATE_OF_ROTARY)
    return has_state and "dynamic" in str(getattr(module, "rope_type", ""))
