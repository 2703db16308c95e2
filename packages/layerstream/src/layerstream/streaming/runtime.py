"""The few operations of an asynchronous device that streaming needs, from torch's device-generic modules.

A constructor argument selects the implementation: the fake device of `layerstream.testing` has the same
operations. Room: streaming.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext, suppress
from functools import partial
from time import perf_counter
from typing import Any, Protocol

import torch

from ..errors import PinningError
from ..spec.sizes import format_bytes

CopyPair = tuple[torch.Tensor, torch.Tensor]
"""A target on the device and its source in host memory, of the same size."""


class DeviceRuntime(Protocol):
    """Streams, events and copies of one device. Streams and events are opaque.

    An event is made once and recorded again and again. Each wait is for the last record before the wait.

    Attributes:
        device: the device that tensors are on.
        name: the device's name in plans.
        is_host: device memory is host memory; nothing is copied.
        pins_host_memory: copies are fast and asynchronous only from pinned memory.
        registers_host_memory: memory of our own can be pinned where it is.
    """

    device: torch.device
    name: str
    is_host: bool
    pins_host_memory: bool
    registers_host_memory: bool

    def current(self) -> AbstractContextManager[Any]:
        """Return a context in which the calling thread computes on this device."""

    def copy_stream(self) -> Any:
        """Return a new stream for copies."""

    def on_new_stream(self) -> Callable[[], AbstractContextManager[Any]]:
        """Make a stream; return a function whose contexts let the calling thread compute on it."""

    def compute_stream(self) -> Any:
        """Return the stream on which the calling thread computes."""

    def new_event(self) -> Any:
        """Return an event that orders work."""

    def new_mark(self) -> Any:
        """Return an event that only tells the time."""

    def record(self, event: Any, stream: Any) -> None:
        """Let `event` happen when all work issued to `stream` so far is done."""

    def mark(self, mark: Any, stream: Any) -> None:
        """Let `mark` tell the time at which all work issued to `stream` so far is done."""

    def stream_wait(self, stream: Any, event: Any) -> None:
        """Make later work on `stream` wait for `event`; the host does not wait."""

    def host_wait(self, event: Any) -> None:
        """Block the calling thread until `event` has happened."""

    def has_passed(self, mark: Any) -> bool:
        """Return whether the time of `mark` is known."""

    def time_s(self, mark: Any) -> float:
        """Return the time of a mark that has passed, as `perf_counter` seconds."""

    def copy(self, pairs: Sequence[CopyPair], stream: Any) -> None:
        """Copy bytes from host to device on `stream`; the host does not wait."""

    def allocate(self, num_bytes: int) -> torch.Tensor:
        """Return `num_bytes` of device memory as a uint8 tensor."""

    def register_host(self, address: int, num_bytes: int) -> None:
        """Pin host memory of our own, which starts and ends on a page.

        Raises:
            PinningError: the driver refuses.
        """

    def unregister_host(self, address: int) -> None:
        """Undo `register_host`."""


class HostMark:
    """A mark of a device without asynchronous work: the time at which it was recorded."""

    __slots__ = ("time_s",)

    def __init__(self) -> None:
        """Start before any record."""
        self.time_s = 0.0


class TorchRuntime:
    """A real device: CUDA, ROCm, XPU, MPS, ... or the CPU, where streams do nothing."""

    def __init__(self, device: torch.device) -> None:
        """Use the module that torch registers for the type of `device`."""
        self.device = device
        self.name = str(device)
        self.is_host = device.type == "cpu"
        self.pins_host_memory = device.type not in ("cpu", "mps")
        self._module: Any = torch.get_device_module(device)
        # ROCm's torch calls its own driver by the same name.
        self.registers_host_memory = self.pins_host_memory and hasattr(self._module, "cudart")
        self._event_options = {"blocking": True} if device.type == "cuda" else {}
        self._has_streams = not self.is_host and hasattr(self._module, "Stream")
        self._clock = _DeviceClock(self._module, device) if self._has_streams else None

    def current(self) -> AbstractContextManager[Any]:
        """Make this the calling thread's current device: some libraries use the current one."""
        if self.is_host or not hasattr(self._module, "device"):
            return nullcontext()
        context: AbstractContextManager[Any] = self._module.device(self.device)
        return context

    def copy_stream(self) -> Any:
        """Return a new stream on this device; None if the device has no streams."""
        return self._module.Stream(device=self.device) if self._has_streams else None

    def on_new_stream(self) -> Callable[[], AbstractContextManager[Any]]:
        """Make a stream; return a function whose contexts let the calling thread compute on it."""
        stream = self.copy_stream()
        return nullcontext if stream is None else partial(self._module.stream, stream)

    def compute_stream(self) -> Any:
        """Return the calling thread's current stream on this device; None if the device has no streams."""
        return self._module.current_stream(self.device) if self._has_streams else None

    def new_event(self) -> Any:
        """Return an event; None if the device has no streams."""
        # A reader thread that waits for a copy must not keep a core busy.
        return self._module.Event(**self._event_options) if self._has_streams else None

    def new_mark(self) -> Any:
        """Return an event with a time."""
        return self._module.Event(enable_timing=True) if self._has_streams else HostMark()

    def record(self, event: Any, stream: Any) -> None:
        """Record `event` on `stream`; on a device without streams the host waits for the device instead."""
        if event is not None:
            event.record(stream)
        elif not self.is_host and hasattr(self._module, "synchronize"):
            self._module.synchronize()

    def mark(self, mark: Any, stream: Any) -> None:
        """Record `mark` on `stream`."""
        if self._has_streams:
            mark.record(stream)
        else:
            mark.time_s = perf_counter()

    def stream_wait(self, stream: Any, event: Any) -> None:
        """Make later work on `stream` wait for `event`."""
        if event is not None:
            stream.wait_event(event)

    def host_wait(self, event: Any) -> None:
        """Block until `event` has happened."""
        if event is not None:
            event.synchronize()

    def has_passed(self, mark: Any) -> bool:
        """Return whether the device has come to `mark`."""
        return not self._has_streams or bool(mark.query())

    def time_s(self, mark: Any) -> float:
        """Return when the device came to `mark`."""
        return mark.time_s if self._clock is None else self._clock.time_s(mark)

    def copy(self, pairs: Sequence[CopyPair], stream: Any) -> None:
        """Copy each source into its target on `stream`, asynchronously if both memories allow it."""
        if stream is None:
            self._copy(pairs)
            return
        # Leaving the stream's context would else make a context on the thread's current device.
        with self.current(), self._module.stream(stream):
            self._copy(pairs)

    def _copy(self, pairs: Sequence[CopyPair]) -> None:
        for target, source in pairs:
            target.copy_(source, non_blocking=True)

    def allocate(self, num_bytes: int) -> torch.Tensor:
        """Return uninitialized device memory as a uint8 tensor of `num_bytes`."""
        return torch.empty(num_bytes, dtype=torch.uint8, device=self.device)

    def register_host(self, address: int, num_bytes: int) -> None:
        """Pin the memory for every device of this kind.

        Raises:
            PinningError: the driver refuses.
        """
        with self.current():
            code = int(self._module.cudart().cudaHostRegister(address, num_bytes, _PORTABLE))
        if code != 0:
            self._forget_error()
            raise PinningError(
                f"the driver of {self.name} refused to pin {format_bytes(num_bytes)} of host memory (error "
                f"{code}): raise the limit on locked memory (ulimit -l), or give a smaller host budget"
            )

    def _forget_error(self) -> None:
        """Clear the error that the driver keeps: a later kernel would report it as its own."""
        with suppress(RuntimeError):
            torch.zeros(1, device=self.device)

    def unregister_host(self, address: int) -> None:
        """Undo `register_host`. A refusal changes nothing: the process's end undoes it too."""
        with self.current():
            if int(self._module.cudart().cudaHostUnregister(address)) != 0:
                self._forget_error()


