"""One device's model while it runs: the gate of its forwards, and how it is stopped and closed.

Layer: composition. Knows one replica; that there are others is the business of `model`.
"""

from __future__ import annotations

from ..errors import ReplicaStoppedError, StreamClosedError
from .guard import Gate, PeakMemory, allow, anchor, forbid, make_empty
from .replica_builder import ReplicaParts


class Replica:
    """A built replica with its gate.

    Attributes:
        model: the real `PreTrainedModel`.
        group: lets computations share its sweeps.
        gate: lets one forward in at a time, and counts.
        peak: the memory it took.
    """

    def __init__(self, replica: ReplicaParts, *, baseline_bytes: int) -> None:
        """Put gate, guard and anchor around the replica's model."""
        self.model, self.group = replica.model, replica.group
        self.gate = Gate(
            replica.model, replica.group, on_start=self._before_forward, on_end=self._after_forward
        )
        replica.group.around = self.gate.hold
        self.peak = PeakMemory(replica.runtime, baseline_bytes)
        self._replica = replica
        self._stopped_by: BaseException | None = None
        anchor(replica.model, replica.runtime.device)
        forbid(replica.model, replica.runtime.device)

    @property
    def bytes_looked_up(self) -> int:
        """Bytes of embedding rows read from the disk so far."""
        return sum(table.bytes_read for table in self._replica.tables)

    def stop(self, error: BaseException) -> None:
        """Let the forward under way fail at its next unit, and others at once, because another device's work did."""
        self._stopped_by = error
        # before its tasks learn of it one by one, and take it for their own
        self.group.stop(_stopped(error), timeout_s=0.0)
        if self._replica.stream is not None:
            self._replica.stream.stop(error)

    def resume(self) -> None:
        """Take `stop` back."""
        self._stopped_by = None
        if self._replica.stream is not None:
            self._replica.stream.resume()

    def expect_no_more(self) -> None:
        """Say that no further forward comes soon, so that other devices need not wait for this one."""
        if self._replica.stream is not None:
            self._replica.stream.expect_no_more()

    def stop_streaming(self) -> None:
        """Let no further forward in, and end the one under way."""
        self.gate.close()
        self.group.stop(
            StreamClosedError(
                "this streamed model was closed while computations shared its sweeps; load it again"
            )
        )
        if self._replica.stream is not None:
            self._replica.stream.close()

    def make_empty(self) -> None:
        """Take everything off the model and free its weights; after `stop_streaming`."""
        self._replica.detach_all()
        make_empty(self.model)
        allow(self.model)

    def _before_forward(self) -> None:
        if self._stopped_by is not None:
            raise _stopped(self._stopped_by)
        self._release()
        if self._replica.stream is not None:
            self._replica.stream.begin_forward()

    def _after_forward(self) -> None:
        self._release()
        if self._replica.stream is not None:
            self._replica.stream.end_forward()
        self.peak.sample()

    def _release(self) -> None:
        if self._replica.hooks is not None:
            self._replica.hooks.leave_all()


def _stopped(error: BaseException) -> ReplicaStoppedError:
    stopped = ReplicaStoppedError(f"stopped, because the work on another device failed: {error}")
    stopped.__cause__ = error
    return stopped
