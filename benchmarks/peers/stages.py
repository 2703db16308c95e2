"""What is measured: which peers run what, in which order. It knows nothing of processes."""

from __future__ import annotations

import random
from dataclasses import dataclass, replace

from random_llama import ONE_AND_A_HALF_GB, SMALL, LlamaShape

from peers.checkpoints import MOE, SIX_GB, SMALL_MOE
from peers.protocol import Prompts

PROMPT_TOKENS = 16
SHORTEST, LONGEST = 4, 28
NUM_PROMPTS = 32

ENVIRONMENTS = {
    "transformers": "",
    "layerstream": "",
    "accelerate": "",
    "ollm": "ollm",
    "airllm": "airllm",
    "llama.cpp": "llama-cpp",
}
"""The environment of each peer; empty for the one that this program runs in."""

SHAPES = {"dense": ONE_AND_A_HALF_GB, "large": SIX_GB, "moe": MOE, "many": ONE_AND_A_HALF_GB}
SMALL_SHAPES: dict[str, LlamaShape] = {"dense": SMALL, "large": SMALL, "moe": SMALL_MOE, "many": SMALL}


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """One row of a table.

    Attributes:
        name: as the table shows it.
        peer: who runs.
        keep: what stays in memory: `"nothing"` of the blocks, `"half"` of them, `"limit"`.
        variant: the peer's own way of reading.
        way: how several prompts run: `"together"` in one batch, `"alone"` (a sample, one after another), or
            `"own"`, by the peer's own function for many prompts.
        rounds: at most so many; None for all.
        new_tokens: of each prompt; None for the stage's.
        has_own_files: the case runs on a copy of the checkpoint. Pages that a process has mapped stay in the
            page cache, and other processes would read them from there.
    """

    name: str
    peer: str
    keep: str = "nothing"
    variant: str = ""
    way: str = "together"
    rounds: int | None = None
    new_tokens: int | None = None
    has_own_files: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Stage:
    """One table.

    Attributes:
        name: the word for `--stages`.
        title: the heading; `{size}` and `{dtype}` are those of the checkpoint.
        model: the key of its shape.
        cases: the rows.
        new_tokens: of each prompt.
        has_many_prompts: 32 of unequal lengths, and not one.
        limit_share: the memory limit as a share of the checkpoint; 0 without one. Under a limit the page
            cache is dropped before the first pass alone: what it then holds is part of the limit.
    """

    name: str
    title: str
    model: str
    cases: tuple[Case, ...]
    new_tokens: int = 5
    has_many_prompts: bool = False
    limit_share: float = 0.0

    @property
    def prompts(self) -> Prompts:
        """The prompts, as tokens."""
        return many_prompts() if self.has_many_prompts else [[3 + at for at in range(PROMPT_TOKENS)]]


STREAMED = Case(name="layerstream", peer="layerstream")
HALF = Case(name="layerstream, half resident", peer="layerstream", keep="half")
OLLM = Case(name="oLLM", peer="ollm")
ACCELERATE = Case(name="accelerate", peer="accelerate")
MAPPED = Case(name="llama.cpp, mmap", peer="llama.cpp", variant="mmap")
DIRECT = Case(name="llama.cpp, direct I/O", peer="llama.cpp", variant="direct")
AIRLLM = Case(name="AirLLM", peer="airllm", rounds=1, new_tokens=3)

STAGES = (
    Stage(
        name="dense",
        title="One prompt, {size}, every pass from a cold disk",
        model="dense",
        cases=(
            STREAMED,
            OLLM,
            ACCELERATE,
            MAPPED,
            HALF,
            replace(OLLM, name="oLLM, half resident", keep="half"),
            replace(ACCELERATE, name="accelerate, half resident", keep="half", has_own_files=True),
            DIRECT,
            AIRLLM,
        ),
    ),
    Stage(
        name="limit",
        title="One prompt, {size}, under one memory limit",
        model="dense",
        cases=(
            STREAMED,
            replace(STREAMED, name="layerstream, all of the limit", keep="limit"),
            OLLM,
            ACCELERATE,
            MAPPED,
            DIRECT,
            AIRLLM,
        ),
        limit_share=0.6,
    ),
    Stage(
        name="batch",
        title="32 prompts, {size}, {dtype}, every pass from a cold disk",
        model="many",
        cases=(
            replace(STREAMED, way="own"),
            ACCELERATE,
            MAPPED,
            OLLM,
            AIRLLM,
            replace(ACCELERATE, name="accelerate, one after another", way="alone"),
            replace(OLLM, name="oLLM, one after another", way="alone"),
        ),
        new_tokens=8,
        has_many_prompts=True,
    ),
    Stage(
        name="large",
        title="One prompt, {size}, every pass from a cold disk",
        model="large",
        cases=(STREAMED, OLLM, ACCELERATE, MAPPED, HALF),
        new_tokens=4,
    ),
    Stage(
        name="moe",
        title="One prompt, a mixture of experts of {size}, every pass from a cold disk",
        model="moe",
        cases=(STREAMED, OLLM, ACCELERATE, MAPPED, HALF, AIRLLM),
    ),
)

SECONDS_PER_GB = {"layerstream": 0.4, "ollm": 0.5, "accelerate": 1.0, "llama.cpp": 1.0, "airllm": 4.5}
"""Roughly, of one pass: for the estimate of the time left only."""

LOAD_S = 10.0
MANY_PROMPTS_S = 10.0
"""What 32 prompts add to a round."""


def many_prompts() -> Prompts:
    """Return prompts of random tokens, 8 to 96 long, in an order without a pattern."""
    source = random.Random(0)
    lengths = [SHORTEST + (LONGEST - SHORTEST) * number // (NUM_PROMPTS - 1) for number in range(NUM_PROMPTS)]
    source.shuffle(lengths)
    return [[source.randrange(3, 500) for _ in range(length)] for length in lengths]


def sample_of(prompts: Prompts) -> Prompts:
    """Return the prompt of middle length, which stands for all where they run one after another."""
    return [sorted(prompts, key=len)[len(prompts) // 2]]


def rounds_of(case: Case, rounds: int) -> int:
    """Return how many rounds a case takes part in."""
    return rounds if case.rounds is None else min(rounds, case.rounds)


def expected_s(stage: Stage, case: Case, rounds: int, num_bytes: int) -> float:
    """Return roughly how long a case takes, its start included."""
    passes = rounds_of(case, rounds) * (case.new_tokens or stage.new_tokens)
    share = 0.5 if case.keep == "half" else 1.0
    many_s = MANY_PROMPTS_S * rounds_of(case, rounds) if stage.has_many_prompts else 0.0
    return LOAD_S + many_s + num_bytes / 1e9 * (1.0 + passes * share * SECONDS_PER_GB[case.peer])


def shapes(*, is_quick: bool, has_bf16: bool) -> dict[str, LlamaShape]:
    """Return the shape of each model.

    Without bf16 instructions a batch in bf16 would show how slow the processor is at that. So the model for
    many prompts is then in fp32, with half of the blocks: as many bytes.
    """
    found = dict(SMALL_SHAPES if is_quick else SHAPES)
    if not has_bf16:
        many = found["many"]
        found["many"] = replace(many, dtype="float32", num_blocks=many.num_blocks // 2)
    return found
