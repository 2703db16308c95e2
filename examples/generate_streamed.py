"""Write an answer as it comes, in the least memory that works."""

from __future__ import annotations

import sys

from transformers import AutoTokenizer, TextStreamer

import layerstream as ls
from layerstream.default_model import default_model_path


def main(path: str) -> None:
    tokenizer = AutoTokenizer.from_pretrained(path)
    question = [{"role": "user", "content": "What is the capital of France?"}]
    inputs = tokenizer.apply_chat_template(
        question, add_generation_prompt=True, return_dict=True, return_tensors="pt"
    )
    workload = ls.Workload(prompt_tokens=inputs["input_ids"].shape[1], new_tokens=24)
    with ls.load(path, budget="min", workload=workload) as streamed:
        streamer = TextStreamer(tokenizer, skip_prompt=True, skip_special_tokens=True)
        streamed.generate(
            **inputs.to(streamed.model.device), max_new_tokens=24, do_sample=False, streamer=streamer
        )
        print(streamed.report().explain(), file=sys.stderr)


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else str(default_model_path()))
