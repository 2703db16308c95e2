"""The memory of requests that share sweeps: what each holds, and what the one inside a unit takes. No torch.

Every admitted request holds its KV cache, and what its forward carries from unit to unit while others run.
Only one at a time is inside a unit, where it also needs memory for its activations.
"""

from __future__ import annotations

from dataclasses import dataclass

from ..spec.options import Workload
from ..spec.plans import Granularity
from ..spec.profiles import ModelProfile
from ..spec.sizes import dtype_bytes
from .ledger import CARRIED_WIDTHS, activation_bytes, cache_bytes, cache_growth_bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class RequestMemory:
    """What micro-batches of one model take.

    Attributes:
        profile: the model's sizes.
        granularity: how finely its blocks are streamed: how much a forward carries depends on it.
    """

    profile: ModelProfile
    granularity: Granularity

    def kept_bytes(self, size: Workload) -> int:
        """Return the bytes that a micro-batch holds while it is admitted."""
        return cache_bytes(self.profile.activation, size) + self._carried_bytes(size)

    def inside_bytes(self, size: Workload) -> int:
        """Return the bytes that it takes in addition while it is inside a unit."""
        activations = activation_bytes(self.profile.activation, size) - self._carried_bytes(size)
        return activations + cache_growth_bytes(self.profile.activation, size)

    def _carried_bytes(self, size: Workload) -> int:
        activations = activation_bytes(self.profile.activation, size)
        widths = CARRIED_WIDTHS.get(self.granularity)
        if widths is None:
            return activations
        # the mask has one byte per pair of tokens
        token_bytes = widths * self.profile.hidden_size * dtype_bytes(self.profile.dtype) + size.prompt_tokens
        return min(activations, size.batch_size * size.prompt_tokens * token_bytes)
