"""The few operations of an asynchronous device that streaming needs, from torch's device-generic modules.

A constructor argument selects the implementation: the fake device of `layerstream.testing` has the same
operations. Room: streaming.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any, Protocol

import torch


class DeviceRuntime(Protocol):
    """Streams, events and copies of one device. Streams and events are opaque.

    Attributes:
        device: the device that tensors are on.
        name: the device's name in plans.
        is_host: device memory is host memory; nothing is copied.
        pins_host_memory: copies are fast and asynchronous only from pinned memory.
    """

    device: torch.device
    name: str
    is_host: bool
    pins_host_memory: bool

    def current(self) -> AbstractContextManager[Any]:
        """Return a context in which the calling thread computes on this device."""

    def copy_stream(self) -> Any:
        """Return a new stream for copies."""

    def compute_stream(self) -> Any:
        """Return the stream on which the calling thread computes."""

    def record(self, stream: Any) -> Any:
        """Return an event that happens when all work issued to `stream` so far is done."""

    def stream_wait(self, stream: Any, event: Any) -> None:
        """Make later work on `stream` wait for `event`; the host does not wait."""

    def host_wait(self, event: Any) -> None:
        """Block the calling thread until `event` has happened."""

    def copy(self, target: torch.Tensor, source: torch.Tensor, stream: Any) -> None:
        """Copy bytes from host to device on `stream`; the host does not wait."""

    def allocate(self, num_bytes: int) -> torch.Tensor:
        """Return `num_bytes` of device memory as a uint8 tensor."""


class TorchRuntime:
    """A real device: CUDA, ROCm, XPU, MPS, ... or the CPU, where streams do nothing."""

    def __init__(self, device: torch.device) -> None:
        """Use the module that torch registers for the type of `device`."""
        self.device = device
        self.name = str(device)
        self.is_host = device.type == "cpu"
        self.pins_host_memory = device.type not in ("cpu", "mps")
        self._module: Any = torch.get_device_module(device)

    def current(self) -> AbstractContextManager[Any]:
        """Make this the calling thread's current device: some libraries use the current one."""
        if self.is_host or not hasattr(self._module, "device"):
            return nullcontext()
        context: AbstractContextManager[Any] = self._module.device(self.device)
        return context

    def copy_stream(self) -> Any:
        """Return a new stream on this device; None if the device has no streams."""
        if self.is_host or not hasattr(self._module, "Stream"):
            return None
        return self._module.Stream(device=self.device)

    def compute_stream(self) -> Any:
        """Return the calling thread's current stream on this device; None if the device has no streams."""
        if self.is_host or not hasattr(self._module, "current_stream"):
            return None
        return self._module.current_stream(self.device)

    def record(self, stream: Any) -> Any:
        """Return an event recorded on `stream` now."""
        if stream is None:
            if not self.is_host and hasattr(self._module, "synchronize"):
                self._module.synchronize()  # MPS has no streams to order work by: the host waits instead
            return None
        event = self._module.Event()
        event.record(stream)
        return event

    def stream_wait(self, stream: Any, event: Any) -> None:
        """Make later work on `stream` wait for `event`."""
        if stream is not None and event is not None:
            stream.wait_event(event)

    def host_wait(self, event: Any) -> None:
        """Block until `event` has happened."""
        if event is not None:
            event.synchronize()

    def copy(self, target: torch.Tensor, source: torch.Tensor, stream: Any) -> None:
        """Copy `source` into `target` on `stream`, asynchronously if both memories allow it."""
        with nullcontext() if stream is None else self._module.stream(stream):
            target.copy_(source, non_blocking=True)

    def allocate(self, num_bytes: int) -> torch.Tensor:
        """Return uninitialized device memory as a uint8 tensor of `num_bytes`."""
        return torch.empty(num_bytes, dtype=torch.uint8, device=self.device)
