"""Adapters of peft for tiny checkpoints, saved as files with random weights.

Test kit. Knows peft and the modules of a model, and no layerstream class.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from peft import (
    IA3Config,
    LoraConfig,
    PeftConfig,
    PeftModel,
    PrefixTuningConfig,
    PromptTuningConfig,
    get_peft_model,
)
from torch import nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

TASK = "CAUSAL_LM"

IGNORED_WARNINGS = (
    # peft 0.21 asks for properties that transformers 5.23 and 5.24 renamed.
    "ignore:`is_gradient_checkpointing` is deprecated:FutureWarning",
    "ignore:.*past_key_values.*:FutureWarning",
    # what peft says of the plain model too
    "ignore:.*tie_word_embeddings.*:UserWarning",
    "ignore:.*tied.*:UserWarning",
    "ignore:.*save_embedding_layers.*:UserWarning",
    "ignore:.*fan_in_fan_out.*:UserWarning",
    "ignore:Position ids are not supported:UserWarning",
    "ignore:Adapter first was active which is now deleted:UserWarning",
)


def _lora(model: PreTrainedModel, **settings: Any) -> PeftConfig:
    return LoraConfig(
        **{"r": 4, "target_modules": "all-linear", "init_lora_weights": False, "task_type": TASK, **settings}
    )


def _blocks_linears(model: PreTrainedModel) -> list[str]:
    head = model.get_output_embeddings()
    named = {name: module for name, module in model.named_modules() if module is not head}
    kinds = (nn.Linear, Conv1D)
    return sorted({name.rpartition(".")[2] for name, module in named.items() if isinstance(module, kinds)})


def _name_of(model: PreTrainedModel, wanted: nn.Module) -> str:
    return next(name for name, module in model.named_modules() if module is wanted).rpartition(".")[2]


def _edges(model: PreTrainedModel) -> list[str]:
    return [_name_of(model, model.get_input_embeddings()), _name_of(model, model.get_output_embeddings())]


def _ia3(model: PreTrainedModel) -> PeftConfig:
    names = _blocks_linears(model)
    return IA3Config(target_modules=names, feedforward_modules=names[:1], task_type=TASK)


def _ranks(model: PreTrainedModel) -> PeftConfig:
    first, *_ = _blocks_linears(model)
    return _lora(model, rank_pattern={first: 2}, alpha_pattern={first: 3}, use_rslora=True)


def _saved_head(model: PreTrainedModel) -> PeftConfig:
    return _lora(model, modules_to_save=[_edges(model)[1]])


KINDS: dict[str, Callable[[PreTrainedModel], PeftConfig]] = {
    "lora": _lora,
    "dora": lambda model: _lora(model, use_dora=True),
    "rank patterns": _ranks,
    "modules_to_save": _saved_head,
    "embedding and head": lambda model: _lora(model, target_modules=_edges(model)),
    "ia3": _ia3,
    "prompt tuning": lambda _: PromptTuningConfig(num_virtual_tokens=3, task_type=TASK),
    "prefix tuning": lambda _: PrefixTuningConfig(num_virtual_tokens=3, task_type=TASK),
}
"""The configuration of each kind of adapter for a model."""

EXPERTS = ("gate_up_proj", "down_proj")


def experts_lora(model: PreTrainedModel) -> PeftConfig:
    """Return a LoRA on the fused experts of a mixture."""
    names = [name for name, _ in model.named_parameters() if name.endswith(EXPERTS)]
    assert names, f"{type(model).__name__} has no fused experts"
    endings = sorted({".".join(name.split(".")[-3:]) for name in names})
    return _lora(model, target_modules=[], target_parameters=endings)


def save_adapter(
    model: PreTrainedModel, configure: Callable[[PreTrainedModel], PeftConfig], path: Path, seed: int = 7
) -> Path:
    """Put an adapter with random weights on `model`, a plain one that is not used further, and save it."""
    torch.manual_seed(seed)
    wrapped = get_peft_model(model, configure(model))
    with torch.no_grad():
        for name, parameter in wrapped.named_parameters():
            if parameter.requires_grad and "magnitude" not in name:
                parameter.add_(0.3 * torch.randn(parameter.shape).to(parameter))
    wrapped.save_pretrained(path)
    return path


def with_adapter(model: PreTrainedModel, path: Path) -> PeftModel:
    """Return `model` with the adapter in `path`, by peft."""
    return PeftModel.from_pretrained(model, path).eval()


def with_adapters(model: PreTrainedModel, paths: Mapping[str, Path]) -> PeftModel:
    """Return `model` with several adapters by name, by peft; the first is active."""
    (first, path), *others = paths.items()
    wrapped = PeftModel.from_pretrained(model, path, adapter_name=first).eval()
    for name, path in others:
        wrapped.load_adapter(path, name)
    return wrapped


def bytes_of_adapters(wrapped: PeftModel, model: PreTrainedModel) -> int:
    """Return the bytes of the parameters that `wrapped` has, and `model`, the same model alone, has not."""
    own = {name for name, _ in model.named_parameters(remove_duplicate=False)}
    total = 0
    for name, parameter in wrapped.named_parameters():
        plain = name.replace(".base_layer", "").replace(".original_module", "")
        inner = (plain.removeprefix("base_model.model."), plain.removeprefix("base_model."))
        total += 0 if own & set(inner) else parameter.nbytes
    return total
