"""Where an answer leaves the reference's. Pure: it knows measurements alone."""

from __future__ import annotations

import math
from dataclasses import replace

from .measurement import Divergence, Measurement

REFERENCE_FACT = "answer_compared_with"
"""In a measurement's facts: the label of the case its answer was compared with, its own for the reference; absent without one."""

EXACT_VARIANTS = ("streamed", "resident")
"""Variants of the original weights: the first of them that is asked for is the reference of all answers."""

END = "(end)"
"""Shown for the token of an answer that was over already."""


def find_divergence(variant: Measurement, reference: Measurement) -> Divergence | None:
    """Return the first new token where `variant` differs from `reference`; None when the answers are equal.

    An answer that ends earlier than the other differs where it ends. The margin is the reference's own p1 - p2 there (its fact
    `margins`, one for each new token), NaN where the reference does not tell it.
    """
    ours, theirs = variant.token_ids, reference.token_ids
    if ours == theirs:
        return None
    shared = zip(ours, theirs, strict=False)
    position = next(
        (index for index, (our, their) in enumerate(shared) if our != their), min(len(ours), len(theirs))
    )
    margins = reference.facts.get("margins") or ()
    return Divergence(
        position=position,
        reference_token=_token(reference, position),
        variant_token=_token(variant, position),
        margin=float(margins[position]) if position < len(margins) else math.nan,
    )


def compared_with(variant: Measurement, reference: Measurement | None) -> Measurement:
    """Return `variant` with its divergence from `reference` and the reference's label; unchanged where either has no answer."""
    if reference is None or reference.status != "ok" or variant.status != "ok":
        return variant
    facts = variant.facts | {REFERENCE_FACT: reference.case.label}
    return replace(variant, divergence=find_divergence(variant, reference), facts=facts)


def _token(measurement: Measurement, position: int) -> str:
    if position < len(measurement.token_texts):
        return measurement.token_texts[position]
    return str(measurement.token_ids[position]) if position < len(measurement.token_ids) else END
