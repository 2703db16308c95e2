"""Put a unit's tensors into its modules before they run, and take them out again afterwards.

A module is a dictionary of parameters and buffers here. Hooks are the only way in: no class is replaced and
no forward is copied. The installed tensors are views of the slot: nothing is copied and, after the first
time, nothing is allocated. Room: streaming.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from time import perf_counter
from typing import Any

import torch
from torch import nn

from ..spec.profiles import TensorRecipe
from ..spec.timeline import Activity, Timeline
from .stream import Lease, WeightStream
from .sweep_group import SweepGroup

Place = tuple[dict[str, Any], str]
"""A module's dictionary of parameters or buffers, and a name in it."""


def places_of(model: nn.Module, tensor: TensorRecipe, name: str | None = None) -> Place:
    """Return where `tensor` (or another `name` for it) sits in the model."""
    path, _, attribute = (name or tensor.name).rpartition(".")
    module = model.get_submodule(path)
    return (module._buffers if attribute in module._buffers else module._parameters), attribute


def as_installed(view: torch.Tensor, *, is_buffer: bool) -> torch.Tensor:
    """Return `view` as `from_pretrained` would have installed it.

    The flag `requires_grad` of a weight selects ATen's matmul path, even under no_grad: it must be as in the
    resident model.
    """
    if is_buffer:
        return view
    return nn.Parameter(view, requires_grad=view.is_floating_point() or view.is_complex())


class UnitBinding:
    """The places of one unit's tensors, and the meta tensors that fill them while the unit is away."""

    def __init__(self, model: nn.Module, tensors: Sequence[TensorRecipe]) -> None:
        """Find the places of `tensors`, and keep the meta tensors in them."""
        self._tensors = tuple(tensors)
        self._places = [places_of(model, tensor) for tensor in tensors]
        self._meta_tensors = [place[name] for place, name in self._places]
        self._installed: dict[tuple[int, int], list[torch.Tensor]] = {}

    def install(self, key: tuple[int, int], views: Callable[[], dict[str, torch.Tensor]]) -> None:
        """Put the tensors in; `views` is called once for each `key`, that is, each memory the unit is in."""
        installed = self._installed.get(key)
        if installed is None:
            by_name = views()
            installed = [as_installed(by_name[t.name], is_buffer=t.is_buffer) for t in self._tensors]
            self._installed[key] = installed
        for (place, name), value in zip(self._places, installed, strict=True):
            place[name] = value

    def release(self) -> None:
        """Put the meta tensors back."""
        for (place, name), value in zip(self._places, self._meta_tensors, strict=True):
            place[name] = value

    def forget(self) -> None:
        """Drop every view, so that the memory behind them can be freed."""
        self.release()
        self._installed.clear()


@dataclass(slots=True)
class StreamedModule:
    """One streamed unit with the module whose forward needs it.

    Attributes:
        index: the unit's index in the stream.
        module: the module.
        binding: where the unit's tensors go.
    """

    index: int
    module: nn.Module
    binding: UnitBinding


class StreamHooks:
    """Hooks that acquire a unit before its module's forward and release it afterwards, even if it raised.

    A task of `group` waits for its turn before each unit, and shares the unit with the visit's other tasks.
    """

    def __init__(self, stream: WeightStream, timeline: Timeline, group: SweepGroup) -> None:
        """Serve modules from `stream`."""
        self._stream = stream
        self._timeline = timeline
        self._group = group
        self._handles: list[Any] = []
        self._bindings: list[UnitBinding] = []
        self._open: dict[int, tuple[Lease, UnitBinding, float]] = {}

    def attach(self, modules: Iterable[StreamedModule]) -> None:
        """Put the hooks on `modules`."""
        for streamed in modules:
            self._bindings.append(streamed.binding)
            before, after = self._before(streamed), self._after(streamed)
            self._handles.append(streamed.module.register_forward_pre_hook(before, prepend=True))
            self._handles.append(streamed.module.register_forward_hook(after, always_call=True))

    def enter(self, index: int, binding: UnitBinding) -> None:
        """Install unit `index` in `binding` once it is on the device; a task first waits for its turn."""
        if self._group.is_task_thread():
            self._group.enter(index, partial(self._acquire, index, binding), partial(self._release, index))
        else:
            self._group.refuse_outsiders()
            self._acquire(index, binding)

    def leave(self, index: int) -> None:
        """Release unit `index`, if it is in place and no other task needs it in this visit."""
        if self._group.is_task_thread():
            self._group.leave(index)
        else:
            self._release(index)

    def _acquire(self, index: int, binding: UnitBinding) -> None:
        lease = self._stream.acquire(index)
        binding.install(lease.key, lambda: self._stream.views(lease))
        self._open[index] = (lease, binding, perf_counter())

    def _release(self, index: int) -> None:
        entry = self._open.pop(index, None)
        if entry is None:
            return
        lease, binding, start_s = entry
        binding.release()
        span = self._stream.units[index].span(Activity.COMPUTE, lease.sweep, start_s, perf_counter())
        self._stream.release(lease)
        self._timeline.record(span)

    def leave_all(self) -> None:
        """Release every unit that an interrupted forward left in place."""
        for index in tuple(self._open):
            self._release(index)
        self._stream.release_all()

    def detach(self) -> None:
        """Take every hook off and every view out of the model."""
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
        self._open.clear()
        for binding in self._bindings:
            binding.forget()
        self._bindings.clear()

    def slice_linear(self, module: nn.Linear, slices: Sequence[tuple[int, UnitBinding]]) -> None:
        """Run a linear layer slice by slice of its rows: its own forward on each, the results concatenated.

        Only this instance's `forward` is set; `detach` takes it off again.
        """
        plain_forward = module.forward

        def forward(inputs: torch.Tensor) -> torch.Tensor:
            results = []
            for index, binding in slices:
                self.enter(index, binding)
                try:
                    results.append(plain_forward(inputs))
                finally:
                    self.leave(index)
            return torch.cat(results, dim=-1)

        self._bindings += [binding for _, binding in slices]
        module.__dict__["forward"] = forward
        self._handles.append(_ForwardHandle(lambda: module.__dict__.pop("forward", None)))

    def _before(self, streamed: StreamedModule) -> Callable[..., None]:
        def before(*_: Any) -> None:
            self.enter(streamed.index, streamed.binding)

        return before

    def _after(self, streamed: StreamedModule) -> Callable[..., None]:
        def after(*_: Any) -> None:
            self.leave(streamed.index)

        return after


@dataclass(slots=True)
class _ForwardHandle:
    """Takes a replaced forward off, as the handles of torch's hooks do."""

    remove: Callable[[], object]
