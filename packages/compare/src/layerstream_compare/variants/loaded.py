"""The result of loading any weights variant, and the loading code that plain transformers variants share.

Runs in the worker. It does not know what is measured.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from ..case import Case
from .attention import forced_backend, implementation_of
from .live_timeline import LiveTimeline

Generate = Callable[..., torch.Tensor]
"""Called with `prompt_ids` (int64, shape [1, tokens]), `messages` (the source of those ids, or None) and
generate's own arguments; returns prompt and answer, shape [1, tokens]."""


@dataclass(slots=True, kw_only=True)
class Loaded:
    """A variant that is ready to run.

    Attributes:
        case: the case it was loaded for.
        model: transformers' model.
        tokenizer: its tokenizer.
        generate: how this variant generates; None is `model.generate`.
        describe: returns the variant's own facts; called after the measured generation.
        release: frees everything the variant holds.
        extra_held_bytes: memory for weights that no module of the model refers to (a streamed model's slots).
        extra_device_held_bytes: part of `extra_held_bytes` on an accelerator.
        beyond_plan: returns a context in which the model may run longer texts than it was planned for.
        timeline: reports what a streamed model moves and waits for; None for other variants.
    """

    case: Case
    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    generate: Generate | None = None
    describe: Callable[[], dict[str, Any]] = field(default=dict)
    release: Callable[[], None] = field(default=lambda: None)
    extra_held_bytes: int = 0
    extra_device_held_bytes: int = 0
    beyond_plan: Callable[[], AbstractContextManager[None]] = field(default=nullcontext)
    timeline: LiveTimeline | None = None

    def facts(self) -> dict[str, Any]:
        """Return device, dtype and attention implementation, and the variant's own facts."""
        common = {
            "device": str(self.model.device),
            "dtype": str(self.model.dtype).removeprefix("torch."),
            "attn_implementation": self.model.config._attn_implementation,
        }
        return common | self.describe()

    def context(self) -> AbstractContextManager[None]:
        """Return the context in which every forward of this variant runs."""
        return forced_backend(self.case)

    def close(self) -> None:
        """Free everything the variant holds."""
        self.release()


def resolve_device(case: Case) -> torch.device:
    """Return the case's device; `auto` is the accelerator if there is one, else the CPU."""
    if case.device != "auto":
        return torch.device(case.device)
    return torch.accelerator.current_accelerator(check_available=True) or torch.device("cpu")


def resolve_dtype(case: Case) -> str | torch.dtype:
    """Return the case's dtype in the form that `from_pretrained` accepts.

    Raises:
        ValueError: torch has no dtype of that name.
    """
    if case.dtype == "auto":
        return "auto"
    dtype = getattr(torch, case.dtype, None)
    if not isinstance(dtype, torch.dtype):
        raise ValueError(f"dtype is {case.dtype!r}; give auto, float16, bfloat16 or float32")
    return dtype


def run_dtype(case: Case) -> torch.dtype:
    """Return the dtype of the unquantized weights; for `auto`, the one in the checkpoint's config."""
    dtype = resolve_dtype(case)
    if isinstance(dtype, str):
        dtype = AutoConfig.from_pretrained(case.model).dtype
    return dtype if isinstance(dtype, torch.dtype) else torch.float32


def load_with_transformers(case: Case, *, path: str | Path | None = None, **arguments: Any) -> Loaded:
    """Load the whole model with `from_pretrained` onto the case's device.

    Args:
        case: gives model, dtype, device and attention.
        path: directory to load from instead of the case's model (a quantized copy).
        arguments: further arguments of `from_pretrained`, such as `quantization_config`.
    """
    device = resolve_device(case)
    if device.type != "cpu" or "quantization_config" in arguments:
        arguments["device_map"] = {"": str(device)}
    implementation = implementation_of(case)
    if implementation is not None:
        arguments["attn_implementation"] = implementation
    model = AutoModelForCausalLM.from_pretrained(path or case.model, dtype=resolve_dtype(case), **arguments)
    return Loaded(case=case, model=model.eval(), tokenizer=AutoTokenizer.from_pretrained(case.model))


def unquantized_modules(model: torch.nn.Module) -> list[str]:
    """Return modules with unquantized matrices, block numbers as `*`: `lm_head`, `model.embed_tokens`, ...

    A module counts if it has a plain floating-point `weight` of two or more dimensions.
    """
    names = dict.fromkeys(
        ".".join("*" if part.isdigit() else part for part in name.split("."))
        for name, module in model.named_modules()
        if _has_plain_matrix(module)
    )
    return list(names)


def _has_plain_matrix(module: torch.nn.Module) -> bool:
    weight = getattr(module, "weight", None)
    return (
        isinstance(weight, torch.Tensor)
        and type(weight) in (torch.Tensor, torch.nn.Parameter)
        and not hasattr(weight, "__tensor_flatten__")
        and weight.is_floating_point()
        and weight.dim() > 1
    )
