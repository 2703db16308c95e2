"""A service on a small model, requests for it, and what plain transformers answers to them.

Test kit.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from transformers import AutoTokenizer

import layerstream as ls
from layerstream.uses.serving.service import GenerationService

from .compare import reference

WORKLOAD = ls.Workload(batch_size=4, prompt_tokens=48, new_tokens=48)
TEXTS = ["The sea is", "Two and two", "Once upon a time there was", "x"]


@contextmanager
def serving(path: Path, most_waiting: int = 64, **options: object) -> Iterator[GenerationService]:
    given = {"budget": "min", "workload": WORKLOAD, **options}
    with ls.load(path, **given) as streamed:  # type: ignore[arg-type]
        service = GenerationService(streamed, most_waiting=most_waiting)
        try:
            yield service
        finally:
            service.close()


def asked(prompt: str | list[int], tokens: int = 12, **settings: object) -> ls.GenerationRequest:
    settings.setdefault("options", {"eos_token_id": None})
    return ls.GenerationRequest(prompt=prompt, max_new_tokens=tokens, **settings)  # type: ignore[arg-type]


def plain(path: Path, request: ls.GenerationRequest) -> list[int]:
    """Return the new tokens of plain transformers."""
    tokenizer = AutoTokenizer.from_pretrained(path)
    inputs = tokenizer(request.prompt, return_tensors="pt")
    if request.seed is not None:
        torch.manual_seed(request.seed)
    options = {"tokenizer": tokenizer, **request.generate_options()}
    found = reference(path).generate(**inputs, max_new_tokens=request.max_new_tokens, **options)
    return found[0, inputs["input_ids"].shape[1] :].tolist()
