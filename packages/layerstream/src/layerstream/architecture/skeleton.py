"""Build the empty model: transformers' own modules on the meta device.

Room: architecture. Knows configs and model classes. It reads no weight and allocates no memory for one.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel

from ..errors import PlanError, UnsupportedFormatError, UnsupportedModelError, first_line
from ..spec.options import LoadOptions
from ..spec.profiles import StoredTensor
from . import compat

_CODE_IN_REPOSITORY = "its code is in the repository: pass trust_remote_code=True if you trust it"


_ARGUMENTS = {
    "attn_implementation": "attn_implementation",
    "dtype": "dtype",
    "torch_dtype": "dtype",
    "name_or_path": "the model's name",
}
"""Settings of a config that have an argument of their own."""


def read_config(directory: Path, options: LoadOptions) -> PreTrainedConfig:
    """Return the config of the checkpoint in `directory`, with what `options.config` replaces in it.

    A config in `options.config` is used as `from_pretrained(config=...)` uses it, and a mapping as
    `from_pretrained(**settings)` does.

    Raises:
        UnsupportedModelError: the model type is unknown, or its code is not part of transformers and was not
            allowed.
        UnsupportedFormatError: the checkpoint is quantized.
        PlanError: `options.config` is neither a config nor a mapping, or names a setting that the config does
            not have.
    """
    config = options.config
    if isinstance(config, PreTrainedConfig):
        config = copy.deepcopy(config)
        # Code from a repository is looked up there.
        config.name_or_path = str(directory)
    elif config is None:
        config = _stored_config(directory, options, {})
    elif isinstance(config, Mapping):
        _check_settings(config, _stored_config(directory, options, {}))
        config = _stored_config(directory, options, config)
    else:
        raise PlanError(
            f"config is a {type(config).__name__}, but must be a mapping of settings or a transformers "
            "config such as AutoConfig.from_pretrained returns"
        )
    return check_config(config, trust_remote_code=options.trust_remote_code)


def _stored_config(directory: Path, options: LoadOptions, settings: Mapping[str, Any]) -> PreTrainedConfig:
    try:
        config: PreTrainedConfig = AutoConfig.from_pretrained(
            directory,
            subfolder=options.subfolder,
            trust_remote_code=options.trust_remote_code,
            **copy.deepcopy(dict(settings)),
        )
    except (ValueError, KeyError, OSError, ImportError, TypeError, AttributeError) as error:
        needs_code = "trust_remote_code" in str(error)
        hint = _CODE_IN_REPOSITORY if needs_code else "is config.json complete, and transformers new enough?"
        if settings:
            hint = f"config replaces {', '.join(settings)}"
        raise UnsupportedModelError(
            f"the config in {directory / options.subfolder} cannot be used: {first_line(error)}; {hint}"
        ) from error
    return config


def _check_settings(settings: Mapping[str, Any], config: PreTrainedConfig) -> None:
    if own := [name for name in settings if name in _ARGUMENTS]:
        raise PlanError(f"config cannot hold {own[0]}: give {_ARGUMENTS[own[0]]} itself")
    unknown = [name for name in settings if name.startswith("_") or not hasattr(config, name)]
    if unknown:
        parts = [name for name in config.sub_configs if getattr(config, name, None) is not None]
        nested = f"; settings of a part go into its own mapping: {', '.join(parts)}" if parts else ""
        raise PlanError(
            f"config holds {', '.join(unknown)}, which the config of this {config.model_type} model does not "
            f"have; check the spelling{nested}"
        )


def check_config(config: PreTrainedConfig, *, trust_remote_code: bool = False) -> PreTrainedConfig:
    """Return the config that the causal model is built from.

    Raises:
        UnsupportedModelError: transformers has no causal language model for it.
        UnsupportedFormatError: it describes quantized weights.
    """
    quantization = getattr(config, "quantization_config", None) or getattr(
        config.get_text_config(decoder=True), "quantization_config", None
    )
    if quantization is not None:
        kind = (
            quantization.get("quant_method")
            if isinstance(quantization, dict)
            else getattr(quantization, "quant_method", "?")
        )
        raise UnsupportedFormatError(
            f"this checkpoint is quantized ({kind}); layerstream runs unquantized weights exactly: use the "
            "original fp16 or bf16 checkpoint, or load this one with transformers"
        )
    has_code = "AutoModelForCausalLM" in (getattr(config, "auto_map", None) or {})
    if not (has_code and trust_remote_code) and not compat.has_causal_class(config):
        advice = _CODE_IN_REPOSITORY if has_code else "only such models can be streamed"
        raise UnsupportedModelError(
            f"transformers has no causal language model for model type {config.model_type!r}; {advice}"
        )
    return compat.causal_config(config)


def resolve_dtype(
    config: PreTrainedConfig, requested: str | torch.dtype, stored: Iterable[StoredTensor] = ()
) -> torch.dtype:
    """Return the run dtype: the requested one; for `"auto"` the config's, else the first floating tensor's.

    Raises:
        PlanError: the request does not name one of torch's floating dtypes.
    """
    if isinstance(requested, torch.dtype):
        dtype: object = requested
    elif requested == "auto":
        dtype = config.dtype or next((t.dtype for t in stored if "float" in t.dtype), "float32")
    else:
        dtype = requested
    if isinstance(dtype, str):
        dtype = getattr(torch, dtype.removeprefix("torch."), None)
    if dtype not in (torch.float16, torch.bfloat16, torch.float32, torch.float64):
        raise PlanError(
            f"a model cannot run in dtype {requested!r}: use 'auto', 'float16', 'bfloat16' or 'float32'"
        )
    return dtype


def build_skeleton(
    config: PreTrainedConfig,
    dtype: torch.dtype,
    *,
    attn_implementation: str | None = None,
    trust_remote_code: bool = False,
) -> PreTrainedModel:
    """Return the model in evaluation mode with every parameter and buffer on the meta device, untied.

    Raises:
        UnsupportedModelError: transformers cannot build it, for example because the attention implementation
            is missing.
    """
    options = {} if attn_implementation is None else {"attn_implementation": attn_implementation}
    config = copy.deepcopy(config)
    try:
        with compat.building_on_meta():
            model = AutoModelForCausalLM.from_config(
                config, dtype=dtype, trust_remote_code=trust_remote_code, **options
            )
    except (
        ValueError,
        TypeError,
        AttributeError,
        KeyError,
        RuntimeError,
        ImportError,
        AssertionError,
        ZeroDivisionError,
    ) as error:
        with_attention = f" with attn_implementation={attn_implementation!r}" if options else ""
        raise UnsupportedModelError(
            f"transformers cannot build this {config.model_type} model{with_attention}: {first_line(error)}"
        ) from error
    if attn_implementation is not None and not compat.has_attention_kernel(model):
        raise UnsupportedModelError(
            f"attn_implementation={attn_implementation!r} is a kernel of the Hub that could not be loaded; "
            "it needs the package kernels: pip install kernels"
        )
    return model.eval()


def load_generation_config(model: PreTrainedModel, directory: Path, subfolder: str = "") -> None:
    """Set the generation settings of the checkpoint in `directory` on `model`, as `from_pretrained` does."""
    if model.can_generate():
        model.generation_config = compat.generation_config_of(directory, subfolder)


def materialize_buffers(model: PreTrainedModel, device: torch.device, loaded: set[str]) -> None:
    """Compute what no checkpoint holds (rotary tables, masks) on `device`, by transformers' initialization.

    Parameters and buffers named in `loaded` stay on the meta device.
    """
    for module, name, tensor in list(compat.non_persistent_buffers(model)):
        module._buffers[name] = torch.empty_like(tensor, device=device)
    state = model.state_dict(keep_vars=True)
    for name in state.keys() - loaded:
        _materialize(model, name, device)
    compat.initialize_unloaded(model, (tensor for name, tensor in state.items() if name in loaded))


def _materialize(model: PreTrainedModel, name: str, device: torch.device) -> None:
    module_name, _, attribute = name.rpartition(".")
    module = model.get_submodule(module_name)
    tensor = getattr(module, attribute)
    if not isinstance(tensor, torch.Tensor):
        return
    empty = torch.empty_like(tensor, device=device)
    if attribute in module._buffers:
        module._buffers[attribute] = empty
    else:
        module._parameters[attribute] = torch.nn.Parameter(empty, requires_grad=empty.is_floating_point())
