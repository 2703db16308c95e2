"""A public test kit: a fake asynchronous device, for machines without an accelerator.

`FakeAsyncRuntime` keeps its "device" memory on the CPU and behaves as badly as an accelerator may. A copy
lands as late as its event allows and reads its source only then; its target is NaN from the moment the copy
is issued; and a copy into memory that a computation may still be using destroys that memory. Code with every
wait in place gives the CPU's results; code that omits one gives NaN or another unit's weights.
"""

from __future__ import annotations

import threading
import time
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field

import torch

_POISON = 0xFF
"""A byte that makes NaN in every floating dtype."""


@dataclass(slots=True, eq=False)
class _Copy:
    target: torch.Tensor
    source: torch.Tensor
    destroys: bool
    landed: bool = False


@dataclass(slots=True, eq=False)
class FakeStream:
    """A queue of work; `safe` is the memory whose last use this stream has waited for."""

    name: str
    pending: list[_Copy] = field(default_factory=list)
    safe: set[int] = field(default_factory=set)


@dataclass(slots=True, eq=False)
class FakeEvent:
    """A point in a stream: the copies before it, and the memory that computation before it used."""

    copies: tuple[_Copy, ...]
    used: frozenset[int]


class FakeAsyncRuntime:
    """A `DeviceRuntime` with worst-case asynchrony.

    Attributes:
        num_copies: the number of copies issued so far.
    """

    def __init__(self, *, lag_s: float = 0.002, name: str = "fake:0") -> None:
        """Delay everything that is waited for by `lag_s` seconds; two devices need two names."""
        self.device = torch.device("cpu")
        self.name = name
        self.is_host = False
        self.pins_host_memory = False
        self.num_copies = 0
        self._lag_s = lag_s
        self._lock = threading.RLock()
        self._compute = FakeStream("compute")
        self._in_use: set[int] = set()

    def current(self) -> AbstractContextManager[None]:
        """Return a context manager that changes nothing."""
        return nullcontext()

    def copy_stream(self) -> FakeStream:
        """Return a new stream."""
        return FakeStream("copy")

    def compute_stream(self) -> FakeStream:
        """Return the one stream of all computation."""
        return self._compute

    def record(self, stream: FakeStream) -> FakeEvent:
        """Return an event after all work on `stream` so far."""
        with self._lock:
            used = frozenset(self._in_use) if stream is self._compute else frozenset()
            stream.pending = [copy for copy in stream.pending if not copy.landed]
            return FakeEvent(copies=tuple(stream.pending), used=used)

    def stream_wait(self, stream: FakeStream, event: FakeEvent | None) -> None:
        """Order `stream` after `event`: its copies land, or for a copy stream, its memory becomes safe."""
        if event is None:
            return
        if stream is self._compute:
            time.sleep(self._lag_s)
            self._land(event)
            with self._lock:
                self._in_use |= {_memory(copy.target) for copy in event.copies}
        else:
            with self._lock:
                stream.safe |= event.used

    def host_wait(self, event: FakeEvent | None) -> None:
        """Block until `event` has happened, with a delay, as on a busy device."""
        if event is not None:
            time.sleep(2 * self._lag_s)
            self._land(event)

    def copy(self, target: torch.Tensor, source: torch.Tensor, stream: FakeStream) -> None:
        """Issue a copy. The target is NaN until it lands; the source is read only then."""
        with self._lock:
            memory = _memory(target)
            if memory in stream.safe:
                stream.safe.discard(memory)
                self._in_use.discard(memory)
            destroys = memory in self._in_use
            target.fill_(_POISON)
            stream.pending.append(_Copy(target, source, destroys))
            self.num_copies += 1

    def allocate(self, num_bytes: int) -> torch.Tensor:
        """Return poisoned memory."""
        return torch.full((num_bytes,), _POISON, dtype=torch.uint8)

    def _land(self, event: FakeEvent) -> None:
        with self._lock:
            for copy in event.copies:
                if not copy.landed:
                    copy.landed = True
                    if copy.destroys:
                        copy.target.fill_(_POISON)
                    else:
                        copy.target.copy_(copy.source)


def _memory(tensor: torch.Tensor) -> int:
    return tensor.untyped_storage().data_ptr()
