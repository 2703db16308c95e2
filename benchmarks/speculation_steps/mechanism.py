"""The mechanism alone: the target drafts for itself with all 16 bits, so nearly all are accepted."""

from __future__ import annotations

from typing import Any

from common import Outcome

import layerstream as ls
from speculation_steps.generation import generate, later_token_s, tokens_per_sweep
from speculation_steps.job import Job

STAGE = "mechanism"
DEPTHS = (4, 8, 16, 32, 64)
QUICK_DEPTHS = (4,)
BUDGETS = {"resident": "auto", "streamed": "min"}
NOTES = [
    "The same checkpoint as its own draft, at full precision, with a fixed number of drafted tokens: what "
    "drafting, verifying and the loop cost, and what they give where acceptance is as high as can be. An "
    "answer's last sweeps may draft less, because the answer ends.",
    "Resident: nothing is read, so that the seconds are computation alone. Streamed: the least budget, "
    "everything read in each sweep, as fast as the disk is; the draft is resident. Draft seconds per sweep "
    "include the draft's reading of the prompt, once per answer. Verification: the rest of the time after "
    "the prompt's sweep. Each drafted token is verified by a forward of its own; one token more is the "
    "target's own.",
]


def measure(job: Job) -> None:
    """Generate plainly and with each depth, resident and streamed."""
    for place in BUDGETS:
        for depth in (0, *(QUICK_DEPTHS if job.is_quick else DEPTHS)):
            if job.lacks(STAGE, job.prompts, place=place, depth=depth):
                _generate_all(job, place, depth)


def _generate_all(job: Job, place: str, depth: int) -> None:
    options: dict[str, Any] = (
        {"draft": str(job.model), "draft_tokens": depth, "draft_width": 1} if depth else {}
    )
    with ls.load(
        job.model, device="cpu", budget=BUDGETS[place], workload=job.workload, **options
    ) as streamed:
        for prompt in job.prompts:
            job.remember(
                STAGE,
                lambda ids=prompt.ids: generate(streamed, ids, job.new_tokens),
                place=place,
                depth=depth,
                prompt=prompt.name,
            )


def report(job: Job) -> Outcome:
    """Return the table."""
    outcome = Outcome(
        theme="speculation-mechanism",
        title=f"The target as its own 16-bit draft, {len(job.prompts)} prompts, "
        f"up to {job.new_tokens} new tokens",
        columns=(
            "depth",
            "target",
            "tokens per sweep",
            "accepted",
            "draft s per sweep",
            "verification s per sweep",
            "s per token",
            "of plain",
        ),
        notes=list(NOTES),
    )
    for place in BUDGETS:
        plain = {key["prompt"]: found for key, found in job.found(STAGE, place=place, depth=0)}
        for depth in (0, *DEPTHS):
            found = {key["prompt"]: each for key, each in job.found(STAGE, place=place, depth=depth)}
            if found:
                _add(outcome, (place, depth), found, plain)
    return outcome


def _add(
    outcome: Outcome,
    name: tuple[str, int],
    found: dict[str, dict[str, Any]],
    plain: dict[str, dict[str, Any]],
) -> None:
    place, depth = name
    each = list(found.values())
    parts = [one["speculation"] for one in each if one["speculation"] is not None]
    # plain generation: each token after the prompt's is one sweep
    sweeps = sum(part["sweeps"] for part in parts) or sum(one["sweeps"] - 1 for one in each)
    later_s = sum(one["seconds"] - one["first_s"] for one in each)
    draft_s = sum(one["draft_s"] for one in each)
    shared = [prompt for prompt in found if prompt in plain]
    own_s, plain_s = (sum(later_token_s(one[prompt]) for prompt in shared) for one in (found, plain))
    drafted = sum(sum(part["drafted"]) for part in parts)
    figures = {
        "place": place,
        "depth": depth,
        "answers": len(each),
        "tokens_per_sweep": tokens_per_sweep(each),
        "accepted": sum(sum(part["accepted"]) for part in parts) / drafted if drafted else None,
        "draft_s_per_sweep": draft_s / max(1, sweeps),
        "verification_s_per_sweep": (later_s - draft_s) / max(1, sweeps),
        "token_s": sum(map(later_token_s, each)) / len(each),
        "of_plain": own_s / plain_s if plain_s else None,
        "same": sum(found[prompt]["ids"] == plain[prompt]["ids"] for prompt in shared),
    }
    outcome.figures.setdefault("rows", []).append(figures)
    cells = (
        f"{figures['tokens_per_sweep']:.2f}",
        f"{figures['accepted']:.4f}" if drafted else "",
        f"{figures['draft_s_per_sweep']:.3f}",
        f"{figures['verification_s_per_sweep']:.3f}",
        f"{figures['token_s']:.4f}",
        f"{figures['of_plain']:.2f}" if plain_s else "",
    )
    outcome.rows.append((f"{depth}" if depth else "plain", place, *cells))
