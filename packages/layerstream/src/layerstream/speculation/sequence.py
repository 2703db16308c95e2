"""One sequence on the target: its tokens, its cache, and sweeps that verify drafted tokens.

`TokenByToken` verifies each token by a forward of its own, and all these forwards share one sweep: every
tensor has the shape that it has in plain generation, so every bit is the same. `AllAtOnce` verifies a chain
by one forward, which computes less on a CPU, but rounds differently.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from transformers import DynamicCache, GenerationConfig, PreTrainedModel

from ..architecture.branching_cache import BranchingCache
from ..architecture.compat import cache_argument, cache_input, drop_last_tokens, keep_past_states
from .forwards import run_forward
from .tree import ROOT, DraftTree

RunTogether = Callable[[Sequence[Callable[[], torch.Tensor]]], list[torch.Tensor]]
"""Runs calls that share sweeps, in order, and returns their results."""

_MODES = ("greedy_search", "sample")
_PER_TOKEN = ("attention_mask", "token_type_ids")
"""Inputs with one entry for each token; new tokens repeat the last entry."""


def can_speculate(
    model: PreTrainedModel,
    ids: torch.Tensor,
    generation_config: GenerationConfig,
    inputs: Mapping[str, Any],
) -> bool:
    """Return whether a request can be decoded with a draft: one sequence, greedy or sampled, with a cache.

    Args:
        model: the target.
        ids: the prompts, `[rows, length]`.
        generation_config: how to continue them.
        inputs: what transformers passes to the first forward.
    """
    cache = cache_input(model, inputs)
    return (
        ids.shape[0] == 1
        and ids.shape[1] > 0
        and generation_config.get_generation_mode() in _MODES
        and not generation_config.return_dict_in_generate
        and bool(inputs.get("use_cache"))
        and isinstance(cache, DynamicCache)
        and type(cache) is DynamicCache
        and not cache.offloading
        and cache.get_seq_length() < ids.shape[1]
    )


def extend_inputs(inputs: Mapping[str, Any], length: int) -> dict[str, Any]:
    """Return `inputs` with attention mask, token types and positions for `length` tokens."""
    extended = dict(inputs)
    for name in _PER_TOKEN:
        value = inputs.get(name)
        if value is not None:
            last = value[..., -1:].expand(*value.shape[:-1], length - value.shape[-1])
            extended[name] = torch.cat([value, last], dim=-1)
    positions = inputs.get("position_ids")
    if positions is not None:
        later = torch.arange(1, length - positions.shape[-1] + 1, device=positions.device)
        extended["position_ids"] = torch.cat([positions, positions[..., -1:] + later], dim=-1)
    return extended


@dataclass(slots=True, kw_only=True)
class TokenByToken:
    """One sequence that is being generated.

    Attributes:
        model: the target.
        ids: its tokens so far, `[1, length]`.
        inputs: what transformers passes from forward to forward: cache, attention mask, positions.
        run_together: lets forwards share a sweep.
    """

    model: PreTrainedModel
    ids: torch.Tensor
    inputs: dict[str, Any]
    run_together: RunTogether
    _branches: dict[int, DynamicCache] = field(default_factory=dict)

    def start(self) -> torch.Tensor:
        """Run the prompt and return the logits after its last token, `[vocabulary]`."""
        cached = self._cache.get_seq_length()
        return self._forward(self.ids, self.ids.shape[1] - cached, is_first=True)[-1]

    def verify(self, tree: DraftTree) -> list[torch.Tensor]:
        """Run a sweep; return the logits after the last token and each drafted one, `[vocabulary]`."""
        if not len(tree):
            return [self._forward(self.ids, 1)[-1]]
        branching = BranchingCache(self.model.config, self._cache)
        self._branches = {ROOT: branching.branch()}
        for number, parent in enumerate(tree.parents):
            self._branches[number] = branching.branch(self._branches[parent])
        return self.run_together(
            [
                partial(self._last_logits, self.with_tokens(tree.tokens_to(number)), branch)
                for number, branch in self._branches.items()
            ]
        )

    def keep(self, way: list[int]) -> None:
        """Keep the last token and the drafted ones with these numbers, and forget the others."""
        if self._branches:
            kept = [self._branches[number] for number in (ROOT, *way)]
            BranchingCache(self.model.config, self._cache).keep(kept)
            self._branches = {}

    def with_tokens(self, tokens: list[int]) -> torch.Tensor:
        """Return the tokens so far with `tokens` after them."""
        return torch.cat([self.ids, self.ids.new_tensor([tokens])], dim=1) if tokens else self.ids

    @property
    def _cache(self) -> DynamicCache:
        cache: DynamicCache = cache_input(self.model, self.inputs)
        return cache

    def _last_logits(self, ids: torch.Tensor, branch: DynamicCache) -> torch.Tensor:
        return self._forward(ids, 1, cache=branch)[-1]

    def _forward(
        self,
        ids: torch.Tensor,
        num_new: int,
        *,
        num_logits: int = 1,
        cache: DynamicCache | None = None,
        is_first: bool = False,
    ) -> torch.Tensor:
        inputs = extend_inputs(self.inputs, ids.shape[1])
        if cache is not None:
            inputs |= cache_argument(self.model, cache)
        return run_forward(self.model, ids, num_new, inputs, num_logits=num_logits, is_first=is_first)


@dataclass(slots=True, kw_only=True)
class AllAtOnce(TokenByToken):
    """One sequence; each chain drafted for it is verified by one forward."""

    _num_drafted: int = 0

    def start(self) -> torch.Tensor:
        """Run the prompt and return the logits after its last token, `[vocabulary]`."""
        keep_past_states(self._cache)
        return super(AllAtOnce, self).start()

    def verify(self, tree: DraftTree) -> list[torch.Tensor]:
        """Run a sweep; return the logits after the last token and each of a chain, `[vocabulary]`."""
        self._num_drafted = num_drafted = len(tree)
        return list(self._forward(self.with_tokens(tree.tokens), 1 + num_drafted, num_logits=1 + num_drafted))

    def keep(self, way: list[int]) -> None:
        """Keep the last token and the drafted ones with these numbers, and forget the others."""
        drop_last_tokens(self._cache, self._num_drafted - len(way))
