"""The `streamed` variant: layerstream within the case's budget.

Worker's side. It sees layerstream's public names only.
"""

from __future__ import annotations

from typing import Any

from transformers import AutoTokenizer

import layerstream as ls

from ..case import Case
from .attention import implementation_of
from .live_timeline import LiveTimeline
from .loaded import Loaded
from .prompts import build_prompt

HOST_WEIGHT_LINES = ("staging", "blocks in host memory", "input embedding")
"""Host lines of the ledger that are memory for weights, to which no module of the model refers."""


def load(case: Case) -> Loaded:
    """Load the case's model by layerstream, at its budget, with room for its prompt and answer."""
    tokenizer = AutoTokenizer.from_pretrained(case.model)
    prompt_tokens = build_prompt(tokenizer, case).num_tokens
    streamed = open_streamed(
        case, budget=case.budget, prompt_tokens=prompt_tokens, new_tokens=case.max_new_tokens
    )
    slots, host = _held_beside(streamed.plan)
    return Loaded(
        case=case,
        model=streamed.model,
        tokenizer=tokenizer,
        describe=lambda: _facts(streamed),
        release=streamed.close,
        held_beside_bytes=slots + host,
        device_held_beside_bytes=0 if streamed.model.device.type == "cpu" else slots,
        timeline=LiveTimeline(streamed),
    )


def open_streamed(case: Case, *, budget: str | int, prompt_tokens: int, new_tokens: int) -> ls.StreamedModel:
    """Load the case's model by layerstream.

    Args:
        case: model, dtype, device and attention.
        budget: as `layerstream.load` takes it: bytes, a size, `auto` or `min`.
        prompt_tokens: the longest forward to keep room for.
        new_tokens: tokens after it.
    """
    workload = ls.Workload(prompt_tokens=max(prompt_tokens, 1), new_tokens=new_tokens)
    return ls.load(
        case.model,
        budget=budget,
        device=case.device,
        dtype=case.dtype,
        workload=workload,
        attn_implementation=implementation_of(case),
    )


def _held_beside(plan: ls.PlacementPlan) -> tuple[int, int]:
    """Return the bytes of the slots, and of weights in host memory beside an accelerator.

    What lives on the device outside the slots are the model's own tensors, and the walker sees those.
    """
    lines = plan.ledger.lines
    slots = sum(line.num_bytes for line in lines if line.purpose == "slots")
    return slots, sum(
        line.num_bytes for line in lines if line.where == "host" and line.purpose in HOST_WEIGHT_LINES
    )


def _facts(streamed: ls.StreamedModel) -> dict[str, Any]:
    plan = streamed.plan
    return {
        "plan": plan.explain(),
        "placement": plan.placement_map(),
        "budget_bytes": plan.ledger.device_budget_bytes,
        "ledger_bytes": plan.ledger.device_bytes,
        "report": streamed.report().as_dict(),
        "held_includes": "the model's own tensors, the slots that streamed weights pass through, and weights in host memory",
    }
