"""The few operations of an asynchronous device that streaming needs, by torch's device-generic modules.

Room: streaming. One seam, chosen by constructor argument: the test kit's fake device implements the same operations.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any, Protocol

import torch


class DeviceRuntime(Protocol):
    """Streams, events and copies of one device. Streams and events are opaque.

    Attributes:
        device: where tensors are.
        name: what planning calls the device.
        is_host: device memory is host memory; nothing is copied.
        pins_host_memory: copies are fast and asynchronous from pinned memory only.
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
        """Return an event that happens when all work so far given to `stream` is done."""

    def stream_wait(self, stream: Any, event: Any) -> None:
        """Make later work on `stream` wait for `event`; the host goes on."""

    def host_wait(self, event: Any) -> None:
        """Block the calling thread until `event` has happened."""

    def copy(self, target: torch.Tensor, source: torch.Tensor, stream: Any) -> None:
        """Copy bytes from host to device on `stream`; the host goes on."""

    def allocate(self, num_bytes: int) -> torch.Tensor:
        """Return `num_bytes` of device memory as a uint8 tensor."""


class TorchRuntime:
    """The real thing: CUDA, ROCm, XPU, MPS, ... and the CPU, where streams do nothing."""

    def __init__(self, device: torch.device) -> None:
        """Take the module that torch registers for the device's type."""
        self.device = device
        self.name = str(device)
        self.is_host = device.type == "cpu"
        self.pins_host_memory = device.type not in ("cpu", "mps")
        self._module: Any = torch.get_device_module(device)

    def current(self) -> AbstractContextManager[Any]:
        """Make this the calling thread's device, for libraries that ask for the current one."""
        if self.is_host or not hasattr(self._module, "device"):
            return nullcontext()
        context: AbstractContextManager[Any] = self._module.device(self.device)
        return context

    def copy_stream(self) -> Any:
        """Return a new stream on this device; None where the device has no streams of its own."""
        if self.is_host or not hasattr(self._module, "Stream"):
            return None
        return self._module.Stream(device=self.device)

    def compute_stream(self) -> Any:
        """Return the calling thread's current stream."""
        if self.is_host or not hasattr(self._module, "current_stream"):
            return None
        return self._module.current_stream(self.device)

    def record(self, stream: Any) -> Any:
        """Return an event recorded on `stream` now."""
        if stream is None:
            if not self.is_host and hasattr(self._module, "synchronize"):
                self._module.synchronize()  # no streams to order by (MPS): the host waits instead
            return None
        event = self._module.Event()
        event.record(stream)
        return event

    def stream_wait(self, stream: Any, event: Any) -> None:
        """Order `stream` after `event`."""
        if stream is not None and event is not None:
            stream.wait_event(event)

    def host_wait(self, event: Any) -> None:
        """Block until `event` has happened."""
        if event is not None:
            event.synchronize()

    def copy(self, target: torch.Tensor, source: torch.Tensor, stream: Any) -> None:
        """Copy asynchronously on `stream`."""
        with nullcontext() if stream is None else self._module.stream(stream):
            target.copy_(source, non_blocking=True)

    def allocate(self, num_bytes: int) -> torch.Tensor:
        """Return device memory."""
        return torch.empty(num_bytes, dtype=torch.uint8, device=self.device)
