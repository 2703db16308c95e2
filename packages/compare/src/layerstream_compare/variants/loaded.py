"""What every weights variant gives back, and the loading that the variants of plain transformers share.

Worker's side. It knows transformers' public classes; it does not know what is measured.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
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
"""Called with `prompt_ids` (int64, shape [1, tokens]), `messages` (what they were made of, or None) and generate's own
arguments; returns the prompt and the answer, shape [1, tokens]."""


@dataclass(slots=True, kw_only=True)
class Loaded:
    """A variant that is ready to run.

    Attributes:
        case: what was asked.
        model: transformers' model.
        tokenizer: its tokenizer.
        generate: how this variant generates; None is `model.generate`.
        describe: the variant's own facts, asked for after it ran.
        release: gives everything back.
        held_beside_bytes: memory for weights that no module of the model refers to (a streamed model's slots).
        device_held_beside_bytes: what of that is on an accelerator.
        timeline: tells what moves and what waits, of a variant that streams.
    """

    case: Case
    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    generate: Generate | None = None
    describe: Callable[[], dict[str, Any]] = field(default=dict)
    release: Callable[[], None] = field(default=lambda: None)
    held_beside_bytes: int = 0
    device_held_beside_bytes: int = 0
    timeline: LiveTimeline | None = None

    def facts(self) -> dict[str, Any]:
        """Return what really runs: device, dtype, attention implementation and the variant's own facts."""
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
        """Give everything back."""
        self.release()


def settle_device(case: Case) -> torch.device:
    """Return the device that the case asks for; `auto` is the accelerator if there is one, else the CPU."""
    if case.device != "auto":
        return torch.device(case.device)
    return torch.accelerator.current_accelerator(check_available=True) or torch.device("cpu")


def settle_dtype(case: Case) -> str | torch.dtype:
    """Return the dtype as `from_pretrained` takes it.

    Raises:
        ValueError: torch has no dtype of that name.
    """
    if case.dtype == "auto":
        return "auto"
    found = getattr(torch, case.dtype, None)
    if not isinstance(found, torch.dtype):
        raise ValueError(f"dtype is {case.dtype!r}; give auto, float16, bfloat16 or float32")
    return found


def run_dtype(case: Case) -> torch.dtype:
    """Return the dtype that the unquantized weights will have; the checkpoint's own for `auto`, read from its config."""
    dtype = settle_dtype(case)
    found = AutoConfig.from_pretrained(case.model).dtype if isinstance(dtype, str) else dtype
    return found if isinstance(found, torch.dtype) else torch.float32


def load_with_transformers(case: Case, *, path: str | Path | None = None, **arguments: Any) -> Loaded:
    """Load the case's model by `from_pretrained`, all of it on the case's device.

    Args:
        case: model, dtype, device and attention.
        path: another directory to load from than the case's (a quantized copy).
        arguments: further ones of `from_pretrained`, such as `quantization_config`.
    """
    device = settle_device(case)
    if device.type != "cpu" or "quantization_config" in arguments:
        arguments["device_map"] = {"": str(device)}
    implementation = implementation_of(case)
    if implementation is not None:
        arguments["attn_implementation"] = implementation
    model = AutoModelForCausalLM.from_pretrained(path or case.model, dtype=settle_dtype(case), **arguments)
    return Loaded(case=case, model=model.eval(), tokenizer=AutoTokenizer.from_pretrained(case.model))


def unquantized_modules(model: torch.nn.Module) -> list[str]:
    """Return the matrices that were left as they were, block numbers as `*`: `lm_head`, `model.embed_tokens`, ...

    A module counts when it has a plain floating `weight` of two dimensions or more.
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
