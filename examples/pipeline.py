"""Pass the model to transformers' own pipeline, which sees no difference from a resident model."""

from __future__ import annotations

import sys

from transformers import AutoTokenizer, pipeline

import layerstream as ls
from layerstream.default_model import default_model_path


def main(path: str) -> None:
    tokenizer = AutoTokenizer.from_pretrained(path)
    with ls.load(path, budget="min") as streamed:
        write = pipeline("text-generation", model=streamed.model, tokenizer=tokenizer)
        (answer,) = write("The capital of France is", max_new_tokens=12, do_sample=False)
        print(answer["generated_text"])


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else str(default_model_path()))
