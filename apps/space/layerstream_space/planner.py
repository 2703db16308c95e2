"""Plans for any model on any machine, made in this process from profiles.

Only profiling needs torch, so a child process does it. Profiles and the figures of this machine are kept, so
later plans are plain arithmetic and need no child process.
"""

from __future__ import annotations

import math
import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace

import layerstream as ls

from .errors import VisitorError
from .profiler import Profiler

NUM_PROMPTS = 1000
"""How many prompts `many_prompts` plans for."""

BATCH_SIZES = (8, 32, 128)
"""Numbers of prompts at a time that are tried beside one. Each costs a search of a quarter of a second."""

MAX_PROFILES = 64
PROBE_EVERY_S = 600.0
FETCH_WITHIN_S = 600.0
KNOWN_WITHIN_S = 600.0


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
class ManyPrompts:
    """The plan that answers many prompts soonest, several at a time.

    Attributes:
        at_once: how many of them share every sweep over the weights.
        total_s: seconds until the last one is answered, calculated.
    """

    at_once: int
    total_s: float

    @property
    def answer_s(self) -> float:
        """The seconds of one answer, on average."""
        return self.total_s / NUM_PROMPTS


@dataclass(frozen=True, slots=True, kw_only=True)
class PlanAnswer:
    """The answer to "Will it fit?".

    Attributes:
        plan: the plan; None if the budget is too small.
        reason: why there is no plan; empty if there is one.
        profile: the model.
        machine: the machine.
        workload: the lengths that were planned for.
    """

    plan: ls.PlacementPlan | None
    reason: str
    profile: ls.ModelProfile
    machine: ls.Machine
    workload: ls.Workload

    @property
    def minimum_bytes(self) -> int:
        """The smallest device memory that works; planned when it is asked for."""
        return _minimum_bytes(_plans(self.profile, self.machine, self.workload))


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
        draft: str | None = None,
    ) -> PlanAnswer:
        """Return where a model's weights would live on a machine.

        Args:
            source: the model.
            machine: the machine; None is this one.
            workload: prompt and answer lengths.
            dtype: the run dtype.
            share: share of the memory between the minimum (0) and all weights resident (1); by default the
                machine's free memory is the budget.
            draft: what proposes tokens, as for `layerstream.simulate`.

        Raises:
            VisitorError: why the model cannot be planned.
        """
        machine = machine or self.this_machine()
        profile = self.profile(source, dtype=dtype, device=machine.device)
        plan_within = _plans(profile, machine, workload, draft)
        plan, reason = None, ""
        try:
            budget: str | int = "auto"
            if share is not None:
                minimum_bytes = _minimum_bytes(plan_within)
                all_bytes = _resident_bytes(plan_within, profile)
                budget = minimum_bytes + round(min(max(share, 0.0), 1.0) * max(0, all_bytes - minimum_bytes))
            plan = plan_within(budget)
        except ls.BudgetTooSmallError as error:
            reason = str(error)
        except ls.LayerstreamError as error:
            raise VisitorError(" ".join(str(error).split())) from error
        return PlanAnswer(
            plan=plan,
            reason=reason,
            profile=profile,
            machine=machine,
            workload=workload,
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
        # a visitor's config may be enormous; a well-known model takes long on a busy machine only
        within_s = KNOWN_WITHIN_S if source.known else None
        answer = self._profiler.ask("profile", **asdict(source), dtype=dtype, device=kind, within_s=within_s)
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


def many_prompts(answer: PlanAnswer) -> ManyPrompts | None:
    """Return how soon `NUM_PROMPTS` are answered when they share sweeps; None if not even one fits.

    Each candidate is the plan for a batch of that size, as `layerstream plan --batch-size` makes it. The
    batches run one after another.
    """
    if answer.plan is None:
        return None
    best = _in_batches(answer.plan, answer.workload)
    for batch_size in BATCH_SIZES:
        workload = replace(answer.workload, batch_size=batch_size)
        try:
            plan = ls.simulate(answer.profile, machine=answer.machine, workload=workload)
        except ls.BudgetTooSmallError:
            break
        best = min(best, _in_batches(plan, workload), key=lambda each: each.total_s)
    return best


def _in_batches(plan: ls.PlacementPlan, workload: ls.Workload) -> ManyPrompts:
    num_batches = math.ceil(NUM_PROMPTS / workload.batch_size)
    total_s = num_batches * answer_s(plan, workload.new_tokens)
    return ManyPrompts(at_once=workload.batch_size, total_s=total_s)


def answer_s(plan: ls.PlacementPlan, new_tokens: int) -> float:
    """Return the calculated seconds of an answer: the prompt, and one sweep for every token."""
    return plan.cost.prefill_s + new_tokens * plan.cost.sweep_s


def _plans(
    profile: ls.ModelProfile, machine: ls.Machine, workload: ls.Workload, draft: str | None = None
) -> Callable[[str | int], ls.PlacementPlan]:
    """Return a function that plans within a budget."""

    def plan_within(budget: str | int) -> ls.PlacementPlan:
        return ls.simulate(profile, machine=machine, workload=workload, budget=budget, draft=draft)

    return plan_within


def _minimum_bytes(plan_within: Callable[[str | int], ls.PlacementPlan]) -> int:
    try:
        return plan_within("min").ledger.device_budget_bytes
    except ls.BudgetTooSmallError as error:
        # the host has too little memory; the device's minimum does not help then
        return error.needed_bytes


def _resident_bytes(plan_within: Callable[[str | int], ls.PlacementPlan], profile: ls.ModelProfile) -> int:
    """Return the device memory at which no weights stream any more."""
    return plan_within(8 * profile.weight_bytes + 64 * 2**30).ledger.device_bytes
