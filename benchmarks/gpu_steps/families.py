"""Step `families`: every tiny model family, streamed from disk and from host, equals the resident model.

Bit for bit on the same device: logits of a left-padded batch, greedy tokens and their scores, at the smallest
budget, in fp16 and bf16.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import torch
from kit.budgets import PLENTY, WORKLOAD
from kit.compare import Tensors, first_difference, generate, left_padded_batch, reference
from kit.families import FAMILIES, save_tiny
from transformers import PreTrainedModel

import layerstream as ls

from .child import Case, Child, NotHereError, one_line
from .lines import Found, Row

DTYPES = ("float16", "bfloat16")
QUICK = ("llama", "mixtral")


def cases(child: Child) -> Iterator[Case]:
    """Yield every family in both dtypes."""
    torch.set_num_threads(1)
    for family in QUICK if child.is_quick else FAMILIES:
        for dtype in DTYPES:
            yield (
                f"{family} in {dtype}",
                2.0,
                lambda family=family, dtype=dtype: compare(child, family, dtype),
            )


def count(child: Child) -> int:
    """Return how many cases there are in all: a step that is cut off has not begun some of them."""
    return len(QUICK if child.is_quick else FAMILIES) * len(DTYPES)


def compare(child: Child, family: str, dtype: str) -> Found:
    """Compare one family in one dtype, from each tier that the device has."""
    path = child.work / f"{family}-{dtype}"
    try:
        save_tiny(family, path, getattr(torch, dtype))
        return compare_saved(child, path, family, dtype)
    finally:
        shutil.rmtree(path, ignore_errors=True)


def compare_saved(child: Child, path: Path, family: str, dtype: str) -> Found:
    """Compare one checkpoint: the resident model first, then each tier."""
    try:
        plain = reference(path, getattr(torch, dtype)).to(child.torch_device)
        expected = results(plain, child.torch_device)
    except Exception as error:
        raise NotHereError(f"plain transformers cannot run it here: {one_line(error)}") from error
    del plain
    rows = []
    for source, host in (("disk", "min"), ("host", PLENTY))[: 2 if child.has_two_tiers else 1]:
        budget = ls.MemoryBudget(device="min", host=host)
        with child.load(path, budget, WORKLOAD) as streamed:
            assert not streamed.plan.is_resident, "nothing is streamed: the comparison would prove nothing"
            difference = first_difference(expected, results(streamed.model, child.torch_device))
        rows.append(
            Row(
                what=f"families in {dtype} from {source} equal the resident model",
                target="all",
                met=difference is None,
                note=f"{family}: {difference}" if difference else "",
                tally=True,
                is_promise=True,
            )
        )
    return Found(rows=tuple(rows), figures={"equal": [row.met for row in rows]})


def results(model: PreTrainedModel, device: torch.device) -> Tensors:
    """Return logits, greedy tokens and their scores on `device`."""
    batch = {name: tensor.to(device) for name, tensor in left_padded_batch(model).items()}
    with torch.no_grad():
        logits = model(**batch).logits.clone()
    return {"logits": logits, **generate(model, **batch, do_sample=False)}
