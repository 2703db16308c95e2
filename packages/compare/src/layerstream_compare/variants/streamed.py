"""The `streamed` variant: layerstream within the case's memory budgets. Runs in the worker."""

from __future__ import annotations

from typing import Any

import torch
from transformers import AutoTokenizer

import layerstream as ls

from ..case import Case
from .attention import implementation_of
from .live_timeline import LiveTimeline
from .loaded import Generate, Loaded
from .prompts import build_prompt

HOST_WEIGHT_KINDS = (ls.LedgerKind.STAGING, ls.LedgerKind.HOST_BLOCKS, ls.LedgerKind.EMBEDDING)
"""Kinds of host lines in the ledger that count weights to which no module of the model refers."""


def load(case: Case) -> Loaded:
    """Load the case's model with layerstream, within its budgets, planned for its prompt and answer."""
    tokenizer = AutoTokenizer.from_pretrained(case.model)
    prompt_tokens = build_prompt(tokenizer, case).num_tokens
    new_tokens = max(case.max_new_tokens, case.warmup_tokens)
    budget = ls.MemoryBudget(device=case.budget, host=case.host_budget)
    streamed = open_streamed(case, budget=budget, prompt_tokens=prompt_tokens, new_tokens=new_tokens)
    slots, host = _held_outside_modules(streamed.plan)
    return Loaded(
        case=case,
        model=streamed.model,
        tokenizer=tokenizer,
        generate=_generate_with_draft(streamed) if case.draft else None,
        describe=lambda: _facts(streamed),
        release=streamed.close,
        extra_held_bytes=slots + host,
        extra_device_held_bytes=slots if _has_device(streamed.plan) else 0,
        beyond_plan=streamed.beyond_plan,
        timeline=LiveTimeline(streamed),
    )


def open_streamed(
    case: Case, *, budget: ls.MemoryBudget, prompt_tokens: int, new_tokens: int
) -> ls.StreamedModel:
    """Load the case's model with layerstream.

    Args:
        case: gives model, dtype, device and attention.
        budget: device and host memory.
        prompt_tokens: longest forward to plan memory for.
        new_tokens: tokens generated after the prompt.
    """
    workload = ls.Workload(prompt_tokens=max(prompt_tokens, 1), new_tokens=new_tokens)
    return ls.load(
        case.model,
        budget=budget,
        device=case.device,
        dtype=case.dtype,
        workload=workload,
        attn_implementation=implementation_of(case),
        draft=case.draft or None,
    )


def _generate_with_draft(streamed: ls.StreamedModel) -> Generate:
    def generate(*, prompt_ids: torch.Tensor, messages: object, **arguments: Any) -> torch.Tensor:
        # the model's own generate() knows of no draft
        ids: torch.Tensor = streamed.generate(
            prompt_ids, attention_mask=torch.ones_like(prompt_ids), **arguments
        )
        return ids

    return generate


def _has_device(plan: ls.PlacementPlan) -> bool:
    return plan.device.partition(":")[0] != "cpu"


def _held_outside_modules(plan: ls.PlacementPlan) -> tuple[int, int]:
    """Return the bytes of the slots and the draft, and of the weights kept in host memory for an accelerator.

    Everything else on the device is in the model's own tensors, which `held_bytes` finds.
    """
    lines = plan.ledger.lines
    kinds = (ls.LedgerKind.SLOTS, ls.LedgerKind.DRAFT)
    slots = sum(line.num_bytes for line in lines if line.kind in kinds)
    host_lines = (line for line in lines if line.where is ls.MemoryTier.HOST)
    return slots, sum(line.num_bytes for line in host_lines if line.kind in HOST_WEIGHT_KINDS)


def _ledger_entry(line: ls.LedgerLine) -> dict[str, Any]:
    return {
        "memory": line.where.value,
        "kind": line.kind.value,
        "purpose": line.purpose,
        "bytes": line.num_bytes,
    }


def _facts(streamed: ls.StreamedModel) -> dict[str, Any]:
    plan = streamed.plan
    ledger = plan.ledger
    host = {"host_budget_bytes": ledger.host_budget_bytes, "host_ledger_bytes": ledger.host_bytes}
    return {
        "plan": plan.explain(),
        "placement": plan.placement_map(),
        "is_resident": plan.is_resident,
        "budget_bytes": ledger.device_budget_bytes,
        "ledger_bytes": ledger.device_bytes,
        **(host if _has_device(plan) else {}),
        "ledger": [_ledger_entry(line) for line in ledger.lines],
        "sweep_read_bytes": plan.cost.read_bytes,
        "sweep_copy_bytes": plan.cost.copy_bytes,
        "report": streamed.report().to_dict(),
        "held_includes": "the model's own tensors, slots for streamed weights, "
        f"{'a draft with its cache, ' if plan.draft else ''}and weights in host memory",
    }