_PORTABLE = 1
"""`cudaHostRegisterPortable`: pinned for every device, not only the current one."""


class _DeviceClock:
    """Translates the times of a device's events to `perf_counter` seconds."""

    # Times between two events are 32-bit milliseconds: 4 microseconds of rounding after half a minute.
    _REBASE_S = 30.0

    def __init__(self, module: Any, device: torch.device) -> None:
        self._module, self._device = module, device
        self._lock = threading.Lock()
        self._base: Any = None
        self._base_s = 0.0
        self._next_base: Any = None

    def time_s(self, event: Any) -> float:
        with self._lock:
            if self._base is None:
                self._base = self._record()
                self._base.synchronize()
                self._base_s = perf_counter()
            elapsed_s: float = self._base.elapsed_time(event) / 1e3
            time_s = self._base_s + elapsed_s
            if elapsed_s > self._REBASE_S:
                self._rebase()
            return time_s

    def _rebase(self) -> None:
        if self._next_base is None:
            self._next_base = self._record()
        elif self._next_base.query():
            self._base_s += self._base.elapsed_time(self._next_base) / 1e3
            self._base, self._next_base = self._next_base, None

    def _record(self) -> Any:
        event = self._module.Event(enable_timing=True)
        event.record(self._module.current_stream(self._device))
        return event
