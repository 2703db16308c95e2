"""The streamed model: transformers' own model with its weights' life in our hands.

Layer: composition. Owns threads, buffers and hooks, and gives all of them back.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from time import perf_counter
from types import TracebackType
from typing import Any

import psutil
import torch
from torch import nn
from transformers import PreTrainedModel

from .checkpoint.reader import DiskReader
from .decisions import PlacementPlan, Residency
from .errors import StreamClosedError, UnsupportedModelError
from .facts import ModelProfile
from .report import StreamReport
from .streaming.binding import StreamHooks
from .streaming.rows import RowTable
from .streaming.runtime import DeviceRuntime
from .streaming.stream import WeightStream
from .timeline import Activity, Timeline

_ANCHOR = "layerstream_anchor"
_FORBIDDEN = ("half", "float", "bfloat16", "double", "cuda", "cpu", "save_pretrained", "resize_token_embeddings", "tie_weights")


class StreamedModel:
    """A causal language model within a memory budget.

    Attributes:
        model: the real `PreTrainedModel`: pipelines, peft and evaluation harnesses take it as it is.
        plan: where everything lives.
        profile: the model as numbers.
        timeline: what happened when.
    """

    def __init__(
        self,
        *,
        model: PreTrainedModel,
        plan: PlacementPlan,
        profile: ModelProfile,
        timeline: Timeline,
        runtime: DeviceRuntime,
        reader: DiskReader,
        stream: WeightStream | None,
        hooks: StreamHooks | None,
        detach_rows: list[Callable[[], None]],
        tables: list[RowTable],
        baseline_bytes: int,
    ) -> None:
        """Take over what `load` made; use `load`."""
        self.model, self.plan, self.profile, self.timeline = model, plan, profile, timeline
        self._runtime, self._reader, self._stream, self._hooks = runtime, reader, stream, hooks
        self._detach_rows, self._tables = detach_rows, tables
        self._gate = _Gate(model, self._let_go)
        self._peak = _PeakMemory(runtime, baseline_bytes)
        self._gate.on_end = self._peak.sample
        _anchor(model, runtime.device)
        _forbid(model, runtime.device)
        self.reset_report()

    def generate(self, *args: Any, **kwargs: Any) -> Any:
        """Generate with transformers' own `generate()`; every argument is its."""
        self._check_open()
        return self.model.generate(*args, **kwargs)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Run one forward of the model: one sweep."""
        self._check_open()
        return self.model(*args, **kwargs)

    @property
    def is_closed(self) -> bool:
        """Whether `close()` was called."""
        return self._gate.is_closed

    def report(self) -> StreamReport:
        """Return what was moved, waited for and computed since loading or the last `reset_report()`."""
        totals = {kind: self.timeline.totals[kind] for kind in Activity}
        streamed = [unit for unit in self.plan.units if unit.residency is not Residency.DEVICE]
        rows_read = sum(table.bytes_read for table in self._tables)
        since = self._since
        peak_device_bytes, peak_host_bytes = self._peak.bytes()
        return StreamReport(
            model_name=self.plan.model_name,
            dtype=self.plan.dtype,
            device=self.plan.device,
            sweeps=self._gate.sweeps - since["sweeps"],
            units=len(self.plan.units),
            streamed_units=len(streamed),
            bytes_read=totals[Activity.READ].num_bytes + rows_read - since["read"],
            bytes_copied=totals[Activity.COPY].num_bytes - since["copied"],
            read_s=totals[Activity.READ].seconds - since["read_s"],
            copy_s=totals[Activity.COPY].seconds - since["copy_s"],
            wait_s=totals[Activity.WAIT].seconds - since["wait_s"],
            compute_s=totals[Activity.COMPUTE].seconds - since["compute_s"],
            elapsed_s=self._gate.elapsed_s - since["elapsed_s"],
            peak_device_bytes=peak_device_bytes,
            peak_host_bytes=peak_host_bytes,
            ledger_device_bytes=self.plan.ledger.device_bytes,
            budget_device_bytes=self.plan.ledger.device_budget_bytes,
        )

    def reset_report(self) -> None:
        """Start the next report from here."""
        totals = self.timeline.totals
        self._since = {
            "sweeps": self._gate.sweeps,
            "elapsed_s": self._gate.elapsed_s,
            "read": totals[Activity.READ].num_bytes + sum(table.bytes_read for table in self._tables),
            "copied": totals[Activity.COPY].num_bytes,
            **{f"{kind.value}_s": totals[kind].seconds for kind in Activity},
        }

    def close(self) -> None:
        """Stop every thread, free every buffer and take every hook off; safe to call twice.

        The model's weights are gone afterwards: a later forward raises `StreamClosedError`.
        """
        if self._gate.is_closed:
            return
        self._gate.close()
        if self._stream is not None:
            self._stream.close()
        if self._hooks is not None:
            self._hooks.detach()
        for detach in self._detach_rows:
            detach()
        self._tables.clear()
        self._reader.close()
        _empty(self.model)
        for name in (*_FORBIDDEN, "to"):
            self.model.__dict__.pop(name, None)

    def __enter__(self) -> StreamedModel:
        """Return this model; leaving the block closes it."""
        self._check_open()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        """Close."""
        self.close()

    def _check_open(self) -> None:
        if self._gate.is_closed:
            raise StreamClosedError("this streamed model is closed; load it again")

    def _let_go(self) -> None:
        if self._hooks is not None:
            self._hooks.leave_all()


class _Gate:
    """What surrounds every forward of the model: one at a time, without gradients, counted."""

    def __init__(self, model: nn.Module, let_go: Callable[[], None]) -> None:
        self.sweeps = 0
        self.elapsed_s = 0.0
        self.is_closed = False
        self.on_end: Callable[[], None] = lambda: None
        self._let_go = let_go
        self._free = threading.Condition()
        self._owner: int | None = None
        self._start_s = 0.0
        self._had_grad = False
        model.register_forward_pre_hook(self._enter, prepend=True)
        self._handle = model.register_forward_hook(self._leave, always_call=True)

    def _enter(self, *_: Any) -> None:
        if self.is_closed:
            raise StreamClosedError("this streamed model is closed: its weights are gone; load it again")
        me = threading.get_ident()
        with self._free:
            while self._owner not in (None, me):
                self._free.wait()
            was_interrupted = self._owner == me
            self._owner = me
        if was_interrupted:
            # Ctrl-C does not run torch's hooks: the forward before this one never left.
            torch.set_grad_enabled(self._had_grad)
        self._let_go()
        self._start_s = perf_counter()
        self._had_grad = torch.is_grad_enabled()
        # Slots are overwritten while a graph would still point at them; streaming is for inference.
        torch.set_grad_enabled(False)

    def _leave(self, *_: Any) -> None:
        if self._owner != threading.get_ident():
            return
        torch.set_grad_enabled(self._had_grad)
        self._let_go()
        self.elapsed_s += perf_counter() - self._start_s
        self.sweeps += 1
        self.on_end()
        with self._free:
            self._owner = None
            self._free.notify()

    def close(self) -> None:
        self.is_closed = True
        if self._owner == threading.get_ident():
            torch.set_grad_enabled(self._had_grad)
        self._handle.remove()
        with self._free:
            self._owner = None
            self._free.notify_all()


class _PeakMemory:
    """The peak since loading: the kernel's high-water mark where it has moved, samples between forwards where it has not."""

    def __init__(self, runtime: DeviceRuntime, baseline_bytes: int) -> None:
        self._runtime, self._baseline_bytes = runtime, baseline_bytes
        self._mark_bytes = _high_water_bytes()
        self._sampled_bytes = 0
        self._process = psutil.Process()

    def sample(self) -> None:
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


