"""The devices of a service: which request goes to which, and when, and how many sweeps they make together.

It starts no thread and runs nothing. The service's lock guards all of it.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field

from ...engine.replica import Replica
from ...planning.admission import Admission
from .pace import starts_s
from .ticket import Entry, Stage


@dataclass(slots=True, eq=False)
class Lane:
    """One device, and the requests that it was given.

    Attributes:
        replica: the device.
        running: its requests that have not ended, in order of admission.
        arrived: those of them that its sweeps have not taken yet.
        is_sweeping: its sweeps are under way.
        sweeps_before: sweeps of the service that this device took no part in.
    """

    replica: Replica
    running: list[Entry] = field(default_factory=list)
    arrived: list[Entry] = field(default_factory=list)
    is_sweeping: bool = False
    sweeps_before: int = 0

    @property
    def sweeps(self) -> int:
        """Sweeps of the service until this device's latest one."""
        return self.sweeps_before + self.replica.group.sweeps

    def take(self) -> list[Entry]:
        """Return what has arrived since it was last asked."""
        arrived, self.arrived = self.arrived, []
        return arrived


class Lanes:
    """The devices of a service, one lane each.

    Attributes:
        lanes: in the order of the model's devices.
    """

    def __init__(self, replicas: Sequence[Replica], admission: Admission) -> None:
        """Begin with idle devices; `admission` says what fits on each of them."""
        self.lanes = tuple(Lane(replica) for replica in replicas)
        self._admission = admission

    @property
    def running(self) -> list[Entry]:
        """The requests of all devices that have not ended."""
        return [entry for lane in self.lanes for entry in lane.running]

    @property
    def is_sweeping(self) -> bool:
        """Whether the sweeps of any device are under way."""
        return any(lane.is_sweeping for lane in self.lanes)

    @property
    def sweeps(self) -> int:
        """Sweeps so far; one that several devices make at the same time counts once."""
        return max(lane.sweeps for lane in self.lanes)

    def begin_sweeps(self, lane: Lane) -> None:
        """Record that the sweeps of a device begin: they go on from the sweeps that the others have made."""
        lane.sweeps_before = self.sweeps - lane.replica.group.sweeps
        lane.is_sweeping = True

    def end_sweeps(self, lane: Lane) -> None:
        """Record that the sweeps of a device end: the others go on from those that it has made."""
        # in step, a device may still have to begin the sweep that another has just made
        sweeps = self.sweeps - 1
        lane.is_sweeping = False
        for other in self.lanes:
            if other.is_sweeping:
                other.sweeps_before = max(other.sweeps_before, sweeps - other.replica.group.sweeps)

    def starts_s(self, waiting: Collection[Entry], token_s: float) -> list[float]:
        """Return in how many seconds each waiting request starts, and a greedy one behind them.

        Args:
            waiting: the queue.
            token_s: seconds per token of one answer.
        """
        free_s: list[list[float]] = []
        for lane in self.lanes:
            left_s = [entry.most_left * token_s for entry in lane.running]
            is_full = bool(left_s) and any(lane in self._allowed(entry) for entry in waiting)
            free_s.append(left_s if is_full else [*left_s, 0.0])
        turns = [(entry.most_left * token_s, len(self._allowed(entry))) for entry in waiting]
        return starts_s(free_s, [*turns, (0.0, len(self.lanes))])

    def admit(self, waiting: deque[Entry]) -> None:
        """Take the requests that fit out of the queue, and give them to devices.

        In the order of the queue, each request goes to the device whose requests take the least memory, of
        those that have room for it; of equal ones, to the first. One that samples goes to the first device
        alone, because all threads share torch's random generator. A request that has to wait keeps its place
        on every device that it may go to: until it was admitted, none behind it goes there. So those that
        wait for the first device hold up no other device, and nothing overtakes them where they wait.
        """
        open_lanes = list(self.lanes)
        for entry in tuple(waiting):
            allowed = self._allowed(entry)
            lane = self._emptiest(entry, [lane for lane in open_lanes if lane in allowed])
            if lane is None:
                open_lanes = [lane for lane in open_lanes if lane not in allowed]
                if not open_lanes:
                    break
                continue
            waiting.remove(entry)
            entry.stage = Stage.RUNNING
            lane.running.append(entry)
            lane.arrived.append(entry)

    def has_arrived(self, entry: Entry) -> bool:
        """Return whether a request was given to a device whose sweeps have not taken it yet."""
        return any(entry in lane.arrived for lane in self.lanes)

    def remove(self, entry: Entry) -> None:
        """Take a running request off its device."""
        for lane in self.lanes:
            for requests in (lane.running, lane.arrived):
                if entry in requests:
                    requests.remove(entry)

    def _allowed(self, entry: Entry) -> Sequence[Lane]:
        """Return the devices that a request may go to."""
        return self.lanes if entry.seed is None else self.lanes[:1]

    def _emptiest(self, entry: Entry, lanes: Collection[Lane]) -> Lane | None:
        fitting = [
            lane for lane in lanes if self._admission.fits(entry.size, [each.size for each in lane.running])
        ]
        return min(fitting, key=self._taken_bytes, default=None)

    def _taken_bytes(self, lane: Lane) -> int:
        return self._admission.bytes_of(entry.size for entry in lane.running)
