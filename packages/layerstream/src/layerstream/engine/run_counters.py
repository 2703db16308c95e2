"""Count what a streamed model does, from one reset to the next, and report it. Room: engine."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ..spec.plans import PlacementPlan, Residency
from ..spec.report import StreamReport
from ..spec.speculation import SpeculationReport
from ..spec.timeline import Activity, Timeline
from .replica import ReplicaControl


@dataclass(frozen=True, slots=True, kw_only=True)
class _Counters:
    """Counters at one moment, sweeps and seconds per device; a report is the difference of two."""

    sweeps: tuple[int, ...]
    elapsed_s: tuple[float, ...]
    num_bytes: dict[Activity, int]
    seconds: dict[Activity, float]


class RunCounters:
    """The counters of one model on all its devices."""

    def __init__(self, timeline: Timeline, controls: Sequence[ReplicaControl]) -> None:
        """Count from now on.

        Args:
            timeline: what happens when.
            controls: one for each device.
        """
        self._timeline, self._controls = timeline, controls
        self.reset()

    def reset(self) -> None:
        """Start the next report from here."""
        self._start = self._now()

    def report(self, plan: PlacementPlan, speculation: SpeculationReport | None) -> StreamReport:
        """Return what was moved, waited for and computed since the last reset."""
        now, start = self._now(), self._start
        num_devices = len(self._controls)
        num_bytes = {kind: now.num_bytes[kind] - start.num_bytes[kind] for kind in Activity}
        seconds = {kind: now.seconds[kind] - start.seconds[kind] for kind in Activity}
        elapsed_s = (sum(now.elapsed_s) - sum(start.elapsed_s)) / num_devices
        wait_s = seconds[Activity.WAIT] / num_devices
        peaks = [control.peak.bytes() for control in self._controls]
        return StreamReport(
            model_name=plan.model_name,
            dtype=plan.dtype,
            device=", ".join(plan.devices),
            sweeps=max(after - before for after, before in zip(now.sweeps, start.sweeps, strict=True)),
            units=len(plan.units),
            streamed_units=sum(unit.residency is not Residency.DEVICE for unit in plan.units),
            bytes_read=num_bytes[Activity.READ],
            bytes_copied=num_bytes[Activity.COPY],
            read_s=seconds[Activity.READ],
            copy_s=seconds[Activity.COPY] / num_devices,
            wait_s=wait_s,
            compute_s=max(0.0, elapsed_s - wait_s),
            elapsed_s=elapsed_s,
            peak_device_bytes=max(device for device, _ in peaks),
            peak_host_bytes=max(host for _, host in peaks),
            ledger_device_bytes=plan.ledger.device_bytes,
            budget_device_bytes=plan.ledger.device_budget_bytes,
            ledger_host_bytes=plan.ledger.host_bytes,
            budget_host_bytes=plan.ledger.host_budget_bytes,
            is_bit_exact=plan.is_bit_exact,
            speculation=speculation,
        )

    def waited_s(self) -> float:
        """Return the seconds of waiting for weights since the model was loaded, averaged over the devices."""
        self._timeline.flush()
        return self._timeline.totals[Activity.WAIT].seconds / len(self._controls)

    def _now(self) -> _Counters:
        self._timeline.flush()
        totals = self._timeline.totals
        num_bytes = {kind: totals[kind].num_bytes for kind in Activity}
        num_bytes[Activity.READ] += sum(control.bytes_looked_up for control in self._controls)
        return _Counters(
            sweeps=tuple(control.gate.sweeps for control in self._controls),
            elapsed_s=tuple(control.gate.elapsed_s for control in self._controls),
            num_bytes=num_bytes,
            seconds={kind: totals[kind].seconds for kind in Activity},
        )
