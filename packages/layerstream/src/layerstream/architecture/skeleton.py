"""Build the model empty: transformers' own modules on the meta device.

Room: architecture. Knows configs and model classes; reads no weight and allocates no memory for one.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable
from pathlib import Path

import torch
from transformers import AutoConfig, AutoModelForCausalLM, GenerationConfig, PreTrainedConfig, PreTrainedModel

from ..errors import PlanError, UnsupportedFormatError, UnsupportedModelError
from ..spec.profiles import StoredTensor
from . import compat


def read_config(directory: Path, *, trust_remote_code: bool = False) -> PreTrainedConfig:
    """Return the config of the checkpoint in `directory`.

    Raises:
        UnsupportedModelError: the model type is unknown here, or its code is not part of transformers and was not allowed.
        UnsupportedFormatError: the checkpoint is quantized.
    """
    try:
        config = AutoConfig.from_pretrained(directory, trust_remote_code=trust_remote_code)
    except (ValueError, KeyError, OSError, ImportError) as error:
        hint = (
            "; its code lies in the repository: pass trust_remote_code=True if you trust it"
            if "trust_remote_code" in str(error)
            else "; is config.json complete, and transformers new enough?"
        )
        raise UnsupportedModelError(
            f"the config in {directory} cannot be used: {_first_line(error)}{hint}"
        ) from error
    return check_config(config, trust_remote_code=trust_remote_code)


def check_config(config: PreTrainedConfig, *, trust_remote_code: bool = False) -> PreTrainedConfig:
    """Return the config the causal model is built from, or refuse it.

    Raises:
        UnsupportedModelError: there is no causal language model for it.
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
            f"this checkpoint is quantized ({kind}); layerstream runs unquantized weights exactly: use the original fp16 or bf16 "
            "checkpoint, or load this one with transformers"
        )
    has_code = trust_remote_code and "AutoModelForCausalLM" in (getattr(config, "auto_map", None) or {})
    if not has_code and not compat.has_causal_class(config):
        code = "AutoModelForCausalLM" in (getattr(config, "auto_map", None) or {})
        advice = (
            "its code lies in the repository: pass trust_remote_code=True if you trust it"
            if code
            else "only these can be streamed"
        )
        raise UnsupportedModelError(
            f"transformers has no causal language model for model type {config.model_type!r}; {advice}"
        )
    return compat.causal_config(config)


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def resolve_dtype(
    config: PreTrainedConfig, requested: str | torch.dtype, stored: Iterable[StoredTensor] = ()
) -> torch.dtype:
    """Return the run dtype: the wish, or for `"auto"` the config's, or else that of the first stored floating tensor.

    Raises:
        PlanError: when the wish names no floating dtype of torch.
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
            f"dtype {requested!r} is not one to run in: use 'auto', 'float16', 'bfloat16' or 'float32'"
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
        UnsupportedModelError: transformers cannot build it (a wrong config, an attention implementation that is not there).
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
        raise UnsupportedModelError(
            f"transformers cannot build this {config.model_type} model: {_first_line(error)}"
        ) from error
    return model.eval()


def load_generation_config(model: PreTrainedModel, directory: Path) -> None:
    """Give `model` the generation settings of its checkpoint, as `from_pretrained` does."""
    if not model.can_generate():
        return
    try:
        model.generation_config = GenerationConfig.from_pretrained(directory)
    except OSError:
        # No generation_config.json: transformers derives one from config.json.
        model.generation_config = GenerationConfig.from_pretrained(
            directory, config_file_name="config.json", _from_model_config=True
        )


def materialize_buffers(model: PreTrainedModel, device: torch.device, loaded: set[str]) -> None:
    """Compute what no checkpoint holds (rotary tables, masks), on `device`, by transformers' own initialization.

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
