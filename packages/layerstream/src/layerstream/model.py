"""The streamed model: transformers' own model with its weights' life in our hands.

Layer: composition. Owns threads, buffers and hooks, and gives all of them back. With several devices it owns a replica on each, all
fed by one reading of the weights.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from types import TracebackType
from typing import Any, TypeVar

from transformers import PreTrainedModel

from .engine.build import BuiltModel
from .engine.replica import Replica
from .engine.run_parallel import run_in_parallel
from .errors import StreamClosedError, StreamError
from .spec.plans import Residency
from .spec.report import StreamReport
from .spec.timeline import Activity
from .streaming.sweep_group import SweepGroup

T = TypeVar("T")


@dataclass(frozen=True, slots=True, kw_only=True)
class _Marks:
    """Where a report starts: the counters at that time, forwards and seconds for each device."""

    sweeps: tuple[int, ...]
    elapsed_s: tuple[float, ...]
    num_bytes: dict[Activity, int]
    seconds: dict[Activity, float]


class StreamedModel:
    """A causal language model within a memory budget.

    Attributes:
        model: the real `PreTrainedModel`: pipelines, peft and evaluation harnesses take it as it is. With several devices, the
            first one's.
        replicas: the real `PreTrainedModel` of each device; the same weights, one reading.
        group: lets several computations share every sweep; see `SweepGroup.run`. With several devices, the first one's.
        groups: the group of each device.
        plan: where everything lives.
        profile: the model as numbers.
        timeline: what happened when.
    """

    def __init__(self, built: BuiltModel, *, baseline_bytes: int) -> None:
        """Take over what was built; use `load`.

        Args:
            built: the model and what moves its weights.
            baseline_bytes: this process' resident memory before any of it was made.
        """
        self.plan, self.profile, self.timeline = built.plan, built.profile, built.timeline
        self._built = built
        self._replicas = tuple(Replica(index, baseline_bytes=baseline_bytes) for index in built.replicas)
        self.replicas: tuple[PreTrainedModel, ...] = tuple(replica.model for replica in self._replicas)
        self.groups: tuple[SweepGroup, ...] = tuple(replica.group for replica in self._replicas)
        self.model, self.group = self.replicas[0], self.groups[0]
        self._is_closed = False
        self._side_by_side = threading.Lock()
        self.reset_report()

    def generate(self, *args: Any, **kwargs: Any) -> Any:
        """Generate with transformers' own `generate()`; every argument is its. With several devices, on the first."""
        self._check_open()
        return self.model.generate(*args, **kwargs)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Run one forward of the model: one sweep. With several devices, on the first."""
        self._check_open()
        return self.model(*args, **kwargs)

    def run_on_devices(self, work: Callable[[PreTrainedModel, int], T]) -> list[T]:
        """Return what `work` returns for each device, run on all of them at the same time and fed by one reading of the weights.

        The first device's work runs in the calling thread, each other in a thread of its own. Forwards of different devices keep
        in step: one that runs ahead waits, until the others have come as far, fail or return. A device whose work has returned
        holds nobody up. Works must not wait for one another; one that lets the others wait outside a forward is passed over after
        two seconds, which costs additional reads.

        Args:
            work: called with the device's model and its number (0, 1, ...). It may run any number of forwards and `generate()`
                calls on that model, with inputs on that device. torch's CPU random generator is one for all threads.

        Returns:
            The results, in the order of the devices.

        Raises:
            BaseException: the first error of any work. The others' next forward, or their next unit in one under way, raises
                `ReplicaStoppedError`; all have ended when this returns, and the model can be used again.
            StreamClosedError: the model is closed.
            StreamError: another `run_on_devices` of this model is under way.
        """
        self._check_open()
        if len(self._replicas) == 1:
            return [work(self.model, 0)]
        if not self._side_by_side.acquire(blocking=False):
            raise StreamError(
                "run_on_devices is under way already: give all the work to one call, or wait until it is over"
            )
        try:
            if self._built.prefetcher is not None:
                self._built.prefetcher.gather()
            works = [partial(self._work_on, work, number) for number in range(len(self._replicas))]
            return run_in_parallel(works, on_failure=self._stop_others)
        finally:
            for replica in self._replicas:
                replica.resume()
            self._side_by_side.release()

    def _work_on(self, work: Callable[[PreTrainedModel, int], T], number: int) -> T:
        try:
            with self._built.replicas[number].runtime.current():
                return work(self.replicas[number], number)
        finally:
            self._replicas[number].expect_no_more()

    def _stop_others(self, failed: int, error: BaseException) -> None:
        for number, replica in enumerate(self._replicas):
            if number != failed:
                replica.stop(error)

    @property
    def is_closed(self) -> bool:
        """Whether `close()` was called."""
        return self._is_closed

    def report(self) -> StreamReport:
        """Return what was moved, waited for and computed since loading or the last `reset_report()`."""
        now, since = self._marks(), self._since
        num_devices = len(self._replicas)
        num_bytes = {kind: now.num_bytes[kind] - since.num_bytes[kind] for kind in Activity}
        seconds = {kind: now.seconds[kind] - since.seconds[kind] for kind in Activity}
        elapsed_s = (sum(now.elapsed_s) - sum(since.elapsed_s)) / num_devices
        wait_s = seconds[Activity.WAIT] / num_devices
        peaks = [replica.peak.bytes() for replica in self._replicas]
        return StreamReport(
            model_name=self.plan.model_name,
            dtype=self.plan.dtype,
            device=", ".join(self.plan.devices),
            sweeps=max(after - before for after, before in zip(now.sweeps, since.sweeps, strict=True)),
            units=len(self.plan.units),
            streamed_units=sum(unit.residency is not Residency.DEVICE for unit in self.plan.units),
            bytes_read=num_bytes[Activity.READ],
            bytes_copied=num_bytes[Activity.COPY],
            read_s=seconds[Activity.READ],
            copy_s=seconds[Activity.COPY] / num_devices,
            wait_s=wait_s,
            compute_s=max(0.0, elapsed_s - wait_s),
            elapsed_s=elapsed_s,
            peak_device_bytes=max(device for device, _ in peaks),
            peak_host_bytes=max(host for _, host in peaks),
            ledger_device_bytes=self.plan.ledger.device_bytes,
            budget_device_bytes=self.plan.ledger.device_budget_bytes,
        )

    def reset_report(self) -> None:
        """Start the next report from here."""
        self._since = self._marks()

    def _marks(self) -> _Marks:
        totals = self.timeline.totals
        num_bytes = {kind: totals[kind].num_bytes for kind in Activity}
        num_bytes[Activity.READ] += sum(replica.bytes_looked_up for replica in self._replicas)
        return _Marks(
            sweeps=tuple(replica.gate.sweeps for replica in self._replicas),
            elapsed_s=tuple(replica.gate.elapsed_s for replica in self._replicas),
            num_bytes=num_bytes,
            seconds={kind: totals[kind].seconds for kind in Activity},
        )

    def close(self) -> None:
        """Stop every thread, free every buffer and take every hook off; safe to call twice.

        The model's weights are gone afterwards: a later forward raises `StreamClosedError`.
        """
        if self._is_closed:
            return
        self._is_closed = True
        for replica in self._replicas:
            replica.stop_streaming()
        if self._built.prefetcher is not None:
            self._built.prefetcher.close()
        self._built.reader.close()
        for replica in self._replicas:
            replica.make_empty()

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
            raise StreamClosedError("this streamed model is closed; load it again")
