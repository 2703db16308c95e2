"""Decide which requests may run together, within the memory that a plan leaves. No torch."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from ..spec.options import Workload
from ..spec.plans import PlacementPlan
from ..spec.profiles import ModelProfile
from .ledger import room_bytes
from .request_memory import RequestMemory
from .scoring_sweeps import scored_logits_bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class RequestBytes:
    """What one request takes.

    Attributes:
        kept: bytes that it holds while it is admitted.
        inside: bytes that it takes in addition while it is inside a unit.
    """

    kept: int
    inside: int


class Admission:
    """Decides whether one more request fits beside those that run.

    Attributes:
        room_bytes: what the plan leaves for requests.
        most_running: at most so many run together; None lets the memory decide.
    """

    def __init__(
        self, plan: PlacementPlan, profile: ModelProfile, *, most_running: int | None = None
    ) -> None:
        """Take the plan of a loaded model and the profile of the same model."""
        self.room_bytes = room_bytes(plan)
        self.most_running = most_running
        self._memory = RequestMemory(profile=profile, granularity=plan.granularity)

    def request_bytes(
        self, prompt_tokens: int, new_tokens: int, *, scores_prompt: bool = False
    ) -> RequestBytes:
        """Return what a request with these lengths takes, and the logits of its whole prompt if needed."""
        size = Workload(prompt_tokens=prompt_tokens, new_tokens=new_tokens)
        inside_bytes = self._memory.inside_bytes(size)
        if scores_prompt:
            inside_bytes += scored_logits_bytes(self._memory.profile, prompt_tokens)
        return RequestBytes(kept=self._memory.kept_bytes(size), inside=inside_bytes)

    def fits(self, request: RequestBytes, running: Iterable[RequestBytes]) -> bool:
        """Return whether a request fits beside those that run."""
        together = [request, *running]
        if self.most_running is not None and len(together) > self.most_running:
            return False
        return self.bytes_of(together) <= self.room_bytes

    @staticmethod
    def bytes_of(requests: Iterable[RequestBytes]) -> int:
        """Return what requests take together: one at a time is inside a unit."""
        each = list(requests)
        return sum(one.kept for one in each) + max((one.inside for one in each), default=0)
