"""Every private or version-dependent name of transformers that layerstream uses, with the reason.

Room: architecture. Written for transformers 5.20 to 5.x; when an upgrade breaks something, it breaks here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import nn
from transformers import AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel
from transformers import initialization as init
from transformers.conversion_mapping import get_model_conversion_mapping

# 5.x: the classes behind fused experts; recognised so that each expert is read straight into its place.
from transformers.core_model_loading import Concatenate as Concatenate
from transformers.core_model_loading import MergeModulelist as MergeModulelist

# 5.x: the order in which shards' tensors reach a converter; stacked experts depend on it.
from transformers.core_model_loading import WeightConverter as WeightConverter
from transformers.core_model_loading import WeightRenaming, build_glob_alternation, dot_natural_key
from transformers.core_model_loading import rename_source_key as rename_source_key
from transformers.modeling_layers import GradientCheckpointingLayer as GradientCheckpointingLayer

natural_key = dot_natural_key


@contextmanager
def building_on_meta() -> Iterator[None]:
    """Make modules without memory and without tying weights, as `from_pretrained` does (`PreTrainedModel.get_init_context`)."""
    with init.no_tie_weights(), torch.device("meta"), init.meta_device_safe_creation_ops():
        yield


def has_causal_class(config: PreTrainedConfig) -> bool:
    """Return whether transformers itself has a causal language model for this config."""
    return type(config) in AutoModelForCausalLM._model_mapping


def causal_config(config: PreTrainedConfig) -> PreTrainedConfig:
    """Return the config that the causal model is built from: a composite's text part where the class asks for that.

    `AutoModelForCausalLM` does the same swap silently; here it must happen before the dtype is resolved.
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


def dtype_policy(model: PreTrainedModel, dtype: torch.dtype) -> Callable[[str], torch.dtype | None]:
    """Return a function from a parameter's name to the dtype the model insists on (`keep_in_fp32`), or None."""
    plan = model._get_dtype_plan(dtype)
    if not plan:
        return lambda name: None
    pattern, by_group, _ = build_glob_alternation(list(plan))

    def policy(name: str) -> torch.dtype | None:
        match = pattern.search(name)
        return None if match is None or match.lastgroup is None else plan[by_group[match.lastgroup]]

    return policy


def weight_transforms(model: PreTrainedModel) -> tuple[list[WeightRenaming], list[WeightConverter]]:
    """Return transformers' own renamings and converters from checkpoint names to this model's names, in order."""
    mapping = get_model_conversion_mapping(model)
    renamings = [entry for entry in mapping if isinstance(entry, WeightRenaming)]
    converters = [entry for entry in mapping if isinstance(entry, WeightConverter)]
    return renamings, converters


def tied_names(model: PreTrainedModel) -> dict[str, str]:
    """Return `{tied name: name of the tensor it shares}` as transformers computed it at construction."""
    return dict(getattr(model, "all_tied_weights_keys", {}))


def ignored_patterns(model: PreTrainedModel) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Return the regular expressions of names that may be (missing, unexpected), as `from_pretrained` has them."""
    unexpected = set(model._keys_to_ignore_on_load_unexpected or ())
    names = [name for name, _ in model.named_buffers()]
    # Old checkpoints store these buffers for each layer; transformers 5 makes them itself.
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
    """Run transformers' own initialization on all that is not marked as loaded: rotary tables, masks, missing buffers.

    `loaded` are the tensors that a checkpoint provides; they are marked so that nothing is computed for them.
    """
    for tensor in loaded:
        tensor._is_hf_initialized = True  # type: ignore[attr-defined]
    model.initialize_weights()


def keeps_state(model: PreTrainedModel) -> bool:
    """Return whether some state of the model is no cache of keys and values: recurrent, convolutional, compressed."""
    return bool(model._is_stateful)
