"""Answer several prompts in one batch: the weights are read once for all of them."""

from __future__ import annotations

import sys

from transformers import AutoTokenizer

import layerstream as ls
from layerstream.default_model import default_model_path

PROMPTS = ["The capital of France is", "Two and two make", "The sea is"]


def main(path: str) -> None:
    tokenizer = AutoTokenizer.from_pretrained(path, padding_side="left")
    inputs = tokenizer(PROMPTS, padding=True, return_tensors="pt")
    workload = ls.Workload(batch_size=len(PROMPTS), prompt_tokens=inputs["input_ids"].shape[1], new_tokens=12)
    with ls.load(path, budget="min", workload=workload) as streamed:
        rows = streamed.generate(**inputs.to(streamed.model.device), max_new_tokens=12, do_sample=False)
        for text in tokenizer.batch_decode(rows, skip_special_tokens=True):
            print(repr(text))
        print(f"{streamed.report().sweeps} sweeps for {len(PROMPTS)} answers", file=sys.stderr)


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else str(default_model_path()))
