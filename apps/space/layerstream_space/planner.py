"""Plans for any model on any machine, made in this process from profiles.

Only profiling needs torch, so a child process does it. Profiles and the figures of this machine are kept, so
later plans are plain arithmetic and need no child process.
"""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass

import layerstream as ls

from .errors import VisitorError
from .profiler import Profiler

MAX_PROFILES = 16
PROBE_EVERY_S = 600.0
FETCH_WITHIN_S = 600.0


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelSource:
    """Where a model's shape comes from; exactly one attribute is not empty.

    Attributes:
        model: a directory or Hub id.
        known: layerstream's name of a well-known model.
        config: the text of a `config.json`.
    """

    model: str = ""
    known: str = ""
    config: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class PlanAnswer:
    """The answer to "Will it fit?".

    Attributes:
        plan: the plan; None if the budget is too small.
        reason: why there is no plan; empty if there is one.
        minimum_bytes: the smallest device memory that works.
        profile: the model.
        machine: the machine.
    """

    plan: ls.PlacementPlan | None
    reason: str
    minimum_bytes: int
    profile: ls.ModelProfile
    machine: ls.Machine


class Planner:
    """Plans models; keeps their profiles."""

    def __init__(self, profiler: Profiler | None = None) -> None:
        """Create a planner; nothing is started yet.

        Args:
            profiler: profiles models; by default in a new child process.
        """
        self._profiler = profiler or Profiler()
        self._lock = threading.Lock()
        self._profiles: OrderedDict[tuple[ModelSource, str, str], ls.ModelProfile] = OrderedDict()
        self._machine: ls.Machine | None = None
        self._probed_s = 0.0
        self._default_model = ""
        self._pool = ThreadPoolExecutor(max_workers=4, thread_name_prefix="planner")

    def plan(
        self,
        source: ModelSource,
        *,
        machine: ls.Machine | None,
        workload: ls.Workload,
        dtype: str = "auto",
        share: float | None = None,
    ) -> PlanAnswer:
        """Return where a model's weights would live on a machine.

        Args:
            source: the model.
            machine: the machine; None is this one.
            workload: prompt and answer lengths.
            dtype: the run dtype.
            share: share of the memory between the minimum (0) and all weights resident (1); by default the
                machine's free memory is the budget.

        Raises:
            VisitorError: why the model cannot be planned.
        """
        machine = machine or self.this_machine()
        profile = self.profile(source, dtype=dtype, device=machine.device)

        def plan_within(budget: str | int) -> ls.PlacementPlan:
            return ls.simulate(profile, machine=machine, workload=workload, budget=budget)

        plan, reason = None, ""
        try:
            minimum_bytes = _minimum_bytes(plan_within)
            budget: str | int = "auto"
            if share is not None:
                all_bytes = _resident_bytes(plan_within, profile)
                budget = minimum_bytes + round(min(max(share, 0.0), 1.0) * max(0, all_bytes - minimum_bytes))
            plan = plan_within(budget)
        except ls.BudgetTooSmallError as error:
            reason = str(error)
        except ls.LayerstreamError as error:
            raise VisitorError(" ".join(str(error).split())) from error
        return PlanAnswer(
            plan=plan, reason=reason, minimum_bytes=minimum_bytes, profile=profile, machine=machine
        )

    def profile(self, source: ModelSource, *, dtype: str = "auto", device: str = "cpu") -> ls.ModelProfile:
        """Return a model's profile, from the child process unless an earlier one was kept.

        Raises:
            VisitorError: why the model cannot be profiled.
        """
        kind = device.split(":")[0]
        key = (source, dtype, kind)
        with self._lock:
            if key in self._profiles:
                self._profiles.move_to_end(key)
                return self._profiles[key]
        # not under the lock: a model that takes long must not delay the others' plans
        answer = self._profiler.ask("profile", **asdict(source), dtype=dtype, device=kind)
        profile = ls.ModelProfile.from_dict(answer["profile"])
        with self._lock:
            self._profiles[key] = profile
            if len(self._profiles) > MAX_PROFILES:
                self._profiles.popitem(last=False)
        return profile

    def this_machine(self) -> ls.Machine:
        """Return this machine's figures, measured again if they are old, which takes seconds."""
        if self._machine is None or time.monotonic() - self._probed_s > PROBE_EVERY_S:
            self._machine = ls.Machine.from_dict(self._profiler.ask("this_machine")["machine"])
            self._probed_s = time.monotonic()
        return self._machine

    def default_model(self) -> str:
        """Return the directory of the default model; fetching it the first time takes half a minute."""
        if not self._default_model:
            answer = self._profiler.ask("default_model", within_s=FETCH_WITHIN_S)
            self._default_model = str(answer["path"])
        return self._default_model

    def fetch_default_model(self) -> Future[str]:
        """Return the result of `default_model` as a future, without waiting for it."""
        return self._pool.submit(self.default_model)

    def close(self) -> None:
        """End the child process."""
        self._pool.shutdown(wait=False, cancel_futures=True)
        self._profiler.close()


def _minimum_bytes(plan_within: Callable[[str | int], ls.PlacementPlan]) -> int:
    try:
        return plan_within("min").ledger.device_budget_bytes
    except ls.BudgetTooSmallError as error:
        # the host has too little memory; the device's minimum does not help then
        return error.needed_bytes


def _resident_bytes(plan_within: Callable[[str | int], ls.PlacementPlan], profile: ls.ModelProfile) -> int:
    """Return the device memory at which no weights stream any more."""
    return plan_within(8 * profile.weight_bytes + 64 * 2**30).ledger.device_bytes
