"""Sweep: 64 ragged prompts in shared sweeps, packed and unpacked, against one after another, all streamed.

One after another, every request reads all streamed weights for each of its tokens. In shared sweeps the
weights are read only as often as for the longest request alone. Packing also turns 64 products with one row
into one with 64.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from time import perf_counter
from typing import Any

import torch
from block_plans import load_planned, open_blocks, plan_blocks, settled_bytes
from common import (
    Outcome,
    arguments,
    drop_page_cache,
    environment,
    interleave,
    median,
    median_ratio,
    publish,
    verdict,
    work_directory,
)
from random_llama import HALF_GB, SMALL, write_llama

import layerstream as ls

TARGET = 20.0
SHORTEST, LONGEST = 8, 96
NOTES = [
    "All blocks and the head are streamed from a cold disk, with two slots. Greedy, no end token: every "
    "request generates all of its tokens. One after another: transformers' generate() on the streamed "
    "model, for the shortest, a middle and the longest prompt in every round (every request alone costs as "
    "many sweeps); the rate is that of the three together. Packed and unpacked: generate_many for all "
    "prompts. Rates count new tokens, prefill included. 'Of one after another' is the median of the rounds' "
    "own ratios. The runs that count bytes come first and serve as the round that is not counted.",
    "Weights read: bytes of streamed units in one run, counted when the last prefetch has ended. The "
    "embedding's rows, which differ by prompt, are not included. The answers of the unpacked run are "
    "compared with those of generate() alone, token by token.",
]


def main() -> int:
    options = arguments(__doc__)
    count, new_tokens = (8, 4) if options.quick else (64, 32)
    rounds = 1 if options.quick else options.rounds or 3
    outcome = Outcome(
        theme="sweep",
        title=f"{count} ragged prompts, {new_tokens} new tokens each, all streamed",
        columns=("way", "tokens/s", "of one after another", "seconds for all", "sweeps", "weights read"),
        notes=list(NOTES),
    )
    with work_directory(options) as work:
        facts = environment(work)
        directory = write_llama(work / "model", SMALL if options.quick else HALF_GB)
        _measure(outcome, directory, ragged_requests(count, new_tokens), rounds)
    return publish(outcome, options, facts)


def ragged_requests(count: int, new_tokens: int) -> list[ls.GenerationRequest]:
    """Return prompts of random tokens whose lengths are spread evenly over 8 to 96, shuffled."""
    generator = torch.Generator().manual_seed(0)
    lengths = (
        torch.linspace(SHORTEST, LONGEST, count)
        .round()
        .int()[torch.randperm(count, generator=generator)]
        .tolist()
    )
    prompts = [torch.randint(3, 500, (length,), generator=generator).tolist() for length in lengths]
    return [ls.GenerationRequest(prompt=prompt, max_new_tokens=new_tokens) for prompt in prompts]


def _measure(outcome: Outcome, directory: Path, requests: list[ls.GenerationRequest], rounds: int) -> None:
    new_tokens = requests[0].max_new_tokens
    workload = ls.Workload(batch_size=len(requests), prompt_tokens=LONGEST, new_tokens=new_tokens)
    plan = plan_blocks(open_blocks(directory), 0, workload)
    outcome.notes.append("The plan:\n\n```\n" + plan.explain().replace(str(directory), "model") + "\n```")
    by_length = sorted(requests, key=lambda request: len(request.prompt))
    sample = [by_length[0], by_length[len(by_length) // 2], by_length[-1]]
    with load_planned(directory, plan) as streamed:
        outcome.notes.append(
            "The micro-batches:\n\n```\n" + ls.plan_requests(streamed, requests).explain() + "\n```"
        )
        ways: dict[str, Callable[[], list[tuple[int, ...]]]] = {
            "one after another": lambda: [_alone(streamed, request) for request in sample],
            "unpacked": lambda: [each.tokens for each in ls.generate_many(streamed, requests, packed=False)],
            "packed": lambda: [each.tokens for each in ls.generate_many(streamed, requests)],
        }
        longest = _counted(streamed, lambda: [_alone(streamed, sample[-1])])
        counts = {name: _counted(streamed, ways[name]) for name in ("unpacked", "packed")}
        _check_answers(counts["unpacked"]["answers"], requests, sample, ways["one after another"]())
        cases = {name: lambda way=way: _seconds_per_token(directory, way) for name, way in ways.items()}
        figures = interleave(cases, rounds=rounds, warmups=0)
    _report(outcome, figures, counts, longest, len(requests) * new_tokens)


def _alone(streamed: ls.StreamedModel, request: ls.GenerationRequest) -> tuple[int, ...]:
    ids = torch.tensor([list(request.prompt)])
    settings: dict[str, Any] = {
        "max_new_tokens": request.max_new_tokens,
        "do_sample": False,
        "pad_token_id": 0,
    }
    rows = streamed.generate(input_ids=ids, attention_mask=torch.ones_like(ids), **settings)
    return tuple(rows[0, ids.shape[1] :].tolist())


def _seconds_per_token(directory: Path, way: Callable[[], list[tuple[int, ...]]]) -> float:
    drop_page_cache(directory)
    start_s = perf_counter()
    answers = way()
    return (perf_counter() - start_s) / sum(len(answer) for answer in answers)


def _counted(streamed: ls.StreamedModel, way: Callable[[], list[tuple[int, ...]]]) -> dict[str, Any]:
    """Return the bytes of weights and the sweeps that one run took, with its answers."""
    before = settled_bytes(streamed)
    streamed.reset_report()
    answers = way()
    return {
        "answers": answers,
        "sweeps": streamed.report().sweeps,
        "read_bytes": settled_bytes(streamed) - before,
    }


def _check_answers(
    unpacked: Sequence[tuple[int, ...]],
    requests: Sequence[ls.GenerationRequest],
    sample: Sequence[ls.GenerationRequest],
    alone: Sequence[tuple[int, ...]],
) -> None:
    for request, answer in zip(sample, alone, strict=True):
        assert unpacked[requests.index(request)] == answer, "an unpacked answer differs from the answer alone"


def _report(
    outcome: Outcome,
    figures: dict[str, list[float]],
    counts: dict[str, dict[str, Any]],
    longest: dict[str, Any],
    tokens: int,
) -> None:
    alone = figures["one after another"]
    outcome.figures = {
        "seconds_per_token": figures,
        "longest_alone": {k: longest[k] for k in ("sweeps", "read_bytes")},
    }
    for name, seconds in figures.items():
        ratio = median_ratio(alone, seconds)
        count = counts.get(name)
        moved = ("", "") if count is None else (str(count["sweeps"]), f"{count['read_bytes']:,} B")
        total_s = f"{median(seconds) * tokens:.1f}" + ("" if count else " (computed)")
        outcome.rows.append((name, f"{1 / median(seconds):.2f}", f"{ratio:.2f}", total_s, *moved))
        outcome.figures[name] = {
            "ratio": ratio,
            **({} if count is None else {k: count[k] for k in ("sweeps", "read_bytes")}),
        }
    outcome.rows.append(
        ("the longest alone", "", "", "", str(longest["sweeps"]), f"{longest['read_bytes']:,} B")
    )
    outcome.verdicts.append(
        verdict("packed, of one after another", outcome.figures["packed"]["ratio"], TARGET, at_most=False)
    )
    for name, count in counts.items():
        share = count["read_bytes"] / longest["read_bytes"]
        outcome.verdicts.append(verdict(f"weights read {name}, of the longest request alone", share, 1.0))


if __name__ == "__main__":
    raise SystemExit(main())
