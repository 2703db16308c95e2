"""Peers: accelerate's disk offload against layerstream, in about the same memory, with a cold page cache.

accelerate keeps the edges in memory and reads every block from the same safetensors files in each forward.
layerstream's budget does not hold a block permanently either.
"""

from __future__ import annotations

from pathlib import Path

import torch
from common import (
    Outcome,
    arguments,
    drop_page_cache,
    environment,
    interleave,
    median,
    median_ratio,
    publish,
    work_directory,
)
from forwards import PROMPT_TOKENS, decode_seconds
from random_llama import ONE_AND_A_HALF_GB, SMALL, LlamaShape, write_llama
from transformers import AutoModelForCausalLM

import layerstream as ls

NOTES = [
    "Seconds of one decode sweep: the mean of three after the first, the page cache dropped before each: "
    "accelerate would read from it. layerstream's budget is the "
    "edges and three blocks. accelerate holds at least the edges, the block at work and what it has just "
    "read.",
]


def main() -> int:
    options = arguments(__doc__)
    shape = SMALL if options.quick else ONE_AND_A_HALF_GB
    outcome = Outcome(
        theme="peers",
        title="One decode sweep with the blocks on disk",
        columns=("", "seconds per token", "of accelerate"),
        notes=NOTES,
    )
    with work_directory(options) as work:
        facts = environment(work)
        directory = write_llama(work / "model", shape)
        _measure(outcome, directory, shape, work, rounds=2 if options.quick else options.rounds or 5)
    return publish(outcome, options, facts)


def _measure(outcome: Outcome, directory: Path, shape: LlamaShape, work: Path, rounds: int) -> None:
    blocks = {f"model.layers.{block}": "disk" for block in range(shape.num_blocks)}
    edges = dict.fromkeys(("model.embed_tokens", "model.norm", "model.rotary_emb", "lm_head"), "cpu")
    offloaded = AutoModelForCausalLM.from_pretrained(
        directory, dtype=torch.bfloat16, device_map=edges | blocks, offload_folder=work / "offload"
    )
    edge_bytes = 2 * shape.vocab_size * shape.hidden_size * shape.element_bytes
    block_bytes = (shape.weight_bytes - edge_bytes) // shape.num_blocks
    workload = ls.Workload(prompt_tokens=PROMPT_TOKENS, new_tokens=8)
    with ls.load(directory, device="cpu", budget=edge_bytes + 3 * block_bytes, workload=workload) as streamed:
        models = {"accelerate disk offload": offloaded, "layerstream": streamed}

        def seconds(name: str) -> float:
            return decode_seconds(
                models[name], batch_size=1, steps=3, before_step=lambda: drop_page_cache(directory)
            )

        figures = interleave({name: lambda name=name: seconds(name) for name in models}, rounds=rounds)
        outcome.notes = [
            *outcome.notes,
            "The plan:\n\n```\n" + streamed.plan.explain().replace(str(directory), "model") + "\n```",
        ]
    first = figures["accelerate disk offload"]
    outcome.rows = [
        (name, f"{median(found):.3f}", f"{median_ratio(found, first):.3f}") for name, found in figures.items()
    ]
    outcome.figures = {"seconds": figures}


if __name__ == "__main__":
    raise SystemExit(main())
