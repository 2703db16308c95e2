"""Attention variants: which implementation transformers is told, and which backend of torch is forced around its forwards.

Worker's side. It knows nothing of weights.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

from torch.nn.attention import SDPBackend, sdpa_kernel

from ..case import Case
from .registry import find_variant


def implementation_of(case: Case) -> str | None:
    """Return the `attn_implementation` that `case` asks for; None leaves transformers' choice."""
    return find_variant(case.attention, "attention").implementation or None


def forced_backend(case: Case) -> AbstractContextManager[None]:
    """Return a context in which only the case's backend of `scaled_dot_product_attention` may run; an empty one by default.

    torch raises `RuntimeError: No available kernel` inside where that backend does not take the tensors it is given.
    """
    backend = find_variant(case.attention, "attention").backend
    if not backend:
        return nullcontext()
    forced: AbstractContextManager[None] = sdpa_kernel(SDPBackend.__members__[backend])
    return forced
