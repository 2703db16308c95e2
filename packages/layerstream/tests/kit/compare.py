"""What a causal language model computes, and the comparison of two models bit for bit.

Test kit. A computation is a function from a transformers model to named tensors; the plain model and the
streamed one go through the same function. Knows no layerstream class.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import AutoModelForCausalLM, Cache, PreTrainedModel

Tensors = dict[str, torch.Tensor]
NEW_TOKENS = 5


def reference(path: str | Path, dtype: torch.dtype | str = "auto", **settings: Any) -> PreTrainedModel:
    """Return the plain resident model that a streamed model must equal."""
    return AutoModelForCausalLM.from_pretrained(path, dtype=dtype, **settings).eval()


def cache_argument(model: nn.Module, cache: Cache) -> dict[str, Cache]:
    """Return the keyword argument that passes `cache` to `model`."""
    # transformers 5.24 renamed `past_key_values` to `cache`.
    parameters = inspect.signature(type(model).forward).parameters
    return {"cache" if "cache" in parameters else "past_key_values": cache}


def left_padded_batch(model: PreTrainedModel, lengths: tuple[int, ...] = (9, 6)) -> Tensors:
    """Return `input_ids` and `attention_mask`: both (len(lengths), max(lengths)) int64, left-padded."""
    generator = torch.Generator().manual_seed(len(lengths))
    vocab_size = model.get_input_embeddings().weight.shape[0]
    longest = max(lengths)
    input_ids = torch.randint(5, min(vocab_size, 120), (len(lengths), longest), generator=generator)
    attention_mask = (torch.arange(longest) >= longest - torch.tensor(lengths)[:, None]).long()
    return {"input_ids": input_ids.where(attention_mask.bool(), 0), "attention_mask": attention_mask}


def logits(model: PreTrainedModel) -> Tensors:
    """Return the logits (batch, tokens, vocabulary) of a left-padded batch."""
    with torch.no_grad():
        return {"logits": model(**left_padded_batch(model)).logits}


def hidden_states(model: PreTrainedModel) -> Tensors:
    """Return all hidden states (batch, tokens, hidden) of a left-padded batch, the embedding's output first."""
    with torch.no_grad():
        output = model(**left_padded_batch(model), output_hidden_states=True, use_cache=False)
    return {f"hidden_states[{index}]": state for index, state in enumerate(output.hidden_states)}


def generate(model: PreTrainedModel, **settings: Any) -> Tensors:
    """Return the `sequences` (batch, tokens) and each step's `scores[i]` (rows, vocabulary) of `generate`."""
    arguments: dict[str, Any] = {
        **left_padded_batch(model),
        "min_new_tokens": NEW_TOKENS,
        "max_new_tokens": NEW_TOKENS,
        "pad_token_id": 0,
        "return_dict_in_generate": True,
        "output_scores": True,
        **settings,
    }
    output = model.generate(**arguments)
    return {
        **{f"scores[{step}]": scores for step, scores in enumerate(output.scores)},
        "sequences": output.sequences,
    }


def greedy(model: PreTrainedModel) -> Tensors:
    """Generate greedily from a left-padded batch."""
    return generate(model, do_sample=False)


def sampled(model: PreTrainedModel) -> Tensors:
    """Sample with a fixed seed."""
    torch.manual_seed(1234)
    return generate(model, do_sample=True, temperature=0.9, top_k=30)


def beam(model: PreTrainedModel) -> Tensors:
    """Search with three beams."""
    return generate(model, do_sample=False, num_beams=3)


def static_cache(model: PreTrainedModel) -> Tensors:
    """Generate greedily into a cache of fixed size."""
    return generate(model, do_sample=False, cache_implementation="static")


COMPUTATIONS: dict[str, Callable[[PreTrainedModel], Tensors]] = {
    "logits": logits,
    "greedy": greedy,
    "hidden_states": hidden_states,
    "sampled": sampled,
    "beam": beam,
    "static_cache": static_cache,
}
"""Every computation by name; every causal language model must support the first two."""

ESSENTIAL = ("logits", "greedy")


@dataclass(frozen=True, slots=True, kw_only=True)
class ReferenceResults:
    """What the plain model computed.

    Attributes:
        tensors: by computation, then by tensor name.
        unsupported: the computations that fail on the plain model itself, with its error.
    """

    tensors: dict[str, Tensors]
    unsupported: dict[str, str]


def compute_reference(model: PreTrainedModel, names: Iterable[str] = tuple(COMPUTATIONS)) -> ReferenceResults:
    """Return what `model`, a plain resident one, computes, and what it cannot compute.

    Raises:
        Exception: the model's own error when an essential computation fails, and AssertionError when logits
            are not finite or are flat: comparing those would prove nothing.
    """
    tensors: dict[str, Tensors] = {}
    unsupported: dict[str, str] = {}
    for name in names:
        try:
            tensors[name] = COMPUTATIONS[name](model)
        except Exception as error:  # Whatever the plain model raises is its own limit and is recorded.
            if name in ESSENTIAL:
                raise
            unsupported[name] = f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"
    if "logits" in tensors:
        _refuse_meaningless(tensors["logits"]["logits"], left_padded_batch(model)["attention_mask"].bool())
    return ReferenceResults(tensors=tensors, unsupported=unsupported)


def _refuse_meaningless(values: torch.Tensor, is_token: torch.Tensor) -> None:
    real = values[is_token].float()
    assert bool(torch.isfinite(real).all()), (
        "the plain model's logits are not finite: the test weights are badly scaled"
    )
    assert float(real.std(dim=-1).min()) > 1e-2, (
        "the plain model's logits are flat: the test weights are badly scaled"
    )


def bits(tensor: torch.Tensor) -> torch.Tensor:
    """Return the bytes of `tensor` (uint8), so that NaN equals itself and -0.0 differs from 0.0."""
    return tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8)


def first_difference(expected: Tensors, actual: Tensors) -> str | None:
    """Return the first difference between two sets of named tensors in words; None when every bit is equal."""
    if expected.keys() != actual.keys():
        return f"other tensors: expected {sorted(expected)}, got {sorted(actual)}"
    for name, target in expected.items():
        tensor = actual[name]
        if (target.shape, target.dtype) != (tensor.shape, tensor.dtype):
            return (
                f"{name}: expected {target.dtype} {tuple(target.shape)}, "
                f"got {tensor.dtype} {tuple(tensor.shape)}"
            )
        if not torch.equal(bits(target), bits(tensor)):
            unequal = int((~((target == tensor) | (target.isnan() & tensor.isnan()))).sum())
            distance = (target.double() - tensor.double()).abs().nan_to_num(posinf=float("inf")).max()
            return f"{name}: {unequal} of {target.numel()} elements differ, by at most {float(distance):.3g}"
    return None


def assert_same(expected: Tensors, actual: Tensors, what: str) -> None:
    """Assert that two sets of named tensors are equal in every bit; the error names the first difference."""
    difference = first_difference(expected, actual)
    assert difference is None, f"{what}: {difference}"


def assert_equals_reference(
    model: PreTrainedModel, results: ReferenceResults, names: Iterable[str], what: str
) -> None:
    """Assert that `model` computes what the plain model did, in each of `names` that the latter supports."""
    for name in names:
        if name not in results.unsupported:
            assert_same(results.tensors[name], COMPUTATIONS[name](model), f"{what}, {name}")
