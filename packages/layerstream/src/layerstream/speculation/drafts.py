"""What proposes tokens: n-grams of the text so far, or a model that stays in memory."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from heapq import heapify, heappop, heappush
from itertools import count as count_up
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


class GoOn(Protocol):
    """Adds the likeliest further tokens to what was proposed, until there are `size` or it `is_over`.

    It may run in another thread than the draft's methods, but not at the same time.
    """

    def __call__(self, size: int, rank: RankTokens, is_over: Callable[[], bool]) -> None:
        """Draft on."""


class Draft(Protocol):
    """Proposes how one sequence goes on."""

    @property
    def go_on(self) -> GoOn | None:
        """Drafts on while a sweep runs; None where drafting takes no time worth hiding."""

    def ready(self, ids: Sequence[int]) -> int:
        """Return how many tokens that may follow `ids` are drafted already."""

    def propose(self, ids: Sequence[int], count: int, rank: RankTokens) -> DraftTree:
        """Return at most `count` tokens that may follow `ids`."""


class LookupDraft:
    """Finds the last tokens earlier in the text, and proposes what followed them there.

    Source: prompt lookup decoding, https://github.com/apoorvumang/prompt-lookup-decoding
    """

    LONGEST_MATCH, SHORTEST_MATCH = 4, 2

    go_on = None

    def ready(self, ids: Sequence[int]) -> int:
        """Return 0: nothing is kept."""
        return 0

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

    While the target verifies a tree, it may grow on. What grew after the text that the target chose is the
    beginning of the next tree.
    """

    RANKED = 8
    """How many tokens are compared to say how sure the first ones are."""

    def __init__(
        self,
        model: PreTrainedModel,
        *,
        width: int = 1,
        confidence: Confidence | None = None,
        around: Callable[[], AbstractContextManager[object]] = nullcontext,
    ) -> None:
        """Take a model that stays in memory; its cache is made here.

        Args:
            model: the model.
            width: how many tokens may follow each token.
            confidence: what the drafts of one model have learned together; None begins anew.
            around: a context in which the model computes: a stream of its own, say.
        """
        self._model, self._width, self._around = model, width, around
        self._confidence = confidence or Confidence()
        self._cache = BranchingCache(model.config)
        self._text: list[int] = []
        self._num_stored = 0
        self._orders = count_up()
        self._begin()

    def _begin(self) -> None:
        """Drop the tree, and start an empty one after the text."""
        self._tree = DraftTree()
        self._chances: dict[int, float] = {ROOT: 0.0}
        self._branches: dict[int, DynamicCache] = {}
        self._scores: dict[int, dict[int, float]] = {}
        self._waiting: list[_Candidate] = []
        self._unexpanded: int | None = ROOT

    def ready(self, ids: Sequence[int]) -> int:
        """Return how many tokens that may follow `ids` are drafted already."""
        with torch.no_grad(), self._around():
            self._follow(list(ids))
        return len(self._tree)

    def propose(self, ids: Sequence[int], count: int, rank: RankTokens) -> DraftTree:
        """Return the model's own continuations."""
        self.ready(ids)
        self._grow(count, rank)
        return self._tree.first(count)

    def go_on(self, size: int, rank: RankTokens, is_over: Callable[[], bool]) -> None:
        """Add the likeliest further tokens to the tree, up to `size` in all, until it `is_over`."""
        self._grow(size, rank, is_over)

    def _grow(self, size: int, rank: RankTokens, is_over: Callable[[], bool] = lambda: False) -> None:
        """Add the likeliest tokens until the tree has `size` of them, or until it `is_over`."""
        with torch.no_grad(), self._around():
            while len(self._tree) < size and not is_over():
                if self._unexpanded is not None:
                    self._expand(self._unexpanded, rank)
                    self._unexpanded = None
                if not self._waiting:
                    return
                best = heappop(self._waiting)
                self._unexpanded = number = self._tree.add(best.token, best.parent)
                self._chances[number] = best.chance

    def _expand(self, at: int, rank: RankTokens) -> None:
        """Compute what may follow a token."""
        way = self._text + self._tree.tokens_to(at)
        if at == ROOT:
            logits = self._logits(way, len(way) - self._num_stored)
            self._num_stored = len(way)
        else:
            before = self._branches.get(self._tree.parents[at])
            self._branches[at] = branch = self._cache.branch(before)
            logits = self._logits(way, 1, branch)
        self._scores[at] = scores = dict(rank(self._as_ids(way), logits, self.RANKED))
        chances = self._confidence.log_chances(list(scores.values()))
        for token, own in list(zip(scores, chances, strict=True))[: self._width]:
            lost = -self._chances[at] - own
            heappush(self._waiting, _Candidate(lost=lost, order=next(self._orders), token=token, parent=at))

    def _follow(self, text: list[int]) -> None:
        """Take `text`, which continues the earlier one; keep what the tree already has after it."""
        if text == self._text:
            return
        new = text[len(self._text) :]
        self._learn(new)
        at, way = ROOT, []
        for token in new:
            following = self._tree.child(at, token)
            if following is None or following not in self._branches:
                break
            at = following
            way.append(at)
        self._cache.keep([self._branches[number] for number in way])
        self._num_stored += len(way)
        self._text = text
        if len(way) == len(new):
            self._go_to(at)
        else:
            self._begin()

    def _learn(self, new: list[int]) -> None:
        """Compare what the tree made likely with how the text has gone on."""
        at: int | None = ROOT
        for token in new:
            scores = {} if at is None else self._scores.get(at, {})
            if at is None or token not in scores:
                return
            self._confidence.learn(list(scores.values()), list(scores).index(token))
            at = self._tree.child(at, token)

    def _go_to(self, root: int) -> None:
        """Keep what follows the token with this number."""
        self._tree, numbers = self._tree.below(root)
        gone = self._chances[root]
        self._chances = {numbers[each]: self._chances[each] - gone for each in numbers}
        self._scores = {numbers[each]: self._scores[each] for each in numbers if each in self._scores}
        self._branches = {
            numbers[each]: branch
            for each, branch in self._branches.items()
            if each in numbers and each != root
        }
        self._waiting = [
            replace(each, lost=each.lost + gone, parent=numbers[each.parent])
            for each in self._waiting
            if each.parent in numbers
        ]
        heapify(self._waiting)
        self._unexpanded = None if self._unexpanded is None else numbers.get(self._unexpanded)

    def _logits(self, text: list[int], num_new: int, branch: DynamicCache | None = None) -> torch.Tensor:
        cache = self._cache.cache if branch is None else branch
        inputs = {**cache_argument(self._model, cache), "use_cache": True, "logits_to_keep": 1}
        return run_forward(self._model, self._as_ids(text), num_new, inputs)[-1]

    def _as_ids(self, tokens: Sequence[int]) -> torch.Tensor:
        return torch.tensor([tokens], device=self._model.device)


@dataclass(frozen=True, slots=True, kw_only=True, order=True)
class _Candidate:
    """A token that may be added to the tree; the smallest is the likeliest.

    Attributes:
        lost: minus the logarithm of the chance that the text goes on as far as this token.
        order: of several with the same chance, the first comes first.
        token: its id.
        parent: the number of the token that it follows.
    """

    lost: float
    order: int
    token: int
    parent: int

    @property
    def chance(self) -> float:
        """The logarithm of its chance."""
        return -self.lost
