"""Listen to the timeline: it reports every read, copy, wait and computation of a unit as it ends."""

from __future__ import annotations

import sys
from collections import Counter

from transformers import AutoTokenizer

import layerstream as ls
from layerstream.default_model import default_model_path


def main(path: str) -> None:
    inputs = AutoTokenizer.from_pretrained(path)("The capital of France is", return_tensors="pt")
    computed: Counter[int] = Counter()

    with ls.load(path, budget="min") as streamed:

        def show(span: ls.Span) -> None:
            # called on the thread that did the work, so it must be quick
            if span.activity is ls.Activity.COMPUTE:
                computed[span.sweep] += 1

        stop = streamed.timeline.subscribe(show)
        streamed.generate(**inputs.to(streamed.model.device), max_new_tokens=4, do_sample=False)
        stop()
    for sweep, visits in sorted(computed.items()):
        print(f"sweep {sweep}: {visits} visits of streamed units")


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else str(default_model_path()))
