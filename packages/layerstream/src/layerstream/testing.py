"""A public test kit: a fake asynchronous device, for machines without an accelerator.

`FakeAsyncRuntime` keeps its "device" memory on the CPU and behaves as badly as an accelerator may. A copy
lands as late as its event allows and reads its source only then; its target is NaN from the moment the copy
is issued; and a copy into memory that a computation may still be using destroys that memory. Code with every
wait in place gives the CPU's results; code that omits one gives NaN or another unit's weights.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field

import torch

from .errors import PinningError

_POISON = 0xFF
"""A byte that makes NaN in every floating dtype."""


@dataclass(slots=True, eq=False)
class _Copy:
    target: torch.Tensor | None
    source: torch.Tensor | None
    memory: int
    destroys: bool


@dataclass(slots=True, eq=False)
class FakeStream:
    """A queue of work; `safe` is the memory whose last use this stream has waited for."""

    name: str
    pending: list[_Copy] = field(default_factory=list)
    safe: set[int] = field(default_factory=set)


@dataclass(slots=True, eq=False)
class FakeEvent:
    """A point in a stream: the copies before it, and the memory that computation before it used."""

    copies: tuple[_Copy, ...] = ()
    used: frozenset[int] = frozenset()


@dataclass(slots=True, eq=False)
class FakeMark:
    """A point in time."""

    time_s: float = 0.0


class FakeAsyncRuntime:
    """A `DeviceRuntime` with worst-case asynchrony.

    Attributes:
        num_copies: the number of copies issued so far.
        registered: sizes of the host memory that is pinned now, by address.
        most_registered_bytes: the most that was pinned at a time.
    """

    def __init__(
        self, *, lag_s: float = 0.002, name: str = "fake:0", pin_limit_bytes: int | None = None
    ) -> None:
        """Two devices need two names.

        Args:
            lag_s: delays everything that is waited for, in seconds.
            name: the device's name in plans.
            pin_limit_bytes: the most host memory that can be pinned; None is no limit.
        """
        self.device = torch.device("cpu")
        self.name = name
        self.is_host = False
        self.pins_host_memory = True
        self.registers_host_memory = True
        self.num_copies = 0
        self.registered: dict[int, int] = {}
        self.most_registered_bytes = 0
        self._lag_s, self._pin_limit_bytes = lag_s, pin_limit_bytes
        self._lock = threading.RLock()
        self._compute = FakeStream("compute")
        self._in_use: set[int] = set()

    def current(self) -> AbstractContextManager[None]:
        """Return a context manager that changes nothing."""
        return nullcontext()

    def copy_stream(self) -> FakeStream:
        """Return a new stream."""
        return FakeStream("copy")

    def on_new_stream(self) -> Callable[[], AbstractContextManager[None]]:
        """Return a function whose contexts change nothing: computation is not asynchronous here."""
        return nullcontext

    def compute_stream(self) -> FakeStream:
        """Return the one stream of all computation."""
        return self._compute

    def new_event(self) -> FakeEvent:
        """Return an event."""
        return FakeEvent()

    def new_mark(self) -> FakeMark:
        """Return a mark."""
        return FakeMark()

    def record(self, event: FakeEvent, stream: FakeStream) -> None:
        """Let `event` be after all work on `stream` so far."""
        with self._lock:
            event.used = frozenset(self._in_use) if stream is self._compute else frozenset()
            stream.pending = [copy for copy in stream.pending if copy.target is not None]
            event.copies = tuple(stream.pending)

    def mark(self, mark: FakeMark, stream: FakeStream) -> None:
        """Let `mark` tell the time now."""
        mark.time_s = time.perf_counter()

    def has_passed(self, mark: FakeMark) -> bool:
        """Return True: the time is known at once."""
        return True

    def time_s(self, mark: FakeMark) -> float:
        """Return the time of `mark`."""
        return mark.time_s

    def stream_wait(self, stream: FakeStream, event: FakeEvent) -> None:
        """Order `stream` after `event`: its copies land, or for a copy stream, its memory becomes safe."""
        if stream is self._compute:
            time.sleep(self._lag_s)
            self._land(event)
            with self._lock:
                self._in_use |= {copy.memory for copy in event.copies}
        else:
            with self._lock:
                stream.safe |= event.used

    def host_wait(self, event: FakeEvent) -> None:
        """Block until `event` has happened, with a delay, as on a busy device."""
        time.sleep(2 * self._lag_s)
        self._land(event)

    def copy(self, pairs: Sequence[tuple[torch.Tensor, torch.Tensor]], stream: FakeStream) -> None:
        """Issue copies. Each target is NaN until its copy lands; the source is read only then."""
        with self._lock:
            for target, source in pairs:
                self._issue(target, source, stream)

    def _issue(self, target: torch.Tensor, source: torch.Tensor, stream: FakeStream) -> None:
        memory = _memory(target)
        if memory in stream.safe:
            stream.safe.discard(memory)
            self._in_use.discard(memory)
        target.fill_(_POISON)
        stream.pending.append(_Copy(target, source, memory, destroys=memory in self._in_use))
        self.num_copies += 1

    def register_host(self, address: int, num_bytes: int) -> None:
        """Count the memory as pinned; refuse what a driver would refuse."""
        assert address % 4096 == num_bytes % 4096 == 0, (address, num_bytes)
        with self._lock:
            for start, size in self.registered.items():
                assert address + num_bytes <= start or start + size <= address, "it is pinned already"
            total_bytes = sum(self.registered.values()) + num_bytes
            if self._pin_limit_bytes is not None and total_bytes > self._pin_limit_bytes:
                raise PinningError(f"the fake driver pins at most {self._pin_limit_bytes} bytes")
            self.registered[address] = num_bytes
            self.most_registered_bytes = max(self.most_registered_bytes, sum(self.registered.values()))

    def unregister_host(self, address: int) -> None:
        """Count the memory as pinned no more."""
        with self._lock:
            del self.registered[address]

    def allocate(self, num_bytes: int) -> torch.Tensor:
        """Return poisoned memory."""
        return torch.full((num_bytes,), _POISON, dtype=torch.uint8)

    def _land(self, event: FakeEvent) -> None:
        with self._lock:
            for copy in event.copies:
                if copy.target is None or copy.source is None:
                    continue
                if copy.destroys:
                    copy.target.fill_(_POISON)
                else:
                    copy.target.copy_(copy.source)
                copy.target = copy.source = None  # an event keeps no memory alive


def _memory(tensor: torch.Tensor) -> int:
    return tensor.untyped_storage().data_ptr()
