"""Compare two models by teacher forcing: both read the same text, and their logits are compared.

Runs in the worker. A KV cache carries each model from chunk to chunk: a streamed reference then reads its
weights once per chunk, and no logits are kept. Both models get tensors of equal shapes, so only the models
differ.
"""

from __future__ import annotations

import os
from importlib.resources import files
from typing import Any

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

import layerstream as ls

from ..case import Case
from ..measurement import Agreement
from ..variants import resident, streamed
from ..variants.loaded import Loaded
from ..variants.prompts import Prompt
from .agreement import AgreementMeter
from .chunk_reader import ChunkReader
from .generation import greedy_arguments

CHUNK_POSITIONS = 64
"""Positions per forward during a comparison."""

PROSE_TOKENS = 512
"""Most tokens of the prose that are read."""

_FITS_SHARE = 0.7
"""A resident reference is loaded only if its weights take less than this share of the free memory."""

_REFERENCE_SHARE = 0.5
"""Budget of a streamed reference as a share of the free memory on its device.

Memory is measured before the reference is loaded, and its results are the same at every budget; a smaller one
only takes longer. Of host memory the reference takes what is free."""


def compare_on(
    text: str, prefix: list[int], targets: list[int], reference: PreTrainedModel, loaded: Loaded
) -> tuple[Agreement, list[float]]:
    """Return how well a variant agrees with the reference in predicting `targets` after `prefix`.

    ```
    read       prefix            t0 t1 ... | t64 ...
    predicted         t0 (last)  t1 t2 ... | t65 ...
    ```

    Args:
        text: name of the text.
        prefix: tokens to read first, at least one. Only the prediction after the last one is compared.
        targets: tokens to predict, at least one.
        reference: the exact model.
        loaded: the variant.

    Returns:
        The agreement, and the reference's margin p1 - p2 at each target.
    """
    meter = AgreementMeter(text)
    reference_reader, variant_reader = ChunkReader(reference), ChunkReader(loaded.model)
    start, target_ids = torch.tensor([prefix]), torch.tensor(targets)
    expected = reference_reader.read(start, last_only=True)
    with loaded.context():
        actual = variant_reader.read(start, last_only=True)
    meter.feed(expected, actual.to(expected.device), target_ids[:1])
    for begin in range(0, len(targets) - 1, CHUNK_POSITIONS):
        end = min(begin + CHUNK_POSITIONS, len(targets) - 1)
        chunk = target_ids[None, begin:end]
        expected = reference_reader.read(chunk)
        with loaded.context():
            actual = variant_reader.read(chunk)
        meter.feed(expected, actual.to(expected.device), target_ids[begin + 1 : end + 1])
    return meter.finish(), meter.margins


def measure_quality(
    case: Case, loaded: Loaded, prompt: Prompt
) -> tuple[tuple[Agreement, ...], dict[str, Any]]:
    """Compare a variant with the exact reference, on the reference's greedy answer and on prose if enabled.

    The reference is the same checkpoint in the same dtype with transformers' default attention. It is loaded
    by layerstream within half of the free memory, except for the variant `streamed`, which is compared with
    the resident model if that fits.

    Returns:
        An agreement for each text, and facts: the reference, its answer and its margins, or why nothing was
        compared.
    """
    reference_case = case.with_changes(attention="default")
    free = free_bytes(loaded.model.device)
    prose = prose_ids(loaded.tokenizer, loaded.model) if case.prose else []
    if case.variant != "streamed":
        longest = max(prompt.num_tokens, CHUNK_POSITIONS)
        new_tokens = max(case.max_new_tokens, len(prose))
        budget = ls.MemoryBudget(device=int(_REFERENCE_SHARE * free))
        with streamed.open_streamed(
            reference_case, budget=budget, prompt_tokens=longest, new_tokens=new_tokens
        ) as reference:
            description = f"loaded by layerstream, blocks {reference.plan.placement_map()}"
            return _measure(case, loaded, reference.model, prompt, prose, description)
    needed = ls.profile_model(case.model, dtype=case.dtype).weight_bytes
    if needed > _FITS_SHARE * free:
        sizes = f"{ls.format_bytes(needed)} and {ls.format_bytes(free)} are free"
        reason = f"not compared: the resident model needs {sizes}"
        return (), {"reference": reason}
    resident_model = resident.load(reference_case.with_changes(variant="resident")).model
    description = "the resident model of plain transformers"
    return _measure(case, loaded, resident_model, prompt, prose, description)


def _measure(
    case: Case,
    loaded: Loaded,
    reference: PreTrainedModel,
    prompt: Prompt,
    prose: list[int],
    description: str,
) -> tuple[tuple[Agreement, ...], dict[str, Any]]:
    prompt_ids = prompt.token_ids.to(reference.device)
    with torch.no_grad():
        output = reference.generate(
            prompt_ids, attention_mask=torch.ones_like(prompt_ids), **greedy_arguments(case.max_new_tokens)
        )
    answer = [int(token) for token in output[0, prompt.num_tokens :]]
    prefix = [int(token) for token in prompt.token_ids[0]]
    # these texts are not part of what the measured budget was planned for
    with loaded.beyond_plan():
        on_answer, margins = compare_on("answer", prefix, answer, reference, loaded)
    facts = {"reference": description, "reference_token_ids": answer, "reference_margins": margins}
    if not prose:
        return (on_answer,), facts
    with loaded.beyond_plan():
        on_prose, _ = compare_on("prose", prose[:1], prose[1:], reference, loaded)
    return (on_answer, on_prose), facts


def prose_ids(tokenizer: PreTrainedTokenizerBase, model: PreTrainedModel) -> list[int]:
    """Return the tokens of this package's prose, cut to the length that the model supports."""
    text = files(__package__).joinpath("texts/prose.txt").read_text(encoding="utf-8")
    longest = min(
        PROSE_TOKENS, getattr(model.config.get_text_config(), "max_position_embeddings", PROSE_TOKENS)
    )
    return [int(token) for token in tokenizer(text, truncation=True, max_length=longest)["input_ids"]]


def free_bytes(device: torch.device) -> int:
    """Return the free memory on `device` in bytes."""
    if device.type != "cpu":
        free, _ = torch.get_device_module(device).mem_get_info(device)
        return int(free)
    return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
