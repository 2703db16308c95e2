"""Teacher forcing: two models read the same text in the same chunks, and their logits are compared before the next chunk.

Worker's side. A KV cache carries each model from chunk to chunk, so that a streamed reference reads its weights once for many
positions, and no logits are kept. Both get equal shapes: what differs is the models.
"""

from __future__ import annotations

import inspect
import os
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
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
from .generation import greedy_arguments

CHUNK_POSITIONS = 64
"""Positions of one forward while comparing."""

PROSE_TOKENS = 512
"""At most so many of the prose are read."""

_FITS_SHARE = 0.7
"""A resident counterpart is loaded only where its weights take less than this share of the memory that is free."""

_REFERENCE_SHARE = 0.5
"""A streamed reference may take this share of the memory that is free: all figures are taken by then, and its results are the same
at every budget; a small one only takes longer."""


@dataclass(slots=True)
class Reader:
    """A model that reads a text chunk by chunk.

    Attributes:
        model: transformers' model.
        context: what its forwards run in.
    """

    model: PreTrainedModel
    context: AbstractContextManager[None] = field(default_factory=nullcontext)
    _cache: Any = None

    def read(self, token_ids: torch.Tensor, *, last_only: bool = False) -> torch.Tensor:
        """Read on and return the logits, shape [positions, vocabulary], of every position or of the last alone.

        Args:
            token_ids: the next tokens, int64, shape [1, positions].
            last_only: compute the last position's logits only, where the model can.
        """
        arguments: dict[str, Any] = {"use_cache": True, "past_key_values": self._cache}
        if last_only and "logits_to_keep" in inspect.signature(self.model.forward).parameters:
            arguments["logits_to_keep"] = 1
        with torch.no_grad():
            outputs = self.model(token_ids.to(self.model.device), **arguments)
        self._cache = outputs.past_key_values
        logits: torch.Tensor = outputs.logits[0, -1:] if last_only else outputs.logits[0]
        return logits


def compare_on(
    text: str, prefix: list[int], targets: list[int], reference: PreTrainedModel, loaded: Loaded
) -> tuple[Agreement, list[float]]:
    """Return how well a variant agrees with the reference where both read `prefix` and then predict `targets`, one after another.

    ```
    read       prefix            t0 t1 ... | t31 ...
    predicted         t0 (last)  t1 t2 ... | t32 ...
    ```

    Args:
        text: what the text is called.
        prefix: tokens that are read and not compared but for what follows the last; one or more.
        targets: tokens that are predicted; one or more.
        reference: the exact model.
        loaded: the variant.

    Returns:
        The agreement, and the reference's margin p1 - p2 at each target.
    """
    meter = AgreementMeter(text)
    ours, theirs = Reader(reference), Reader(loaded.model)
    start, following = torch.tensor([prefix]), torch.tensor(targets)
    expected = ours.read(start, last_only=True)
    with loaded.context():
        got = theirs.read(start, last_only=True)
    meter.feed(expected, got.to(expected.device), following[:1])
    for begin in range(0, len(targets) - 1, CHUNK_POSITIONS):
        end = min(begin + CHUNK_POSITIONS, len(targets) - 1)
        chunk = following[None, begin:end]
        expected = ours.read(chunk)
        with loaded.context():
            got = theirs.read(chunk)
        meter.feed(expected, got.to(expected.device), following[begin + 1 : end + 1])
    return meter.finish(), meter.margins


def measure_quality(
    case: Case, loaded: Loaded, prompt: Prompt
) -> tuple[tuple[Agreement, ...], dict[str, Any]]:
    """Compare a variant with the exact reference on the reference's own greedy answer and, if asked, on this package's prose.

    The reference is the same checkpoint in the same dtype with transformers' own attention: loaded by layerstream, within half of
    the free memory, for every variant but `streamed` itself, which is compared with the resident model where that fits.

    Returns:
        An agreement for each text, and facts: what the reference was, its answer, its margins; or why nothing was compared.
    """
    plain = case.with_changes(attention="default")
    free = free_bytes(loaded.model.device)
    prose = prose_ids(loaded.tokenizer, loaded.model)
    if case.variant != "streamed":
        longest = max(prompt.num_tokens, CHUNK_POSITIONS)
        new_tokens = max(case.max_new_tokens, len(prose))
        budget = int(_REFERENCE_SHARE * free)
        with streamed.open_streamed(
            plain, budget=budget, prompt_tokens=longest, new_tokens=new_tokens
        ) as counterpart:
            what = f"loaded by layerstream, blocks {counterpart.plan.placement_map()}"
            return _measure(case, loaded, counterpart.model, prompt, prose, what)
    needed = ls.profile_model(case.model, dtype=case.dtype).weight_bytes
    if needed > _FITS_SHARE * free:
        why = f"not compared: the resident model needs {needed} bytes and {free} are free"
        return (), {"reference": why}
    counterpart_model = resident.load(plain.with_changes(variant="resident")).model
    return _measure(
        case, loaded, counterpart_model, prompt, prose, "the resident model of plain transformers"
    )


def _measure(
    case: Case, loaded: Loaded, reference: PreTrainedModel, prompt: Prompt, prose: list[int], what: str
) -> tuple[tuple[Agreement, ...], dict[str, Any]]:
    prompt_ids = prompt.token_ids.to(reference.device)
    with torch.no_grad():
        whole = reference.generate(
            prompt_ids, attention_mask=torch.ones_like(prompt_ids), **greedy_arguments(case.max_new_tokens)
        )
    answer = [int(token) for token in whole[0, prompt.num_tokens :]]
    prefix = [int(token) for token in prompt.token_ids[0]]
    on_answer, margins = compare_on("answer", prefix, answer, reference, loaded)
    facts = {"reference": what, "reference_token_ids": answer, "reference_margins": margins}
    if not case.prose:
        return (on_answer,), facts
    on_prose, _ = compare_on("prose", prose[:1], prose[1:], reference, loaded)
    return (on_answer, on_prose), facts


def prose_ids(tokenizer: PreTrainedTokenizerBase, model: PreTrainedModel) -> list[int]:
    """Return the tokens of the prose that ships with this package, cut to what the model can read."""
    text = files(__package__).joinpath("texts/prose.txt").read_text(encoding="utf-8")
    longest = min(
        PROSE_TOKENS, getattr(model.config.get_text_config(), "max_position_embeddings", PROSE_TOKENS)
    )
    return [int(token) for token in tokenizer(text, truncation=True, max_length=longest)["input_ids"]]


def free_bytes(device: torch.device) -> int:
    """Return the memory that is free for a model on `device`."""
    if device.type != "cpu":
        free, _ = torch.get_device_module(device).mem_get_info(device)
        return int(free)
    return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
