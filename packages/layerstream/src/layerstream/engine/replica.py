"""One device's copy of a streamed model, and how it is stopped and closed.

It knows one device; `model` knows that there may be several.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from transformers import PreTrainedModel

from ..errors import ReplicaStoppedError, StreamClosedError
from ..streaming.sweep_group import SweepGroup
from .absent_weights import unload_weights
from .forward_gate import ForwardGate
from .model_patches import ModelPatches
from .peak_memory import PeakMemory
from .replica_builder import ReplicaParts
from .workload_watch import ForwardSizes, WorkloadWatch


@dataclass(frozen=True, slots=True, kw_only=True)
class Replica:
    """One device's copy of a streamed model.

    Attributes:
        index: its place among the model's devices, from 0.
        device: where it computes.
        model: the real `PreTrainedModel`.
        group: lets tasks share this device's sweeps; see `SweepGroup.run`.
    """

    index: int
    device: torch.device
    model: PreTrainedModel
    group: SweepGroup


class ReplicaControl:
    """Starts, stops and closes one replica.

    Attributes:
        replica: the part that users see.
        gate: lets one forward in at a time, and counts sweeps.
        peak: the memory it took.
    """

    def __init__(self, parts: ReplicaParts, *, baseline_bytes: int, watch: WorkloadWatch) -> None:
        """Put the gate and the patches on the model of `parts`, whose forwards `watch` follows."""
        model, device = parts.model, parts.runtime.device
        self.replica = Replica(index=parts.index, device=device, model=model, group=parts.group)
        sizes = ForwardSizes(model, parts.group, watch)
        parts.undo.append(sizes.detach)
        self.gate = ForwardGate(
            model,
            parts.group,
            check=sizes.check_forward,
            on_start=self._before_forward,
            on_end=self._after_forward,
        )
        parts.group.around = self.gate.hold
        self.peak = PeakMemory(parts.runtime, baseline_bytes)
        self._parts = parts
        self._stopped_by: BaseException | None = None
        self._patches = ModelPatches(model)

    @property
    def bytes_looked_up(self) -> int:
        """Bytes of embedding rows read from disk so far."""
        return sum(table.bytes_read for table in self._parts.tables)

    def stop(self, error: BaseException) -> None:
        """Make the current forward fail at its next unit, and later ones at once: another device failed."""
        self._stopped_by = error
        # Before its tasks find out one by one and report the error as their own.
        self.replica.group.stop(_stopped(error), timeout_s=0.0)
        if self._parts.stream is not None:
            self._parts.stream.stop(error)

    def resume(self) -> None:
        """Undo `stop`."""
        self._stopped_by = None
        if self._parts.stream is not None:
            self._parts.stream.resume()

    def leave_step(self) -> None:
        """Tell the other devices not to wait for this one: it starts no further forward soon."""
        if self._parts.stream is not None:
            self._parts.stream.leave_step()

    def stop_streaming(self) -> None:
        """Refuse further forwards and end the current one."""
        self.gate.close()
        self.replica.group.stop(
            StreamClosedError("this streamed model was closed while tasks shared its sweeps: load it again")
        )
        if self._parts.stream is not None:
            self._parts.stream.close()

    def unload(self) -> None:
        """Remove every hook and patch from the model and free its weights; call it after `stop_streaming`."""
        self._parts.detach_all()
        self._patches.remove()
        unload_weights(self.replica.model)

    def _before_forward(self) -> None:
        if self._stopped_by is not None:
            raise _stopped(self._stopped_by)
        self._release_units()
        if self._parts.stream is not None:
            self._parts.stream.begin_forward()

    def _after_forward(self) -> None:
        self._release_units()
        if self._parts.stream is not None:
            self._parts.stream.end_forward()
        self.peak.sample()

    def _release_units(self) -> None:
        if self._parts.hooks is not None:
            self._parts.hooks.leave_all()


def _stopped(error: BaseException) -> ReplicaStoppedError:
    stopped = ReplicaStoppedError(f"stopped because the work on another device failed: {error}")
    stopped.__cause__ = error
    return stopped
