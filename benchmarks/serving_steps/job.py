"""What the stages share: models, prompts and the length of a run."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from common import verdict
from read_limit import ReadLimit

import layerstream as ls
from serving_steps.server import Spec

PROMPTS = Path(__file__).resolve().parent.parent / "speculation_prompts.json"
KINDS = ("chat", "code", "story")
BLOCKS_BYTES = 24 * 1024**2
"""What is added to the least budget, so that whole blocks can be streamed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """A run of one stage.

    Attributes:
        work: an empty folder of its own.
        model: the model whose sweeps are slow; in a quick run, a tiny one.
        tiny: a tiny model with a tokenizer.
        rounds: rounds of what is timed.
        rate: the read limit in bytes per second; 0 is none.
        is_quick: a try whose speeds mean nothing.
    """

    work: Path
    model: Path
    tiny: Path
    rounds: int
    rate: int
    is_quick: bool

    def spec(self, name: str, model: Path, *options: str, reads: ReadLimit | None = None) -> Spec:
        """Return how to start a server that keeps its files under `name`."""
        log = self.work / f"{name}.log"
        return Spec(
            model=model, folder=self.work / name, log=log, options=options, reads=reads or ReadLimit()
        )

    def least_budget(self, *, together: int, context_tokens: int) -> str:
        """Return a budget in which nearly all weights are streamed, in whole blocks."""
        # as the command divides the context
        half = context_tokens // 2
        workload = ls.Workload(batch_size=together, prompt_tokens=context_tokens - half, new_tokens=half)
        plan = ls.plan(self.model, device="cpu", budget="min", workload=workload)
        return str(plan.ledger.device_bytes + BLOCKS_BYTES)


def read_prompts(count: int) -> list[str]:
    """Return so many short prompts, the kinds in turns."""
    texts: dict[str, list[str]] = json.loads(PROMPTS.read_text())
    longest = max(len(texts[kind]) for kind in KINDS)
    mixed = [texts[kind][number] for number in range(longest) for kind in KINDS if number < len(texts[kind])]
    mixed += [text.partition("\n\n")[0] for text in texts["extraction"]]
    return mixed[:count]


def kept(promises: dict[str, int]) -> list[str]:
    """Return a verdict for each promise, by how often it was broken."""
    return [verdict(what, found, 0) for what, found in promises.items()]
