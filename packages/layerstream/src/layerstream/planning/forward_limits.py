"""Decide whether a forward keeps within the workload that a plan reserves memory for, or within the budget.

A forward is its rows, its tokens and the tokens in its cache. One with a larger prompt or batch than planned
may still take no more activations and no more cache, as one long prompt under a plan for many short ones: it
keeps what the ledger promises. Memory while tasks share a sweep is not judged here.
"""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass
from enum import Enum

from ..spec.options import Workload
from ..spec.plans import MemoryTier, PlacementPlan
from ..spec.profiles import ActivationProfile, ModelProfile
from ..spec.sizes import dtype_bytes
from .ledger import WORKLOAD_KINDS, activation_bytes, cache_bytes, forward_activation_bytes, total_bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class ForwardSize:
    """The size of one forward.

    Attributes:
        rows: sequences.
        tokens: tokens of each sequence that it computes.
        cached_tokens: tokens of each sequence whose keys and values are held when it ends; 0 without a cache,
            or with one whose memory is not the device's.
        logit_rows: positions of each sequence that reach the head beyond what the profile's forward counts.
    """

    rows: int
    tokens: int
    cached_tokens: int
    logit_rows: int = 0


class Verdict(Enum):
    """How a forward relates to what was planned."""

    PLANNED = "planned"
    BEYOND_WORKLOAD = "beyond the workload"
    BEYOND_BUDGET = "beyond the budget"


@dataclass(frozen=True, slots=True, kw_only=True)
class ForwardLimits:
    """What the forwards of one loaded model may take on each device; made by `forward_limits`.

    Attributes:
        workload: what memory is reserved for.
        planned_bytes: the ledger's total.
        limit_bytes: the most that a forward may take, weights included.
        fixed_bytes: what weights, slots and buffers take.
        replicas: how many replicas run on one device at the same time.
        cache_bytes: what the plan reserves for the cache of each replica.
        activation_bytes: what it reserves for the activations of each replica.
        activation: how memory grows with tokens.
        row_bytes: one position of the residual stream.
        logits_bytes: the logits of one position.
    """

    workload: Workload
    planned_bytes: int
    limit_bytes: int
    fixed_bytes: int
    replicas: int
    cache_bytes: int
    activation_bytes: int
    activation: ActivationProfile
    row_bytes: int
    logits_bytes: int

    def judge(self, size: ForwardSize) -> Verdict:
        """Return whether a forward is as planned, larger but within the budget, or too large for it."""
        workload = self.workload
        if (
            size.rows <= workload.batch_size
            and size.tokens <= workload.prompt_tokens
            and size.cached_tokens <= workload.context_tokens
        ):
            return Verdict.PLANNED
        cache, activations = self.held_bytes(size), self.working_bytes(size)
        # without a cache, its memory is free for the text that every forward computes anew
        free = 0 if size.cached_tokens else self.cache_bytes
        if cache <= self.cache_bytes and activations <= self.activation_bytes + free:
            return Verdict.PLANNED
        fits = self.needed_bytes(size) <= self.limit_bytes
        return Verdict.BEYOND_WORKLOAD if fits else Verdict.BEYOND_BUDGET

    def needed_bytes(self, size: ForwardSize) -> int:
        """Return what a forward takes on a device when every replica there runs it, weights included."""
        cache = self.held_bytes(size)
        growth = math.ceil(self.activation.cache_layer_share * cache)
        # the logits are made when the last block's activations are gone
        positions = size.rows * size.tokens
        at_head = positions * self.row_bytes + size.rows * size.logit_rows * self.logits_bytes
        peak = cache + max(growth + self.working_bytes(size), at_head)
        return self.fixed_bytes + self.replicas * peak

    def fitting_workload(self, size: ForwardSize) -> Workload:
        """Return the workload to load the model with, so that memory is reserved for such forwards."""
        planned = self.workload
        prompt = max(planned.prompt_tokens, size.tokens)
        return Workload(
            batch_size=size.rows,
            prompt_tokens=prompt,
            new_tokens=max(planned.new_tokens, size.cached_tokens - prompt),
            prefill_chunk_tokens=planned.prefill_chunk_tokens,
        )

    def held_bytes(self, size: ForwardSize) -> int:
        """Return what the forward's cache takes."""
        if not size.cached_tokens:
            return 0
        held = Workload(batch_size=size.rows, prompt_tokens=size.cached_tokens, new_tokens=0)
        return cache_bytes(self.activation, held)

    def working_bytes(self, size: ForwardSize) -> int:
        """Return what the forward's activations take at their peak."""
        context = max(size.tokens, size.cached_tokens)
        return forward_activation_bytes(self.activation, rows=size.rows, tokens=size.tokens, context=context)


def forward_limits(
    plan: PlacementPlan, profile: ModelProfile, workload: Workload, limit_bytes: int
) -> ForwardLimits:
    """Return the limits on the forwards of a model.

    Args:
        plan: where its weights live.
        profile: its sizes.
        workload: what the plan reserves memory for.
        limit_bytes: what a device may hold; see `placement.device_limit_bytes`.
    """
    lines = [line for line in plan.ledger.lines if line.where is MemoryTier.DEVICE]
    return ForwardLimits(
        workload=workload,
        planned_bytes=total_bytes(lines),
        limit_bytes=limit_bytes,
        fixed_bytes=total_bytes(line for line in lines if line.kind not in WORKLOAD_KINDS),
        replicas=max(Counter(plan.devices).values()),
        cache_bytes=cache_bytes(profile.activation, workload),
        activation_bytes=activation_bytes(profile.activation, workload),
        activation=profile.activation,
        row_bytes=dtype_bytes(profile.dtype, profile.hidden_size),
        logits_bytes=dtype_bytes(profile.dtype, profile.vocab_size),
    )
