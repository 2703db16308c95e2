"""Answer many prompts, each with its own settings, in shared sweeps: only the longest one costs reads."""

from __future__ import annotations

import sys

import layerstream as ls
from layerstream.default_model import default_model_path

REQUESTS = [
    ls.GenerationRequest(prompt="The capital of France is", max_new_tokens=8),
    ls.GenerationRequest(prompt="Two and two make", max_new_tokens=12),
    ls.GenerationRequest(
        prompt="Once upon a time", max_new_tokens=10, do_sample=True, temperature=0.8, seed=1
    ),
    ls.GenerationRequest(prompt="The sea is", max_new_tokens=6, num_beams=2),
]


def main(path: str) -> None:
    # batch_size counts rows at once; each beam is a row
    workload = ls.Workload(batch_size=5, prompt_tokens=32, new_tokens=12)

    def show(progress: ls.BatchProgress) -> None:
        answers = f"{progress.done} of {progress.total} answers"
        print(f"{answers}, {progress.tokens} tokens, {progress.sweeps} sweeps", file=sys.stderr)

    with ls.load(path, budget="min", workload=workload) as streamed:
        for result in ls.generate_many(streamed, REQUESTS, packed=False, on_progress=show):
            print(f"{result.index}: {result.text!r}")
        print(f"{streamed.report().sweeps} sweeps")


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else str(default_model_path()))
