"""Keywords of `from_pretrained` that `load` and `plan` do not have, and what to use in their place.

Room: spec. The table is for messages alone: no keyword in it has an effect.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from typing import NoReturn

from ..errors import UnsupportedOptionError

_PLACES = "the plan decides what lives where: give budget, device or devices"
_UNQUANTIZED = (
    "layerstream runs unquantized weights exactly; load a quantized model with transformers "
    "(layerstream-compare runs both on one prompt)"
)
_SAFETENSORS = "layerstream reads safetensors and nothing else: leave it out"
_PARALLEL = "layerstream does not split tensors: devices=[...] runs one replica on each device"
_KERNELS = "layerstream runs transformers' own layers; for an attention kernel, give attn_implementation"
_NO_EFFECT = "the model is always built empty and its weights are read once: leave it out"
_OWN_FILES = "the weights are read from the checkpoint's files: save them with save_pretrained, and load that"
_REFRESH = "leave it out, and delete the copy in the cache with `hf cache rm` to download it again"
_WORKLOAD = "give workload=Workload(batch_size=..., prompt_tokens=..., new_tokens=...)"
_GENERATION = "give it to generate()"

_INSTEAD: Mapping[str, str] = {
    "torch_dtype": "give dtype",
    "use_auth_token": "give token",
    "use_flash_attention_2": "give attn_implementation='flash_attention_2'",
    "device_map": _PLACES,
    "max_memory": "give budget, for example budget='6 GiB' or MemoryBudget(device=..., host=...)",
    "offload_folder": "weights are read from the checkpoint itself, without a second copy: leave it out",
    "offload_buffers": _PLACES,
    "offload_state_dict": _NO_EFFECT,
    "low_cpu_mem_usage": _NO_EFFECT,
    "disable_mmap": _NO_EFFECT,
    "_fast_init": _NO_EFFECT,
    "output_loading_info": "a tensor that is missing or of another shape is an error: leave it out",
    "ignore_mismatched_sizes": "the weights must fit the model: a tensor of another shape is an error",
    "quantization_config": _UNQUANTIZED,
    "load_in_8bit": _UNQUANTIZED,
    "load_in_4bit": _UNQUANTIZED,
    "gguf_file": "layerstream reads no GGUF: convert it once with transformers and save_pretrained",
    "from_tf": _SAFETENSORS,
    "from_flax": _SAFETENSORS,
    "use_safetensors": _SAFETENSORS,
    "weights_only": _SAFETENSORS,
    "state_dict": _OWN_FILES,
    "key_mapping": _OWN_FILES,
    "force_download": _REFRESH,
    "resume_download": "downloads are always resumed: leave it out",
    "proxies": "set the environment variable HTTPS_PROXY",
    "mirror": "set the environment variable HF_ENDPOINT",
    "tqdm_class": "set the environment variable HF_HUB_DISABLE_PROGRESS_BARS=1 for no progress bars",
    "code_revision": "code comes from the revision that the weights come from: give revision",
    "tp_plan": _PARALLEL,
    "tp_size": _PARALLEL,
    "device_mesh": _PARALLEL,
    "distributed_config": _PARALLEL,
    "adapter_kwargs": "give adapter='path', or adapter={'name': 'path'} to name it",
    "adapter_name": "give adapter='path', or adapter={'name': 'path'} to name it",
    "generation_config": "set streamed.model.generation_config, or give it to generate()",
    "use_kernels": _KERNELS,
    "kernel_config": _KERNELS,
    "fusion_config": _KERNELS,
    "experts_implementation": "experts run as transformers chooses for the model: leave it out",
    "allow_all_kernels": "attention kernels come from kernels-community only: leave it out",
    "model_kwargs": "give the options themselves",
    "use_cache": _GENERATION,
    "max_new_tokens": f"{_GENERATION}; to reserve memory, {_WORKLOAD}",
    "max_length": f"{_GENERATION}; to reserve memory, {_WORKLOAD}",
    "batch_size": _WORKLOAD,
    "prompt_tokens": _WORKLOAD,
    "new_tokens": _WORKLOAD,
}


def refuse_keywords(
    function: str, given: Iterable[str], known: Iterable[str], *, instead: Mapping[str, str] | None = None
) -> None:
    """Refuse keywords that a function does not have; do nothing if there are none.

    Args:
        function: the function's name.
        given: the keywords.
        known: the keywords that it has, for a suggestion.
        instead: what to use in place of a keyword, where the function has advice of its own.

    Raises:
        UnsupportedOptionError: with `names`; the message says what to use instead.
    """
    names = tuple(given)
    if names:
        _refuse(function, names, list(known), {**_INSTEAD, **(instead or {})})


def _refuse(function: str, names: tuple[str, ...], known: list[str], instead: Mapping[str, str]) -> NoReturn:
    advice = "; ".join(f"{name}: {instead.get(name) or _suggestion(name, known)}" for name in names)
    raise UnsupportedOptionError(f"{function}() does not take {', '.join(names)}. {advice}", names=names)


def _suggestion(name: str, known: list[str]) -> str:
    similar = difflib.get_close_matches(name, known, n=1)
    if similar:
        return f"did you mean {similar[0]}?"
    return f"unknown; if it is a setting of the model's config, give config={{{name!r}: ...}}"
