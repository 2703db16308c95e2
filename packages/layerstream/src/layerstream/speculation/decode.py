"""The loop of speculative decoding: draft, verify in one sweep, keep what the target itself would have said.

It runs inside transformers' `generate()`, as its `custom_generate`: prompts, logits processors, stopping
criteria and streamers are transformers' own.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from time import perf_counter
from typing import Any

import torch
from transformers import GenerationConfig, LogitsProcessorList, PreTrainedModel, StoppingCriteriaList
from transformers.generation.streamers import BaseStreamer

from ..architecture.compat import decode_plainly
from ..planning.drafting import MOST_AHEAD
from ..spec.speculation import VerifiedTokens
from .ahead import WaitShare, drafting_on
from .choice import Chooser
from .depth import DepthControl
from .drafts import Draft
from .sequence import AllAtOnce, RunTogether, TokenByToken, can_speculate
from .statistics import Statistics
from .tree import ROOT, DraftTree

PLAIN_KEYWORDS = frozenset({"custom_generate", "assistant_model", "prompt_lookup_num_tokens"})
"""Arguments of `generate()` that choose another decoding method."""


class Speculator:
    """A `custom_generate` for `generate()`: decodes one sequence with a draft, any other request plainly.

    Attributes:
        statistics: what was drafted and accepted.
        on_verified: called after each sweep with what it verified; None calls nothing.
    """

    def __init__(
        self,
        make_draft: Callable[[], Draft],
        statistics: Statistics,
        *,
        exact_ties: bool = True,
        fixed_tokens: int | None = None,
        close: Callable[[], None] | None = None,
    ) -> None:
        """Prepare to decode.

        Args:
            make_draft: makes the draft of one sequence.
            statistics: counts what happens.
            exact_ties: verify token by token, bit for bit as plain generation; else all tokens at once.
            fixed_tokens: draft this many tokens for each sweep; None measures how many are fastest.
            close: frees the draft.
        """
        self.statistics = statistics
        self.on_verified: Callable[[VerifiedTokens], object] | None = None
        self._make_draft = make_draft
        self._sequence_class = TokenByToken if exact_ties else AllAtOnce
        self._depth = DepthControl(fixed_tokens=fixed_tokens)
        self._waits = WaitShare()
        self._close = close

    def reset_report(self) -> None:
        """Count from zero."""
        self.statistics = Statistics(draft=self.statistics.draft)

    def _count(self, judged: int, verified: VerifiedTokens, draft_s: float) -> None:
        self.statistics.count(verified, judged=judged, draft_s=draft_s)
        if self.on_verified is not None:
            self.on_verified(verified)

    def close(self) -> None:
        """Free the draft."""
        if self._close is not None:
            self._close()

    def __call__(
        self,
        model: PreTrainedModel,
        input_ids: torch.Tensor,
        logits_processor: LogitsProcessorList,
        stopping_criteria: StoppingCriteriaList,
        generation_config: GenerationConfig,
        *,
        run_together: RunTogether,
        waited_s: Callable[[], float],
        synced_gpus: bool = False,
        streamer: BaseStreamer | None = None,
        **model_kwargs: Any,
    ) -> Any:
        """Decode as transformers' `generate()` would, with fewer sweeps; `generate()` calls this.

        `run_together` lets forwards share a sweep; `waited_s` returns the seconds that the model has waited
        for weights so far. The other arguments are those of transformers' own decoding methods.
        """
        if not can_speculate(model, input_ids, generation_config, model_kwargs):
            return decode_plainly(
                model,
                input_ids,
                logits_processor,
                stopping_criteria,
                generation_config=generation_config,
                synced_gpus=synced_gpus,
                streamer=streamer,
                **model_kwargs,
            )
        chooser = Chooser(
            logits_processor, do_sample=bool(generation_config.do_sample), device=input_ids.device
        )
        decoding = _Decoding(
            sequence=self._sequence_class(
                model=model, ids=input_ids, inputs=model_kwargs, run_together=run_together
            ),
            chooser=chooser,
            draft=self._make_draft(),
            depth=self._depth,
            waits=self._waits,
            waited_s=waited_s,
            count=self._count,
            is_over=lambda ids: bool(stopping_criteria(ids, None).all()),
            on_tokens=None if streamer is None else streamer.put,
            most_length=generation_config.max_length,
        )
        try:
            decoding.run()
        finally:
            chooser.finish(decoding.sequence.ids.shape[1])
        if streamer is not None:
            streamer.end()
        return decoding.sequence.ids


@dataclass(slots=True, kw_only=True)
class _Decoding:
    """One call of `generate()`.

    Attributes:
        sequence: what is generated.
        chooser: chooses its tokens.
        draft: proposes them.
        depth: chooses how many are drafted.
        waits: how much of the sweeps' time is waiting.
        waited_s: returns the seconds of waiting so far.
        count: called after each sweep with the number of places judged, what was verified, and the seconds of
            drafting.
        is_over: whether a sequence of tokens `[1, length]` is complete.
        on_tokens: called with each sweep's new tokens `[number]`.
        most_length: the sequence has at most this many tokens.
    """

    sequence: TokenByToken
    chooser: Chooser
    draft: Draft
    depth: DepthControl
    waits: WaitShare
    waited_s: Callable[[], float]
    count: Callable[[int, VerifiedTokens, float], None]
    is_over: Callable[[torch.Tensor], bool]
    on_tokens: Callable[[torch.Tensor], None] | None
    most_length: int

    def run(self) -> None:
        """Generate until the sequence is over."""
        over = self._append([self.chooser.choose(self.sequence.ids, self.sequence.start())])
        while not over:
            over = self._sweep()

    def _sweep(self) -> bool:
        """Draft, verify and append; return whether the sequence is over."""
        start_s = perf_counter()
        tree, ready = self._propose()
        drafted_s, waited_s = perf_counter(), self.waited_s()
        with self._drafting_on(tree):
            logits = self.sequence.verify(tree)
        way, chosen = self._walk(tree, logits)
        self.sequence.keep(way)
        draft_s, sweep_s = drafted_s - start_s, perf_counter() - drafted_s
        self.waits.record(wait_s=self.waited_s() - waited_s, sweep_s=sweep_s)
        self.depth.record(
            tokens=len(tree),
            ready=ready,
            depth=tree.depth,
            judged=tree.judged(way),
            accepted=len(way),
            draft_s=draft_s,
            sweep_s=sweep_s,
        )
        before = self.sequence.ids.shape[1]
        over = self._append(chosen)
        grown = self.sequence.ids.shape[1] - before
        self.count(
            tree.judged(way),
            VerifiedTokens(drafted=len(tree), ahead=ready, accepted=len(way), tokens=grown),
            draft_s,
        )
        return over

    def _propose(self) -> tuple[DraftTree, int]:
        """Return what to verify, and how many of its tokens were drafted during the last sweep."""
        ids = self.sequence.ids[0].tolist()
        ready = self.draft.ready(ids)
        count = self.depth.choose(self._room, ready=ready)
        if not count:
            return DraftTree(), 0
        tree = self.draft.propose(ids, count, self.chooser.rank)
        return tree, min(ready, len(tree))

    @property
    def _room(self) -> int:
        """How many drafted tokens the sequence can still use: the target adds one of its own."""
        return self.most_length - self.sequence.ids.shape[1] - 1

    def _drafting_on(self, tree: DraftTree) -> AbstractContextManager[None]:
        """Return a context in which the draft goes on, if that pays."""
        more = min(MOST_AHEAD, self._room - tree.depth)
        go_on = self.draft.go_on
        if go_on is None or not len(tree) or more <= 0 or not self.waits.is_large:
            return nullcontext()
        return drafting_on(go_on, len(tree) + more, self.chooser.rank)

    def _walk(self, tree: DraftTree, logits: list[torch.Tensor]) -> tuple[list[int], list[int]]:
        """Follow the target's choices through the tree; return accepted numbers and all tokens chosen."""
        way: list[int] = []
        chosen: list[int] = []
        at: int | None = ROOT
        while at is not None:
            chosen.append(self.chooser.choose(self.sequence.with_tokens(chosen), logits[at + 1]))
            at = tree.child(at, chosen[-1])
            if at is not None:
                way.append(at)
        return way, chosen

    def _append(self, chosen: list[int]) -> bool:
        """Append tokens until the sequence is over; return whether it is."""
        sequence = self.sequence
        new: list[int] = []
        over = False
        for token in chosen:
            new.append(token)
            over = self.is_over(sequence.with_tokens(new))
            if over:
                break
        tokens = sequence.ids.new_tensor(new)
        sequence.ids = torch.cat([sequence.ids, tokens[None]], dim=1)
        if self.on_tokens is not None:
            self.on_tokens(tokens.cpu())
        return over
