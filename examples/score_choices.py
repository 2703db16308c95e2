"""Choose the most likely of several endings: every prefix runs once, and all of them share one sweep."""

from __future__ import annotations

import sys

import layerstream as ls
from layerstream.default_model import default_model_path

REQUESTS = [
    ("The capital of France is", [" Paris", " Rome", " a fish"]),
    ("Two and two make", [" four", " five"]),
]


def main(path: str) -> None:
    workload = ls.Workload(batch_size=len(REQUESTS), prompt_tokens=48, new_tokens=0)
    with ls.load(path, budget="min", workload=workload) as streamed:
        results = ls.score(streamed, REQUESTS)
        for (prefix, suffixes), result in zip(REQUESTS, results, strict=True):
            assert result.best is not None, result.error
            print(f"{prefix}{suffixes[result.best]}: {[round(score.logprob, 3) for score in result.scores]}")
        print(f"{streamed.report().sweeps} sweep")


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else str(default_model_path()))
