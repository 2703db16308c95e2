"""Split prompts over several devices that share each read; without two cards, two CPU replicas stand in."""

from __future__ import annotations

import sys

import torch
from transformers import AutoTokenizer

import layerstream as ls
from layerstream.default_model import default_model_path

PROMPTS = ["The capital of France is", "Two and two make", "The sea is", "Once upon a time"]


def main(path: str) -> None:
    cards = [f"cuda:{number}" for number in range(torch.cuda.device_count())]
    devices = cards if len(cards) > 1 else ["cpu", "cpu"]
    tokenizer = AutoTokenizer.from_pretrained(path, padding_side="left")

    def answer(replica: ls.Replica) -> list[str]:
        prompts = PROMPTS[replica.index :: len(devices)]
        inputs = tokenizer(prompts, padding=True, return_tensors="pt").to(replica.device)
        rows = replica.model.generate(**inputs, max_new_tokens=12, do_sample=False)
        return tokenizer.batch_decode(rows, skip_special_tokens=True)

    workload = ls.Workload(batch_size=2, prompt_tokens=32, new_tokens=12)
    with ls.load(path, devices=devices, budget="min", workload=workload) as streamed:
        for device, texts in zip(devices, streamed.run_on_devices(answer), strict=True):
            for text in texts:
                print(f"{device}: {text!r}")
        report = streamed.report()
        print(f"{report.sweeps} sweeps, {report.bytes_read:,} bytes, each read once", file=sys.stderr)


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else str(default_model_path()))
