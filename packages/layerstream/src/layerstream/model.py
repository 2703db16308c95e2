"""The streamed model: transformers' own model, with weights that come and go.

It owns threads, buffers and hooks, and `close()` releases all of them. With several devices it owns one
replica per device, all fed by the same reads.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from functools import partial
from types import TracebackType
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from transformers import PreTrainedConfig, PreTrainedModel

from .engine.abandoned import close_when_dropped
from .engine.adapters import Adapter
from .engine.build import BuiltModel
from .engine.model_patches import named_after
from .engine.replica import Replica, ReplicaControl
from .engine.run_counters import RunCounters
from .engine.run_parallel import run_in_parallel
from .engine.verification import RecordedCall
from .engine.workload_watch import WorkloadWatch
from .errors import StreamClosedError, StreamError
from .planning.forward_limits import ForwardLimits
from .spec.options import Workload
from .spec.report import StreamReport
from .spec.speculation import VerifiedTokens
from .spec.verification import UnitVerification, VerificationReport
from .speculation.decode import PLAIN_KEYWORDS, Speculator
from .streaming.sweep_group import SweepGroup

T = TypeVar("T")

_OWN = frozenset({"group", "model", "options", "plan", "profile", "replicas", "timeline"})
"""Attributes that a streamed model sets on itself, and not on its `model`."""

_VERIFIED_TOKENS = 8


class StreamedModel:
    """A causal language model within a memory budget.

    transformers' pipelines take it as they take `model`: public attributes that it does not have itself are
    those of `model`, in reading and in writing, and its class has the name of `model`'s class.

    Attributes:
        model: the real `PreTrainedModel`; pipelines, peft and evaluation harnesses take it as it is. With
            several devices, the first one's. With an adapter of prompt learning, peft's model around it.
        group: lets several tasks share every sweep; see `SweepGroup.run`. With several devices, the first
            one's.
        replicas: one replica per device. They have the same weights and share each read.
        options: how it was loaded.
        plan: where everything lives.
        profile: the model's sizes.
        timeline: what happened when.
    """

    def __init__(
        self,
        built: BuiltModel,
        *,
        baseline_bytes: int,
        limits: ForwardLimits | None = None,
        speculation: Speculator | None = None,
        on_close: Callable[[], None] | None = None,
    ) -> None:
        """Take over a built model; users call `load`.

        Args:
            built: the model and what moves its weights.
            baseline_bytes: this process's resident memory before the model was built.
            limits: what its forwards may take; None lets each one pass.
            speculation: decodes with a draft; None decodes plainly.
            on_close: ends what still brings its files, if anything does.
        """
        self._speculation, self._on_close = speculation, on_close
        self.options, self.plan, self.profile = built.options, built.plan, built.profile
        self.timeline = built.timeline
        self._reader, self._prefetcher, self._arenas = built.reader, built.prefetcher, built.arenas
        self._runtimes = tuple(parts.runtime for parts in built.replicas)
        self._watch = WorkloadWatch(limits)
        self._controls = tuple(
            ReplicaControl(
                parts,
                baseline_bytes=baseline_bytes,
                watch=self._watch,
                # on a CPU, replicas share the memory of the weights
                refuses_merges=not built.plan.is_resident or len(built.replicas) > 1,
            )
            for parts in built.replicas
        )
        self._is_closed = False
        self._call_off_closing = close_when_dropped(built)
        self._put_adapters(built.adapters)
        self.replicas: tuple[Replica, ...] = tuple(control.replica for control in self._controls)
        self.model: PreTrainedModel = self.replicas[0].model
        self.group: SweepGroup = self.replicas[0].group
        self._running_on_devices = threading.Lock()
        self._counters = RunCounters(self.timeline, self._controls)
        self.__class__ = named_after(type(self), self.model)

    @property
    def config(self) -> PreTrainedConfig:
        """The model's config."""
        config: PreTrainedConfig = self.model.config
        return config

    @config.setter
    def config(self, config: PreTrainedConfig) -> None:
        self.model.config = config

    @property
    def device(self) -> torch.device:
        """Where the model computes; with several devices, the first."""
        device: torch.device = self.model.device
        return device

    @property
    def dtype(self) -> torch.dtype:
        """The run dtype."""
        dtype: torch.dtype = self.model.dtype
        return dtype

    if not TYPE_CHECKING:  # A type checker must still find a misspelt name.

        def __getattr__(self, name: str) -> object:
            # Private names are never the model's: copying and pickling look for some before there is a model.
            if name.startswith("_") or "model" not in self.__dict__:
                raise AttributeError(f"{type(self).__qualname__} has no attribute {name!r}")
            return getattr(self.model, name)

        def __setattr__(self, name: str, value: object) -> None:
            is_own = name.startswith("_") or name in _OWN or hasattr(type(self), name)
            if is_own:
                object.__setattr__(self, name, value)
            else:
                setattr(self.model, name, value)

    def _put_adapters(self, adapters: Sequence[Adapter]) -> None:
        """Put `adapters` on every replica's model; if that fails, close."""
        try:
            for control in self._controls if adapters else ():
                control.put_adapters(adapters)
        except BaseException:
            self.close()
            raise

    def set_adapter(self, name: str) -> None:
        """Make one of the adapters given to `load` active on every device; `"base"` turns all of them off.

        Unlike `model.set_adapter`, it leaves the adapters frozen, as they were loaded.

        Raises:
            AdapterError: there is no such adapter.
            StreamClosedError: the model is closed.
        """
        self._check_open()
        for control in self._controls:
            control.set_adapter(name)

    def generate(self, *args: Any, **kwargs: Any) -> Any:
        """Generate on the first device with transformers' own `generate()`, which gets every argument.

        With a draft, one sequence that is decoded greedily or sampled takes fewer sweeps; the tokens stay
        those of plain generation. Beams, several sequences, and what transformers speculates itself
        (`assistant_model=`, `prompt_lookup_num_tokens=`) run as without a draft.
        """
        self._check_open()
        if self._speculation is not None and not PLAIN_KEYWORDS & kwargs.keys():
            # `generate()` does not hand its streamer on to a function
            kwargs["custom_generate"] = partial(
                self._speculation,
                run_together=self.group.run_together,
                waited_s=self._counters.waited_s,
                streamer=kwargs.get("streamer"),
            )
        return self.model.generate(*args, **kwargs)

    @property
    def on_verified(self) -> Callable[[VerifiedTokens], object] | None:
        """Called after each sweep that a draft takes part in, with what it verified; None calls nothing.

        It runs in the thread that generates, and must be quick.
        """
        return None if self._speculation is None else self._speculation.on_verified

    @on_verified.setter
    def on_verified(self, call: Callable[[VerifiedTokens], object] | None) -> None:
        if self._speculation is not None:
            self._speculation.on_verified = call

    @property
    def tokens_per_sweep(self) -> float:
        """Tokens that an answer grows by in a sweep: measured, or planned at first; 1 without a draft."""
        measured = 0.0
        if self._speculation is not None:
            measured = self._speculation.statistics.report().tokens_per_sweep
        forecast = self.plan.draft_forecast
        return measured or (1.0 if forecast is None else forecast.tokens_per_sweep)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Run one forward, which is one sweep, on the first device."""
        self._check_open()
        return self.model(*args, **kwargs)

    def run_on_devices(self, work: Callable[[Replica], T]) -> list[T]:
        """Run `work` for every device at the same time, fed by the same reads, and return the results.

        The first device's work runs in the calling thread, each other one in a thread of its own. Forwards of
        different devices keep in step: one that runs ahead waits until the others have caught up, failed or
        returned. A device whose work has returned does not hold up the others. Calls of `work` must not wait
        for one another. If a device's work stays outside a forward while the others wait, they go on without
        it after two seconds, which costs extra reads.

        Args:
            work: called with each device's replica. It may run any number of forwards and `generate()` calls
                on `replica.model`, with inputs on `replica.device`. All threads share torch's CPU random
                generator.

        Returns:
            The results, in the order of the devices.

        Raises:
            BaseException: the first error of any work. In the others the next forward, or the next unit of
                the current one, raises `ReplicaStoppedError`. All have ended when this returns, and the model
                can be used again.
            StreamClosedError: the model is closed.
            StreamError: another `run_on_devices` of this model is still running.
        """
        self._check_open()
        if len(self.replicas) == 1:
            return [work(self.replicas[0])]
        if not self._running_on_devices.acquire(blocking=False):
            raise StreamError(
                "run_on_devices is already running: pass all the work to one call, or wait for it"
            )
        try:
            if self._prefetcher is not None:
                self._prefetcher.start_in_step()
            works = [partial(self._run_on, work, replica) for replica in self.replicas]
            return run_in_parallel(works, on_failure=self._stop_others)
        finally:
            for control in self._controls:
                control.resume()
            self._running_on_devices.release()

    def _run_on(self, work: Callable[[Replica], T], replica: Replica) -> T:
        with self.on_device(replica):
            return work(replica)

    @contextmanager
    def on_device(self, replica: Replica) -> Iterator[None]:
        """Let the calling thread run forwards on one device, in step with the devices that run meanwhile.

        It is for threads that each serve one device and get work at different times; `run_on_devices` is
        simpler. Inside, other devices wait for this one's next forward, up to two seconds. Outside, they wait
        for nothing. The first forward joins when the others come round to its first unit. Not to be nested.
        If a `run_on_devices` fails meanwhile, the forwards in here stop too.

        Args:
            replica: one of `replicas`.

        Raises:
            StreamClosedError: the model is closed.
        """
        self._check_open()
        control = self._controls[replica.index]
        try:
            control.join_step()
            with self._runtimes[replica.index].current():
                yield
        finally:
            control.leave_step()

    def _stop_others(self, failed: int, error: BaseException) -> None:
        for index, control in enumerate(self._controls):
            if index != failed:
                control.stop(error)

    def beyond_plan(self) -> AbstractContextManager[None]:
        """Return a context in which forwards may exceed the planned workload, and the budget, without a word.

        Outside it, what exceeds the workload warns once, and what cannot fit the budget raises
        `WorkloadExceededError`.
        """
        return self._watch.lifted()

    @property
    def is_closed(self) -> bool:
        """Whether `close()` was called."""
        return self._is_closed

    def report(self) -> StreamReport:
        """Return what was moved, waited for and computed since loading or the last `reset_report()`."""
        speculation = None if self._speculation is None else self._speculation.statistics.report()
        return self._counters.report(self.plan, speculation)

    def verify(self) -> VerificationReport:
        """Compare streamed units with resident copies of them, bit for bit, on this machine.

        One short forward runs on each device, and its inputs and outputs are kept for the first, a middle and
        the last streamed unit, one of each kind, and the head. Then the slots are freed, and each unit is
        computed once more by a copy whose weights safetensors and torch load, one copy at a time. The memory
        stays within the plan; forwards of other threads wait.

        Returns:
            What was compared. Empty where nothing is streamed. It raises nothing for a difference.

        Raises:
            StreamError: it was called inside a forward, or from a task that shares sweeps.
        """
        self._check_open()
        if self.group.is_task_thread():
            raise StreamError("verify() cannot run inside a task: call it when no task runs")
        workload = self.options.workload or Workload()
        tokens = min(
            _VERIFIED_TOKENS, workload.prompt_tokens, workload.prefill_chunk_tokens or _VERIFIED_TOKENS
        )
        recorded = self.run_on_devices(
            lambda replica: self._controls[replica.index].record_calls(self.plan, tokens)
        )
        return VerificationReport(
            model_name=self.plan.model_name,
            dtype=self.plan.dtype,
            units=tuple(self._compare(recorded)) if any(recorded) else (),
        )

    def _compare(self, recorded: Sequence[Sequence[RecordedCall]]) -> list[UnitVerification]:
        """Compare the calls of each device with resident copies, while no forward runs."""
        with ExitStack() as stack:
            for control in self._controls:
                stack.enter_context(control.gate.shut())
            stack.callback(self._restore_slots)
            for control in self._controls:
                control.free_slots()
            return [
                verification
                for control, calls in zip(self._controls, recorded, strict=True)
                for verification in control.compare_calls(self.plan, calls)
            ]

    def _restore_slots(self) -> None:
        try:
            for control in self._controls:
                control.restore_slots()
        except BaseException:
            # Without slots, a forward would wait for ever.
            self.close()
            raise

    def reset_report(self) -> None:
        """Start the next report from here."""
        if self._speculation is not None:
            self._speculation.reset_report()
        self._counters.reset()

    def close(self) -> None:
        """Stop every thread, free every buffer and remove every hook; safe to call twice.

        The weights are gone afterwards: a later forward raises `StreamClosedError`.
        """
        if self._is_closed:
            return
        self._is_closed = True
        self._call_off_closing()
        if self._on_close is not None:
            self._on_close()
        for control in self._controls:
            control.stop_streaming()
        if self._prefetcher is not None:
            self._prefetcher.close()
        self._reader.close()
        for control in self._controls:
            control.unload()
        for arena in self._arenas:
            arena.close()
        if self._speculation is not None:
            self._speculation.close()

    def __enter__(self) -> StreamedModel:
        """Return this model; leaving the block closes it."""
        self._check_open()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close."""
        self.close()

    def _check_open(self) -> None:
        if self._is_closed:
            raise StreamClosedError("this streamed model is closed: load it again")
