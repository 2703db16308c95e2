"""The streamed model: transformers' own model with its weights' life in our hands.

Layer: composition. Owns threads, buffers and hooks, and gives all of them back.
"""

from __future__ import annotations

from dataclasses import dataclass
from types import TracebackType
from typing import Any

from .build import BuiltModel
from .decisions import Residency
from .errors import StreamClosedError
from .guard import Gate, PeakMemory, allow, anchor, forbid, make_empty
from .report import StreamReport
from .timeline import Activity


@dataclass(frozen=True, slots=True, kw_only=True)
class _Marks:
    """Where a report starts: the counters at that time."""

    sweeps: int
    elapsed_s: float
    num_bytes: dict[Activity, int]
    seconds: dict[Activity, float]


class StreamedModel:
    """A causal language model within a memory budget.

    Attributes:
        model: the real `PreTrainedModel`: pipelines, peft and evaluation harnesses take it as it is.
        plan: where everything lives.
        profile: the model as numbers.
        timeline: what happened when.
        group: lets several computations share every sweep; see `SweepGroup.run`.
    """

    def __init__(self, built: BuiltModel, *, baseline_bytes: int) -> None:
        """Take over what was built; use `load`.

        Args:
            built: the model and what moves its weights.
            baseline_bytes: this process' resident memory before any of it was made.
        """
        self.model, self.plan, self.profile, self.timeline = built.model, built.plan, built.profile, built.timeline
        self._built, self.group = built, built.group
        self._peak = PeakMemory(built.runtime, baseline_bytes)
        self._gate = Gate(built.model, built.group, on_start=self._let_go, on_end=self._after_forward)
        built.group.around = self._gate.hold
        anchor(built.model, built.runtime.device)
        forbid(built.model, built.runtime.device)
        self.reset_report()

    def generate(self, *args: Any, **kwargs: Any) -> Any:
        """Generate with transformers' own `generate()`; every argument is its."""
        self._check_open()
        return self.model.generate(*args, **kwargs)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Run one forward of the model: one sweep."""
        self._check_open()
        return self.model(*args, **kwargs)

    @property
    def is_closed(self) -> bool:
        """Whether `close()` was called."""
        return self._gate.is_closed

    def report(self) -> StreamReport:
        """Return what was moved, waited for and computed since loading or the last `reset_report()`."""
        now, since = self._marks(), self._since
        num_bytes = {kind: now.num_bytes[kind] - since.num_bytes[kind] for kind in Activity}
        seconds = {kind: now.seconds[kind] - since.seconds[kind] for kind in Activity}
        elapsed_s = now.elapsed_s - since.elapsed_s
        peak_device_bytes, peak_host_bytes = self._peak.bytes()
        return StreamReport(
            model_name=self.plan.model_name,
            dtype=self.plan.dtype,
            device=self.plan.device,
            sweeps=now.sweeps - since.sweeps,
            units=len(self.plan.units),
            streamed_units=sum(unit.residency is not Residency.DEVICE for unit in self.plan.units),
            bytes_read=num_bytes[Activity.READ],
            bytes_copied=num_bytes[Activity.COPY],
            read_s=seconds[Activity.READ],
            copy_s=seconds[Activity.COPY],
            wait_s=seconds[Activity.WAIT],
            compute_s=max(0.0, elapsed_s - seconds[Activity.WAIT]),
            elapsed_s=elapsed_s,
            peak_device_bytes=peak_device_bytes,
            peak_host_bytes=peak_host_bytes,
            ledger_device_bytes=self.plan.ledger.device_bytes,
            budget_device_bytes=self.plan.ledger.device_budget_bytes,
        )

    def reset_report(self) -> None:
        """Start the next report from here."""
        self._since = self._marks()

    def _marks(self) -> _Marks:
        totals = self.timeline.totals
        num_bytes = {kind: totals[kind].num_bytes for kind in Activity}
        num_bytes[Activity.READ] += sum(table.bytes_read for table in self._built.tables)
        return _Marks(
            sweeps=self._gate.sweeps,
            elapsed_s=self._gate.elapsed_s,
            num_bytes=num_bytes,
            seconds={kind: totals[kind].seconds for kind in Activity},
        )

    def close(self) -> None:
        """Stop every thread, free every buffer and take every hook off; safe to call twice.

        The model's weights are gone afterwards: a later forward raises `StreamClosedError`.
        """
        if self._gate.is_closed:
            return
        self._gate.close()
        self.group.stop(StreamClosedError("this streamed model was closed while computations shared its sweeps; load it again"))
        built = self._built
        if built.stream is not None:
            built.stream.close()
        if built.hooks is not None:
            built.hooks.detach()
        for detach in built.detach:
            detach()
        built.tables.clear()
        built.reader.close()
        make_empty(self.model)
        allow(self.model)

    def __enter__(self) -> StreamedModel:
        """Return this model; leaving the block closes it."""
        self._check_open()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        """Close."""
        self.close()

    def _check_open(self) -> None:
        if self._gate.is_closed:
            raise StreamClosedError("this streamed model is closed; load it again")

    def _let_go(self) -> None:
        if self._built.hooks is not None:
            self._built.hooks.leave_all()

    def _after_forward(self) -> None:
        self._let_go()
        self._peak.sample()
