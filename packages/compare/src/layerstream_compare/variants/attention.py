"""Attention variants: transformers' implementation and, forced, torch's SDPA backend. Runs in the worker."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

from torch.nn.attention import SDPBackend, sdpa_kernel

from ..case import Case
from .registry import find_variant


def implementation_of(case: Case) -> str | None:
    """Return the case's `attn_implementation`; None keeps transformers' default."""
    return find_variant(case.attention, "attention").implementation or None


def forced_backend(case: Case) -> AbstractContextManager[None]:
    """Return a context in which `scaled_dot_product_attention` may only use the case's backend.

    Without a forced backend the context does nothing. Inside, torch raises `RuntimeError: No available
    kernel` if the backend does not support the tensors it gets.
    """
    backend = find_variant(case.attention, "attention").backend
    if not backend:
        return nullcontext()
    forced: AbstractContextManager[None] = sdpa_kernel(SDPBackend.__members__[backend])
    return forced
