"""Find the first token where an answer differs from the reference's. Pure: no I/O."""

from __future__ import annotations

import math
from dataclasses import replace

from .measurement import Divergence, Measurement

REFERENCE_FACT = "answer_compared_with"
"""Key in `Measurement.facts`: label of the case whose answer this one was compared with.

The reference has its own label there; without a reference the key is absent."""

EXACT_VARIANTS = ("streamed", "resident")
"""Variants with the original weights. The first one in an experiment is the reference for all answers."""

END = "(end)"
"""Shown in place of a token when the answer has already ended."""


def find_divergence(variant: Measurement, reference: Measurement) -> Divergence | None:
    """Return the first new token where `variant` differs from `reference`; None when the answers are equal.

    If one answer is a prefix of the other, they differ where the shorter one ends. The margin is the
    reference's p1 - p2 at that token (from its fact `margins`), or NaN if the reference did not record it.
    """
    tokens, expected = variant.token_ids, reference.token_ids
    if tokens == expected:
        return None
    pairs = enumerate(zip(tokens, expected, strict=False))
    position = next((index for index, (a, b) in pairs if a != b), min(len(tokens), len(expected)))
    margins = reference.facts.get("margins") or ()
    return Divergence(
        position=position,
        reference_token=_token(reference, position),
        variant_token=_token(variant, position),
        margin=float(margins[position]) if position < len(margins) else math.nan,
    )


def compared_with(variant: Measurement, reference: Measurement | None) -> Measurement:
    """Return `variant` with its divergence from `reference` and the reference's label.

    Without an answer on either side, `variant` is returned unchanged.
    """
    if reference is None or reference.status != "ok" or variant.status != "ok":
        return variant
    facts = variant.facts | {REFERENCE_FACT: reference.case.label}
    return replace(variant, divergence=find_divergence(variant, reference), facts=facts)


def _token(measurement: Measurement, position: int) -> str:
    if position < len(measurement.token_texts):
        return measurement.token_texts[position]
    return str(measurement.token_ids[position]) if position < len(measurement.token_ids) else END
