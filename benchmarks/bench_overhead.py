"""Overhead: decoding through layerstream with everything resident, against plain transformers."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import torch
from common import (
    Outcome,
    arguments,
    environment,
    interleave,
    median,
    median_ratio,
    publish,
    timed,
    verdict,
    work_directory,
)
from random_llama import HALF_GB, SMALL, write_llama
from transformers import AutoModelForCausalLM

import layerstream as ls

TARGET = 0.97
NOTES = [
    "Both models are loaded in one process and take turns: `generate()`, greedy, the same prompt, the same "
    "number of new tokens. Tokens/s are decode only: the time of a run minus that of a run with one new "
    "token. Ratios are medians of the rounds' own ratios.",
]


def main() -> int:
    options = arguments(__doc__)
    new_tokens, rounds = (8, 3) if options.quick else (48, options.rounds or 11)
    outcome = Outcome(
        theme="overhead",
        title="Decoding with everything resident",
        columns=("", "tokens/s", "CPU ms per token"),
        notes=NOTES,
    )
    with work_directory(options) as work:
        facts = environment(work)
        directory = write_llama(work / "model", SMALL if options.quick else HALF_GB)
        _measure(outcome, directory, new_tokens, rounds)
    return publish(outcome, options, facts)


def _measure(outcome: Outcome, directory: Path, new_tokens: int, rounds: int) -> None:
    plain = AutoModelForCausalLM.from_pretrained(directory, dtype="auto")
    with ls.load(directory, device="cpu") as streamed:
        assert streamed.plan.is_resident, "too little memory to hold the model twice"
        models: dict[str, Any] = {"plain transformers": plain, "layerstream": streamed}
        cpu_s: dict[str, list[float]] = {name: [] for name in models}

        def tokens_per_s(name: str) -> float:
            first_s, first_cpu_s = _generate(models[name], 1)
            whole_s, whole_cpu_s = _generate(models[name], new_tokens + 1)
            cpu_s[name].append((whole_cpu_s - first_cpu_s) / new_tokens)
            return new_tokens / (whole_s - first_s)

        rates = interleave({name: lambda name=name: tokens_per_s(name) for name in models}, rounds=rounds)
    outcome.rows = [
        (name, f"{median(rates[name]):.2f}", f"{median(cpu_s[name][1:]) * 1e3:.1f}") for name in models
    ]
    ratio = median_ratio(rates["layerstream"], rates["plain transformers"])
    cpu_ratio = median_ratio(cpu_s["layerstream"][1:], cpu_s["plain transformers"][1:])
    outcome.figures = {
        "tokens_per_s": rates,
        "cpu_s_per_token": cpu_s,
        "ratio": ratio,
        "cpu_ratio": cpu_ratio,
    }
    outcome.verdicts = [verdict("tokens/s, of plain transformers", ratio, TARGET, at_most=False)]
    outcome.notes.append(f"CPU seconds per token, of plain transformers: {cpu_ratio:.3f} (median of rounds).")


def _generate(model: Any, new_tokens: int) -> tuple[float, float]:
    """Return the wall and CPU seconds of one generation."""
    ids = torch.arange(3, 19).reshape(1, -1)
    start_cpu_s = time.process_time()
    wall_s = timed(
        lambda: model.generate(
            input_ids=ids, max_new_tokens=new_tokens, min_new_tokens=new_tokens, do_sample=False
        )
    )
    return wall_s, time.process_time() - start_cpu_s


if __name__ == "__main__":
    raise SystemExit(main())
