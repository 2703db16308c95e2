"""Scoring: many requests of five suffixes in one sweep, against one after another, everything streamed.

One after another, every forward reads all streamed weights: one for the prefix, and one for each suffix on
its cache. In one sweep they are read once for all. The second part does the same behind prefixes of 4,096
tokens and compares the memory with its prediction.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from block_plans import load_planned, open_blocks, plan_blocks
from common import (
    MIB,
    Outcome,
    arguments,
    drop_page_cache,
    environment,
    interleave,
    median,
    median_ratio,
    publish,
    timed,
    verdict,
    work_directory,
)
from measured_scoring import measure, random_requests
from random_llama import HALF_GB, SMALL, LlamaShape, write_llama
from transformers import DynamicCache

import layerstream as ls

# 11 MB: the 4,096 tokens in each of 100 prefixes take the time
LONG = LlamaShape(
    hidden_size=256, intermediate_size=704, num_blocks=4, num_heads=4, num_kv_heads=2, vocab_size=4000
)
SAMPLE = 2
NOTES = [
    "All blocks and the head are streamed from a cold disk, with two slots. One after another: transformers "
    "on the streamed model, a prefix with a cache of its own and each suffix on a copy of it, for two "
    "requests in every round (every request alone costs as many sweeps); the time for all requests is "
    "computed from those two. In one sweep: `score` for all requests. 'Of one after another' is the median "
    "of the rounds' own ratios, in requests per second. The log-probabilities of the two ways are compared: "
    "equal.",
    "Weights read: bytes of streamed units in one run, counted when the last prefetch has ended.",
    "4,096 tokens: a much smaller model, so that one pass over all prefixes takes minutes. A process of its "
    "own opens the model, scores once, and ends. Peak: VmHWM, reset before the model was opened, minus the "
    "resident memory at that time. Predicted: the ledger's fixed lines, the allowance for runtime and "
    "allocator among them, and the two lines of the sweep.",
]


def main() -> int:
    options = arguments(__doc__)
    requests, rounds = (8, 1) if options.quick else (100, options.rounds or 3)
    outcome = Outcome(
        theme="scoring",
        title=f"{requests} requests of 5 suffixes each, all streamed",
        columns=("way", "requests/s", "of one after another", "seconds for all", "sweeps", "weights read"),
        notes=list(NOTES),
    )
    with work_directory(options) as work:
        facts = environment(work)
        spec = {"requests": requests, "suffixes": 5, "prefix_tokens": 128, "suffix_tokens": 12}
        directory = write_llama(work / "model", SMALL if options.quick else HALF_GB)
        _short(outcome, directory, spec, rounds)
        shape = replace(LONG, num_blocks=2) if options.quick else LONG
        long = {**spec, "model": str(write_llama(work / "long", shape)), "room_for": max(4, requests // 2)}
        _long(outcome, {**long, "prefix_tokens": 1024 if options.quick else 4096 - 18})
    return publish(outcome, options, facts)


def _short(outcome: Outcome, directory: Path, spec: dict[str, Any], rounds: int) -> None:
    requests = random_requests(spec)
    workload = ls.Workload(batch_size=len(requests), prompt_tokens=spec["prefix_tokens"], new_tokens=0)
    plan = plan_blocks(open_blocks(directory), 0, workload)
    with load_planned(directory, plan) as streamed:
        _check_sums(streamed, requests[:SAMPLE])
        cases: dict[str, Callable[[], float]] = {
            "one after another": lambda: _seconds_per_request(
                directory, lambda: [_in_two_steps(streamed, each) for each in requests[:SAMPLE]], SAMPLE
            ),
            "in one sweep": lambda: _seconds_per_request(
                directory, lambda: ls.score(streamed, requests), len(requests)
            ),
        }
        figures = interleave(cases, rounds=rounds, warmups=0)
    found = measure({**spec, "model": str(directory), "room_for": len(requests)})
    alone, shared = figures["one after another"], figures["in one sweep"]
    ratio = median_ratio(alone, shared)
    sweeps = sum(1 + sum(len(suffix) > 1 for suffix in suffixes) for _, suffixes in requests)
    total_s = f"{median(alone) * len(requests):.1f} (computed)"
    outcome.rows.append(
        ("one after another", f"{1 / median(alone):.3f}", "1.00", total_s, f"{sweeps} (computed)", "")
    )
    rate, total_s = f"{1 / median(shared):.3f}", f"{median(shared) * len(requests):.1f}"
    moved = (str(found["sweeps"]), f"{found['read_bytes']:,} B")
    outcome.rows.append(("in one sweep", rate, f"{ratio:.1f}", total_s, *moved))
    outcome.figures["short"] = {"seconds_per_request": figures, "ratio": ratio, **found}
    outcome.verdicts.append(verdict("sweeps for all requests", found["sweeps"], 1))
    outcome.verdicts.append(
        verdict("weights read, of one sweep's", found["read_bytes"] / found["one_sweep_bytes"], 1.0)
    )


def _long(outcome: Outcome, spec: dict[str, Any]) -> None:
    found = measure(spec)
    peak, predicted = found["peak_bytes"], found["predicted_bytes"]
    rate = spec["requests"] / found["seconds"]
    row = (f"{spec['prefix_tokens']:,} tokens before each", f"{rate:.3f}", "", f"{found['seconds']:.1f}")
    outcome.rows.append((*row, str(found["sweeps"]), f"{found['read_bytes']:,} B"))
    outcome.figures["long"] = {key: value for key, value in found.items() if key != "plan"}
    outcome.notes.append(
        f"Behind {spec['prefix_tokens']:,} tokens the peak was {peak / MIB:.0f} MiB; the prediction was "
        f"{predicted / MIB:.0f} MiB. The plan and the sweep:\n\n```\n{found['plan']}\n```"
    )
    outcome.verdicts.append(verdict("long context: sweeps", found["sweeps"], 1))
    outcome.verdicts.append(verdict("long context: peak, of predicted", peak / predicted, 1.0))


def _seconds_per_request(directory: Path, work: Callable[[], object], count: int) -> float:
    drop_page_cache(directory)
    return timed(work) / count


@torch.no_grad()
def _in_two_steps(streamed: ls.StreamedModel, request: tuple[list[int], list[list[int]]]) -> list[np.ndarray]:
    model, (prefix, suffixes) = streamed.model, request
    cache = DynamicCache(config=model.config)
    first = model(input_ids=torch.tensor([prefix]), past_key_values=cache, logits_to_keep=1).logits[0]
    logprobs = []
    for suffix in suffixes:
        rows = [first]
        if len(suffix) > 1:
            suffix_cache = copy.deepcopy(cache)
            ids = torch.tensor([suffix[:-1]])
            rows.append(model(input_ids=ids, past_key_values=suffix_cache).logits[0])
        logits = torch.cat(rows).float().log_softmax(dim=-1)
        logprobs.append(logits.gather(1, torch.tensor(suffix)[:, None])[:, 0].numpy())
    return logprobs


def _check_sums(streamed: ls.StreamedModel, requests: list[tuple[list[int], list[list[int]]]]) -> None:
    for request, result in zip(requests, ls.score(streamed, requests), strict=True):
        for expected, score in zip(_in_two_steps(streamed, request), result.scores, strict=True):
            np.testing.assert_array_equal(expected, score.token_logprobs)


if __name__ == "__main__":
    raise SystemExit(main())
