"""What stands around a streamed model: the gate of its forward, what it must not do, and the memory it takes.

Layer: composition. Knows modules and hooks; knows nothing of units or disks.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from time import perf_counter
from typing import Any

import psutil
import torch
from torch import nn
from transformers import PreTrainedModel

from ..errors import StreamClosedError, StreamError, UnsupportedModelError
from ..streaming.runtime import DeviceRuntime
from ..streaming.sweep_group import SweepGroup

_ANCHOR = "layerstream_anchor"
_FORBIDDEN = (
    "half",
    "float",
    "bfloat16",
    "double",
    "cuda",
    "cpu",
    "save_pretrained",
    "resize_token_embeddings",
    "tie_weights",
)


class Gate:
    """What surrounds every forward of the model: one at a time, without gradients, counted.

    Forwards that task in `group` pass together: their run holds the gate for all of them. The instance's `forward` is wrapped,
    not hooked: a hook after the forward does not run when Ctrl-C ends it.

    Attributes:
        elapsed_s: seconds inside forwards, and inside runs of the group from the first forward to the last.
        is_closed: no forward may start any more.
        group: lets computations share sweeps.
    """

    def __init__(
        self, model: nn.Module, group: SweepGroup, *, on_start: Callable[[], None], on_end: Callable[[], None]
    ) -> None:
        self.elapsed_s = 0.0
        self.is_closed = False
        self.group = group
        self._model = model
        self._on_start, self._on_end = on_start, on_end
        self._num_alone = 0
        self._one_at_a_time = threading.Lock()
        self._inside: int | None = None
        plain = model.forward

        @wraps(plain)
        def forward(*args: Any, **kwargs: Any) -> Any:
            # Slots are overwritten while a graph would still point at them; streaming is for inference.
            with self._together() if group.is_task_thread() else self._alone(), torch.no_grad():
                return plain(*args, **kwargs)

        model.__dict__["forward"] = forward

    @property
    def sweeps(self) -> int:
        """Sweeps that were begun: forwards, those that task together counted once."""
        return self._num_alone + self.group.sweeps

    @contextmanager
    def hold(self) -> Iterator[None]:
        """Keep everybody out but the group's tasks."""
        if self._inside == threading.get_ident():
            raise StreamError(
                "a forward of this model cannot start inside another one, nor in a callback of those that share its sweeps"
            )
        with self._one_at_a_time:
            try:
                self._inside = threading.get_ident()
                self._check_open()
                self.group.drain()
                with self._passage():
                    yield
            finally:
                self._inside = None

    @contextmanager
    def _passage(self) -> Iterator[None]:
        self._on_start()
        start_s = perf_counter()
        try:
            yield
        finally:
            self.elapsed_s += perf_counter() - start_s
            self._on_end()

    @contextmanager
    def _alone(self) -> Iterator[None]:
        with self.hold():
            self._num_alone += 1
            yield

    @contextmanager
    def _together(self) -> Iterator[None]:
        self._check_open()
        self.group.begin_forward()
        try:
            yield
        finally:
            self.group.end_forward()

    def _check_open(self, *_: Any) -> None:
        if self.is_closed:
            raise StreamClosedError("this streamed model is closed: its weights are gone; load it again")

    def close(self) -> None:
        """Let no further forward in."""
        self.is_closed = True
        self._model.__dict__.pop("forward", None)
        self._model.register_forward_pre_hook(self._check_open, prepend=True)


class PeakMemory:
    """The peak since loading: the kernel's high-water mark where it has moved, samples between forwards where it has not."""

    def __init__(self, runtime: DeviceRuntime, baseline_bytes: int) -> None:
        self._runtime, self._baseline_bytes = runtime, baseline_bytes
        self._mark_bytes = _high_water_bytes()
        self._sampled_bytes = 0
        self._process = psutil.Process()

    def sample(self) -> None:
        """Look at the memory now."""
        self._sampled_bytes = max(self._sampled_bytes, self._process.memory_info().rss)

    def bytes(self) -> tuple[int, int]:
        """Return (device, host) peak bytes over the baseline."""
        self.sample()
        mark = _high_water_bytes()
        peak = mark if mark > self._mark_bytes else self._sampled_bytes
        host = max(0, peak - self._baseline_bytes)
        module = torch.get_device_module(self._runtime.device)
        if self._runtime.is_host or not hasattr(module, "max_memory_allocated"):
            return host, host
        return int(module.max_memory_allocated(self._runtime.device)), host


def _high_water_bytes() -> int:
    try:
        with open("/proc/self/status", encoding="ascii") as status:
            return next(int(line.split()[1]) * 1024 for line in status if line.startswith("VmHWM:"))
    except (OSError, StopIteration):
        return 0


def anchor(model: PreTrainedModel, device: torch.device) -> None:
    """Give every (sub)model whose first parameter is streamed an empty first one on the device.

    `model.device` and `model.dtype` are the first parameter's, and transformers asks for them: on the meta device, generate() would
    choose another experts kernel and make its inputs there.
    """
    for module in model.modules():
        if not isinstance(module, PreTrainedModel):
            continue
        first = next(module.parameters(), None)
        if first is not None and first.is_meta:
            empty = torch.empty(0, dtype=first.dtype, device=device)
            module._parameters = {_ANCHOR: nn.Parameter(empty, requires_grad=False), **module._parameters}


def forbid(model: PreTrainedModel, device: torch.device) -> None:
    """Refuse, with a reason, what would break a model whose weights come and go."""

    def refuse(name: str) -> Callable[..., Any]:
        def refused(*args: Any, **kwargs: Any) -> Any:
            raise UnsupportedModelError(
                f"model.{name}() cannot be used on a streamed model, whose weights come and go: choose device and dtype in load(), "
                "and use transformers' from_pretrained to train, resize or save"
            )

        return refused

    def to(*args: Any, **kwargs: Any) -> PreTrainedModel:
        wanted, dtype, *_ = torch._C._nn._parse_to(*args, **kwargs)
        if (wanted is None or wanted == device) and dtype in (None, model.dtype):
            return model
        raise UnsupportedModelError(
            f"model.to({wanted or dtype}) cannot move a streamed model: choose device and dtype in load()"
        )

    for name in _FORBIDDEN:
        model.__dict__[name] = refuse(name)
    model.__dict__["to"] = to


def make_empty(model: nn.Module) -> None:
    """Put meta tensors in place of all weights, so that the memory behind them is freed."""
    for module in model.modules():
        module._parameters.pop(_ANCHOR, None)
        for name, tensor in module._parameters.items():
            if tensor is not None and not tensor.is_meta:
                module._parameters[name] = nn.Parameter(
                    tensor.detach().to("meta"), requires_grad=tensor.requires_grad
                )


def allow(model: PreTrainedModel) -> None:
    """Take back what `forbid` refused."""
    for name in (*_FORBIDDEN, "to"):
        model.__dict__.pop(name, None)