def _anchor(model: PreTrainedModel, device: torch.device) -> None:
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


def _forbid(model: PreTrainedModel, device: torch.device) -> None:
    """Refuse, with a reason, what would break a model whose weights come and go."""

    def refuse(name: str) -> Callable[..., Any]:
        def refused(*args: Any, **kwargs: Any) -> Any:
            raise UnsupportedModelError(
                f"model.{name}() cannot be used on a streamed model, whose weights come and go: choose device and dtype in load(), and "
                "use transformers' from_pretrained to train, resize or save"
            )

        return refused

    def to(*args: Any, **kwargs: Any) -> PreTrainedModel:
        wanted, dtype, *_ = torch._C._nn._parse_to(*args, **kwargs)
        if (wanted is None or wanted == device) and dtype in (None, model.dtype):
            return model
        raise UnsupportedModelError(f"model.to({wanted or dtype}) cannot move a streamed model: choose device and dtype in load()")

    for name in _FORBIDDEN:
        model.__dict__[name] = refuse(name)
    model.__dict__["to"] = to


def _empty(model: nn.Module) -> None:
    """Put meta tensors in place of all weights, so that the memory behind them is freed."""
    for module in model.modules():
        module._parameters.pop(_ANCHOR, None)
        for name, tensor in module._parameters.items():
            if tensor is not None and not tensor.is_meta:
                module._parameters[name] = nn.Parameter(tensor.detach().to("meta"), requires_grad=tensor.requires_grad)
