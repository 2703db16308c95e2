"""What proposes tokens: n-grams of the text so far, or a model that stays in memory."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from heapq import heappop, heappush
from typing import Protocol

import torch
from transformers import DynamicCache, PreTrainedModel

from ..architecture.branching_cache import BranchingCache
from ..architecture.compat import cache_argument
from .confidence import Confidence
from .forwards import run_forward
from .tree import ROOT, DraftTree

RankTokens = Callable[[torch.Tensor, torch.Tensor, int], list[tuple[int, float]]]
"""Called with the tokens so far `[1, length]`, a draft's logits `[vocabulary]` and a number; returns that
many tokens that may follow, the likeliest first, each with its score: a logit."""


class Draft(Protocol):
    """Proposes how one sequence goes on."""

    def propose(self, ids: Sequence[int], count: int, rank: RankTokens) -> DraftTree:
        """Return at most `count` tokens that may follow `ids`."""


class LookupDraft:
    """Finds the last tokens earlier in the text, and proposes what followed them there.

    Source: prompt lookup decoding, https://github.com/apoorvumang/prompt-lookup-decoding
    """

    LONGEST_MATCH, SHORTEST_MATCH = 4, 2

    def propose(self, ids: Sequence[int], count: int, rank: RankTokens) -> DraftTree:
        """Return what followed the longest match; if several are equally long, the latest."""
        text = list(ids)
        for length in range(self.LONGEST_MATCH, self.SHORTEST_MATCH - 1, -1):
            if len(text) <= length:
                continue
            suffix = text[-length:]
            for start in range(len(text) - length - 1, -1, -1):
                if text[start : start + length] == suffix:
                    return DraftTree.chain(text[start + length : start + length + count])
        return DraftTree()


class ModelDraft:
    """Proposes what a resident model with the same vocabulary would say; one sequence at a time.

    The tree grows where it is likeliest: the next forward always continues the path that the target will most
    probably take. With one token considered at each place, that is a chain. A draft that is rarely wrong
    makes long paths, which branch only where two tokens score almost the same.
    """

    RANKED = 8
    """How many tokens are compared to say how sure the first ones are."""

    def __init__(
        self, model: PreTrainedModel, *, width: int = 1, confidence: Confidence | None = None
    ) -> None:
        """Take a model that stays in memory; its cache is made here.

        Args:
            model: the model.
            width: how many tokens may follow each token.
            confidence: what the drafts of one model have learned together; None begins anew.
        """
        self._model, self._width = model, width
        self._confidence = confidence or Confidence()
        self._cache = BranchingCache(model.config)
        self._cached: list[int] = []
        self._tree = DraftTree()
        self._branches: dict[int, DynamicCache] = {}
        self._scores: dict[int, dict[int, float]] = {}

    @torch.no_grad()
    def propose(self, ids: Sequence[int], count: int, rank: RankTokens) -> DraftTree:
        """Return the model's own continuations."""
        text = list(ids)
        self._learn(text)
        self._keep(text)
        self._tree, self._branches, self._scores = DraftTree(), {}, {}
        tree, branches = self._tree, self._branches
        waiting: list[tuple[float, int, int, int]] = []  # minus a log-probability, order, token, parent
        chance, at = 0.0, ROOT
        logits = self._logits(text, len(text) - len(self._cached))
        self._cached = text
        while True:
            way = self._as_ids(text + tree.tokens_to(at))
            for token, own_chance in self._weigh(at, rank(way, logits, self.RANKED)):
                heappush(waiting, (-chance - own_chance, len(waiting) + len(tree), token, at))
            if not waiting or len(tree) == count:
                return tree
            lost, _, token, parent = heappop(waiting)
            chance, at = -lost, tree.add(token, parent)
            if len(tree) == count:
                return tree
            branches[at] = self._cache.branch(branches.get(parent))
            logits = self._logits(text + tree.tokens_to(at), 1, branches[at])

    def _weigh(self, at: int, ranked: list[tuple[int, float]]) -> list[tuple[int, float]]:
        """Note the scores at a place; return the first tokens, each with the logarithm of its chance."""
        self._scores[at] = scores = dict(ranked)
        chances = self._confidence.log_chances(list(scores.values()))
        return list(zip(scores, chances, strict=True))[: self._width]

    def _learn(self, text: list[int]) -> None:
        """Compare what the last tree made likely with how the text has gone on."""
        at: int | None = ROOT
        for token in text[len(self._cached) :]:
            scores = {} if at is None else self._scores.get(at, {})
            if at is None or token not in scores:
                return
            self._confidence.learn(list(scores.values()), list(scores).index(token))
            at = self._tree.child(at, token)

    def _keep(self, text: list[int]) -> None:
        """Store in the cache what the last tree has already computed of `text`."""
        at, kept = ROOT, []
        for token in text[len(self._cached) : -1]:
            following = self._tree.child(at, token)
            if following is None or following not in self._branches:
                break
            at = following
            kept.append(self._branches[at])
            self._cached.append(token)
        self._cache.keep(kept)

    def _logits(self, text: list[int], num_new: int, branch: DynamicCache | None = None) -> torch.Tensor:
        cache = self._cache.cache if branch is None else branch
        inputs = {**cache_argument(self._model, cache), "use_cache": True, "logits_to_keep": 1}
        return run_forward(self._model, self._as_ids(text), num_new, inputs)[-1]

    def _as_ids(self, tokens: Sequence[int]) -> torch.Tensor:
        return torch.tensor([tokens], device=self._model.device)
