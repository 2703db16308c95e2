"""Simulation: what the planner predicts for a 70B model, with the acceptance that others have published."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from common import Outcome
from transformers import AutoConfig

import layerstream as ls
from layerstream.planning.drafting import forecast_draft, own_copy_needs
from layerstream.spec.machine_text import machine_from_figures
from layerstream.spec.options import OwnCopy
from layerstream.spec.profiles import ModelProfile
from layerstream.spec.speculation import DraftNeeds
from speculation_steps.job import Job

STAGE = "simulation"
MODEL = "llama-2-70b"
MACHINES = (
    "gpu=16GB,ram=32GB,disk=7GB/s",
    "gpu=16GB,ram=32GB,disk=7GB/s,pcie=25GB/s,vram=700GB/s",
)
PUBLISHED = {"chain": (0.969, 1), "tree, 6 wide": (0.991, 6)}
"""Acceptance per token and width, from the logs that SubSpec's authors have published."""

DEEPEST = 64
NOTES = [
    "PREDICTED, not measured: the planner's forecast for a machine that is described by its figures. "
    "The acceptance is SubSpec's (a 4-bit copy of the target as the draft, chains and trees of up to 64 "
    "in a row, greedy; from its authors' published logs): 0.969 per token in a chain, 0.991 in a tree six "
    "wide. Tokens per sweep follow from it by equation 1 of Leviathan et al. 2023.",
    "The drafts are hypothetical: they take no memory of the card, whose 16 GB hold the target's slots. "
    "'Free' drafts take no time either. 'As fast as nf4' takes, per drafted token, the time in which the "
    "card's memory reads a 4-bit copy of this model (some 36 GB, which such a card cannot hold). Each "
    "drafted token is verified by a forward of its own in the shared sweep, computed as fast as the card's "
    "memory is read; 'verified at no cost' leaves that out, as one forward of all tokens nearly would. What "
    "the machine's line leaves out is assumed: 300 GB/s of card memory, and copies.",
    "A tree has six tokens for each in a row, and the target's own token is counted as six forwards too. "
    "layerstream's own trees branch only where the draft is unsure, so these are not theirs. "
    "Drafted: the number with which a token takes the least time, up to 64 in a row. "
    "'64 in a row' is that depth whether it pays or not.",
]


def measure(job: Job) -> None:
    """Forecast for each machine; nothing runs."""
    profile = profile_70b()
    for text in MACHINES:
        job.findings.put(STAGE, {"rows": forecasts(profile, text)}, machine=text)


def profile_70b() -> ModelProfile:
    """Return the sizes of the 70B model, on an accelerator."""
    known = ls.KNOWN_MODELS[MODEL]
    config = AutoConfig.for_model(known.model_type, **known.settings)
    return ls.profile_model(config, dtype=known.dtype, device="cuda")


def forecasts(profile: ModelProfile, text: str) -> list[dict[str, Any]]:
    """Return what is predicted on one machine, without a draft and with each."""
    machine = machine_from_figures(text)
    workload = ls.Workload()
    cost = ls.simulate(profile, machine=machine, workload=workload).cost
    nf4 = own_copy_needs(OwnCopy.NF4, profile, workload, machine)
    rows = [_row("none", "", 0, 1.0, cost.sweep_s, cost.sweep_s)]
    at_once = replace(cost, compute_s=0.0)
    for speed, token_bytes, verified in (
        ("free", 0, cost),
        ("as fast as nf4", nf4.token_bytes, cost),
        ("free, verified at no cost", 0, at_once),
    ):
        for shape, (acceptance, width) in PUBLISHED.items():
            draft = DraftNeeds(name=shape, token_bytes=width * token_bytes, acceptance=acceptance)
            place_cost = replace(verified, compute_s=width * verified.compute_s)
            for depth, counts in (("fastest", range(1, DEEPEST + 1)), ("64 in a row", [DEEPEST])):
                found = forecast_draft(draft, place_cost, machine, counts)
                rows.append(
                    _row(
                        f"{shape}, {speed}",
                        depth,
                        width * found.drafted,
                        found.tokens_per_sweep,
                        found.token_s,
                        found.plain_token_s,
                    )
                )
    return rows


def _row(
    draft: str, depth: str, drafted: int, tokens: float, token_s: float, plain_s: float
) -> dict[str, Any]:
    return {
        "draft": draft,
        "depth": depth,
        "drafted": drafted,
        "tokens_per_sweep": tokens,
        "tokens_per_s": 1 / token_s,
        "sweep_s": token_s * tokens,
        "of_plain": plain_s / token_s,
    }


def report(job: Job) -> Outcome:
    """Return the table."""
    outcome = Outcome(
        theme="speculation-simulation",
        title=f"Predicted, not measured: {ls.KNOWN_MODELS[MODEL].title} with SubSpec's acceptance",
        columns=(
            "draft",
            "machine",
            "depth",
            "drafted",
            "tokens per sweep",
            "seconds per sweep",
            "tokens/s",
            "of plain",
        ),
        notes=list(NOTES),
    )
    for text in MACHINES:
        for _, found in job.findings.of(STAGE, machine=text):
            outcome.figures[text] = found["rows"]
            outcome.rows += [_cells(text, row) for row in found["rows"]]
    return outcome


def _cells(machine: str, row: dict[str, Any]) -> tuple[str, ...]:
    return (
        row["draft"],
        machine,
        row["depth"],
        str(row["drafted"]),
        f"{row['tokens_per_sweep']:.1f}",
        f"{row['sweep_s']:.2f}",
        f"{row['tokens_per_s']:.3f}",
        f"{row['of_plain']:.1f}",
    )
