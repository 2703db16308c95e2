"""Compute scores with transformers alone: the prefix, then each suffix on a copy of the prefix's cache.

Test kit. `layerstream.score` must equal this bit for bit. Uses transformers' public classes only; runs one
request after another.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence

import torch
from torch import nn
from transformers import DynamicCache, PreTrainedModel
from transformers.utils import ModelOutput

from .compare import cache_argument

Ids = Sequence[int]
IdRequest = tuple[Ids, Sequence[Ids]]


def requests(vocab_size: int = 120) -> list[IdRequest]:
    """Return three requests of different lengths: suffixes of one token or several, one short prefix."""
    generator = torch.Generator().manual_seed(3)

    def ids(length: int) -> list[int]:
        return torch.randint(5, vocab_size, (length,), generator=generator).tolist()

    return [
        (ids(9), [ids(3), ids(1), ids(6)]),
        (ids(1), [ids(2), ids(4)]),
        (ids(14), [ids(1), ids(1), ids(5), ids(2)]),
    ]


def backbone(model: PreTrainedModel) -> nn.Module:
    """Return the model without its head."""
    return model.model if model.base_model is model else model.base_model


def _logprobs(logits: torch.Tensor, targets: Ids) -> tuple[torch.Tensor, bool]:
    ids = torch.tensor(targets)
    values = logits.float().log_softmax(dim=-1).gather(1, ids[:, None])[:, 0]
    return values, bool((logits.argmax(dim=-1) == ids).all())


def _forward(model: nn.Module, ids: Ids, cache: DynamicCache, **options: int) -> ModelOutput:
    return model(input_ids=torch.tensor([ids]), use_cache=True, **cache_argument(model, cache), **options)


@torch.no_grad()
def logprobs_in_two_steps(model: PreTrainedModel, request: IdRequest) -> list[tuple[torch.Tensor, bool]]:
    """Return (log-probabilities, greedy) of each suffix: float32 (tokens,)."""
    prefix, suffixes = request
    cache = DynamicCache(config=model.config)
    first = _forward(model, prefix, cache, logits_to_keep=1).logits[0]
    scores = []
    for suffix in suffixes:
        values, is_greedy = _logprobs(first, suffix[:1])
        if len(suffix) > 1:
            own = copy.deepcopy(cache)
            logits = _forward(model, suffix[:-1], own).logits[0]
            later, later_greedy = _logprobs(logits, suffix[1:])
            values, is_greedy = torch.cat([values, later]), is_greedy and later_greedy
        scores.append((values, is_greedy))
    return scores


@torch.no_grad()
def head_in_two_steps(model: PreTrainedModel, head: nn.Linear, request: IdRequest) -> list[torch.Tensor]:
    """Return the head's outputs for each suffix's last token, with every position through the final norm."""
    prefix, suffixes = request
    cache = DynamicCache(config=model.config)
    _forward(backbone(model), prefix, cache)
    outputs = []
    for suffix in suffixes:
        own = copy.deepcopy(cache)
        hidden = _forward(backbone(model), suffix, own).last_hidden_state
        outputs.append(head(hidden[:, -1].to(head.weight.dtype))[0])
    return outputs


@torch.no_grad()
def logprobs_whole(model: PreTrainedModel, request: IdRequest) -> list[tuple[torch.Tensor, bool]]:
    """Return (log-probabilities, greedy) of each suffix, computed with its prefix as one text."""
    prefix, suffixes = request
    scores = []
    for suffix in suffixes:
        ids = torch.tensor([[*prefix, *suffix[:-1]]])
        logits = model(input_ids=ids, use_cache=False, logits_to_keep=len(suffix)).logits[0]
        scores.append(_logprobs(logits, suffix))
    return scores


@torch.no_grad()
def head_whole(model: PreTrainedModel, head: nn.Linear, request: IdRequest) -> list[torch.Tensor]:
    """Return the head's outputs for each suffix's last token, computed with its prefix as one text."""
    prefix, suffixes = request
    return [
        head(
            backbone(model)(input_ids=torch.tensor([[*prefix, *suffix]]), use_cache=False)
            .last_hidden_state[:, -1]
            .to(head.weight.dtype)
        )[0]
        for suffix in suffixes
    ]
