"""The worker of bench_revisions.py: measures the layerstream on its path, case by case, as the parent asks.

It uses only names that every revision has: `load`, `generate`, `generate_many`, `GenerationRequest`.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from time import perf_counter, process_time

import torch

import layerstream as ls

PROMPT = list(range(3, 19))
REQUESTS = 8


def main() -> None:
    work = Path(sys.argv[1])
    torch.manual_seed(0)
    workload = ls.Workload(batch_size=REQUESTS, prompt_tokens=16, new_tokens=16)
    models = {
        (folder, budget): ls.load(work / folder, budget=budget, device="cpu", workload=workload)
        for folder in ("large", "blocks")
        for budget in ("auto", "min")
    }
    cases: dict[str, Callable[[], object]] = {
        "decode, resident": lambda: decode(models["large", "auto"], 12),
        "sweep, streamed": lambda: decode(models["large", "min"], 4),
        "batch, streamed": lambda: batch(models["large", "min"]),
        "small blocks, resident": lambda: decode(models["blocks", "auto"], 16),
        "small blocks, streamed": lambda: decode(models["blocks", "min"], 16),
    }
    assert models["large", "auto"].plan.is_resident
    for line in sys.stdin:
        asked = line.strip()
        answer = {"path": ls.__file__} if asked == "where" else measure(cases[asked])
        print(json.dumps(answer), flush=True)


def measure(case: Callable[[], object]) -> dict[str, float]:
    """Return the elapsed and the CPU seconds of one call."""
    cpu_s, start_s = process_time(), perf_counter()
    case()
    return {"elapsed_s": perf_counter() - start_s, "cpu_s": process_time() - cpu_s}


def decode(streamed: ls.StreamedModel, tokens: int) -> object:
    """Generate `tokens` tokens for one prompt."""
    return streamed.generate(
        torch.tensor([PROMPT]), max_new_tokens=tokens, min_new_tokens=tokens, do_sample=False
    )


def batch(streamed: ls.StreamedModel) -> object:
    """Generate 4 tokens for each of several prompts in shared sweeps."""
    requests = [
        ls.GenerationRequest(prompt=[3 + index, *PROMPT], max_new_tokens=4) for index in range(REQUESTS)
    ]
    results = ls.generate_many(streamed, requests)
    assert all(result.error is None for result in results)
    return results


if __name__ == "__main__":
    main()
