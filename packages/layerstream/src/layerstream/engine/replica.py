"""One device's copy of a streamed model, and how it is stopped and closed.

It knows one device; `model` knows that there may be several.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from transformers import PreTrainedModel

from ..errors import AdapterError, ReplicaStoppedError, StreamClosedError
from ..spec.options import NO_ADAPTER
from ..spec.plans import PlacementPlan
from ..spec.verification import UnitVerification
from ..streaming.sweep_group import SweepGroup
from .absent_weights import unload_weights
from .adapter_places import unwatch_places, watch_places
from .adapter_switch import AdapterSwitch
from .adapters import Adapter, is_prompt_learning, put_adapters
from .forward_gate import ForwardGate
from .model_patches import ModelPatches
from .peak_memory import PeakMemory
from .replica_builder import ReplicaParts
from .verification import RecordedCall, compare_calls, record_calls
from .workload_watch import ForwardSizes, WorkloadWatch


@dataclass(frozen=True, slots=True, kw_only=True)
class Replica:
    """One device's copy of a streamed model.

    Attributes:
        index: its place among the model's devices, from 0.
        device: where it computes.
        model: the real `PreTrainedModel`; with an adapter of prompt learning, peft's model around it.
        group: lets tasks share this device's sweeps; see `SweepGroup.run`.
        adapters: the adapters in the model, and which of them is active.
        peft_model: the `PeftModel` of the adapters given to `load`; None without them.
    """

    index: int
    device: torch.device
    model: PreTrainedModel
    group: SweepGroup
    adapters: AdapterSwitch
    peft_model: Any = None


class ReplicaControl:
    """Starts, stops and closes one replica.

    Attributes:
        replica: the part that users see.
        gate: lets one forward in at a time, and counts sweeps.
        peak: the memory it took.
    """

    def __init__(
        self, parts: ReplicaParts, *, baseline_bytes: int, watch: WorkloadWatch, refuses_merges: bool
    ) -> None:
        """Put the gate and the patches on the model of `parts`.

        Args:
            parts: the replica.
            baseline_bytes: this process's resident memory before the model was built.
            watch: follows its forwards.
            refuses_merges: adapters cannot be merged into its weights, which move or are shared.
        """
        model, device = parts.model, parts.runtime.device
        self.replica = Replica(
            index=parts.index, device=device, model=model, group=parts.group, adapters=parts.adapters
        )
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
        if refuses_merges:
            watch_places(model)

    def put_adapters(self, adapters: Sequence[Adapter]) -> None:
        """Put `adapters` on the model; the first becomes active.

        Raises:
            AdapterError: one of them cannot be used with this model.
        """
        peft_model = put_adapters(self._parts.model, adapters)
        model = peft_model if is_prompt_learning(peft_model) else self._parts.model
        self.replica = replace(self.replica, model=model, peft_model=peft_model)

    def set_adapter(self, name: str) -> None:
        """Make one of the adapters given to `load` active; `"base"` turns all off.

        Raises:
            AdapterError: there is no such adapter, or it is a prompt that cannot be turned off.
        """
        peft_model = self.replica.peft_model
        known = () if peft_model is None else tuple(peft_model.peft_config)
        is_prompt = peft_model is not None and is_prompt_learning(peft_model)
        if peft_model is None or name not in (*known, *(() if is_prompt else (NO_ADAPTER,))):
            raise AdapterError(
                f"there is no adapter {name!r}: load(adapter=…) gave {', '.join(map(repr, known)) or 'none'}"
                + ("; turn prompts off with `with streamed.model.disable_adapter():`" if is_prompt else "")
            )
        if name != NO_ADAPTER:
            peft_model.set_adapter(name, inference_mode=True)
        if not is_prompt:
            self.replica.adapters.choose(name)

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
            self._parts.stream.resume(is_idle=self.gate.is_free)

    def join_step(self) -> None:
        """Tell the other devices to wait for the calling thread's next forward on this one: it comes soon."""
        if self._parts.stream is not None:
            self._parts.stream.join_step()

    def leave_step(self) -> None:
        """Tell the other devices not to wait for the calling thread: it starts no further forward soon."""
        if self._parts.stream is not None:
            self._parts.stream.leave_step()

    def record_calls(self, plan: PlacementPlan, num_tokens: int) -> list[RecordedCall]:
        """Run a short forward and return the calls of the units to verify."""
        return record_calls(self._parts, plan, num_tokens)

    def compare_calls(self, plan: PlacementPlan, calls: Sequence[RecordedCall]) -> list[UnitVerification]:
        """Compare the calls with resident copies of their units; the slots must be free."""
        return compare_calls(self._parts, plan, calls)

    def free_slots(self) -> None:
        """Free the memory of the slots until `restore_slots`, while the gate is shut."""
        self._release_units()
        if self._parts.hooks is not None and self._parts.stream is not None:
            self._parts.hooks.drop_views()
            self._parts.stream.free_slots()

    def restore_slots(self) -> None:
        """Undo `free_slots`."""
        if self._parts.stream is not None:
            self._parts.stream.restore_slots()

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
        unwatch_places(self._parts.model)
        unload_weights(self.replica.peft_model or self._parts.model)

    def _before_forward(self) -> None:
        if self._stopped_by is not None:
            raise _stopped(self._stopped_by)
        self._release_units()
        if self._parts.stream is not None:
            self._parts.stream.begin_forward()

    def _after_forward(self) -> None:
        try:
            self._release_units()
        finally:
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
