"""Put a unit's tensors into its modules before they run, and take them out again afterwards.

A module is a dictionary of parameters and buffers here. Hooks are the only way in: no class is replaced and
no forward is copied. The installed tensors are views of the slot: nothing is copied and, after the first
time, nothing is allocated. Room: streaming.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import nn

from ..errors import UnsupportedModelError
from ..spec.profiles import TensorRecipe
from .absent_weight import AbsentWeight, GuardedTensors
from .eager import run_eagerly
from .lease import Lease
from .no_backward import without_backward
from .stream import WeightStream
from .sweep_group import SweepGroup

Place = tuple[dict[str, Any], str]
"""A module's dictionary of parameters or buffers, and a name in it."""

_put = dict.__setitem__
"""Layerstream's own way around the guard of a module's tensors."""

_MARK = "_streams_weights"
_LOADED_AGAIN = (
    "{what} cannot change a streamed weight: its block's next visit loads it again. Change the checkpoint, "
    "put an adapter on the model, or load it with a budget that keeps all weights resident"
)


def places_of(model: nn.Module, name: str) -> Place:
    """Return where the tensor `name` sits in the model."""
    path, _, attribute = name.rpartition(".")
    module = model.get_submodule(path)
    return (module._buffers if attribute in module._buffers else module._parameters), attribute


class InstalledWeight(nn.Parameter):
    """A streamed weight while it is in memory: a view of a slot.

    It is a plain parameter whose `.data` shares its version counter, so that writes through it are noticed.
    """

    __torch_function__ = torch._C._disabled_torch_function_impl  # type: ignore[assignment]

    @property
    def data(self) -> torch.Tensor:
        """The weight without its history."""
        return self.detach()

    @data.setter
    def data(self, _: torch.Tensor) -> None:
        raise UnsupportedModelError(_LOADED_AGAIN.format(what="an assignment to .data"))

    def set_(self, source: Any, *_: Any) -> Any:
        """Accept `source` only if it is this weight, as when a parametrization is registered."""
        if source is not self:
            raise UnsupportedModelError(_LOADED_AGAIN.format(what="set_()"))
        return self


def as_installed(
    view: torch.Tensor, *, is_buffer: bool, parameter: type[nn.Parameter] = nn.Parameter
) -> torch.Tensor:
    """Return `view` as `from_pretrained` would have installed it, whatever mode the caller is in.

    A kernel may depend on two things besides values: on the weight's `requires_grad`, and on whether it is an
    inference tensor. Both must be as in the resident model.
    """
    with torch.inference_mode(False), torch.no_grad():
        # Its own version counter: that of the buffer changes with every unit read into it.
        tensor = view.data
        if not is_buffer:
            needs_grad = view.is_floating_point() or view.is_complex()
            tensor = torch.Tensor._make_subclass(parameter, tensor, needs_grad)
    # Adapters load into a model that is already there: transformers would initialize unmarked weights anew.
    tensor._is_hf_initialized = True  # type: ignore[attr-defined]
    return tensor


def is_streamed(tensor: Any) -> bool:
    """Return whether `tensor` is a streamed weight, away or in memory, and not what a user put there.

    After Ctrl-C, one in memory may still be in its place when the next forward begins.
    """
    return isinstance(tensor, (AbsentWeight, InstalledWeight))


def as_streaming_hook(hook: Callable[..., Any]) -> Callable[..., Any]:
    """Mark `hook` as one of layerstream's, which a copy of its module must not have."""
    hook = run_eagerly(hook)
    hook.__dict__[_MARK] = True
    return hook


def is_streaming_hook(hook: Callable[..., Any]) -> bool:
    """Return whether `hook` is one of layerstream's."""
    return _MARK in getattr(hook, "__dict__", ())


class UnitBinding:
    """The places of one unit's tensors, and the absent weights in them while the unit is away."""

    def __init__(self, model: nn.Module, tensors: Sequence[TensorRecipe]) -> None:
        """Find the places of `tensors`, which hold absent weights."""
        self._tensors = tuple(tensors)
        self._places: list[tuple[GuardedTensors, str]] = []
        self._absent: list[AbsentWeight] = []
        for tensor in tensors:
            place, name = places_of(model, tensor.name)
            assert isinstance(place, GuardedTensors)
            self._places.append((place, name))
            self._absent.append(place[name])
        self._installed: dict[tuple[int, int], list[torch.Tensor]] = {}
        self._current: list[tuple[dict[str, Any], str, torch.Tensor, AbsentWeight]] = []

    @property
    def absent(self) -> dict[str, AbsentWeight]:
        """The absent weights by the names of their tensors."""
        return {tensor.name: absent for tensor, absent in zip(self._tensors, self._absent, strict=True)}

    @property
    def is_untouched(self) -> bool:
        """Whether every weight is still in its place, and not replaced or inside a parametrization."""
        return all(is_streamed(place.get(name)) for place, name in self._places)

    def install(self, key: tuple[int, int], views: Callable[[], dict[str, torch.Tensor]]) -> None:
        """Put the tensors in; `views` is called once for each `key`, that is, each memory the unit is in."""
        self.release()  # Ctrl-C may have left them in place.
        installed = self._installed.get(key)
        if installed is None:
            installed = self._installed[key] = self._as_installed(views)
        for (guarded, name), value, absent in zip(self._places, installed, self._absent, strict=True):
            tensors: dict[str, Any] = guarded
            if guarded.get(name) is not absent and not is_streamed(guarded.get(name)):
                tensors, name = guarded.place_of(name)
                if not is_streamed(tensors.get(name)):
                    continue  # A parametrization computes this weight from tensors of its own.
            if value.requires_grad is not absent.requires_grad:
                value.requires_grad_(absent.requires_grad)
            _put(tensors, name, value)
            self._current.append((tensors, name, value, absent))

    def _as_installed(self, views: Callable[[], dict[str, torch.Tensor]]) -> list[torch.Tensor]:
        with torch.inference_mode(False):
            by_name = views()
        return [
            as_installed(by_name[t.name], is_buffer=t.is_buffer, parameter=InstalledWeight)
            for t in self._tensors
        ]

    def release(self) -> AbsentWeight | None:
        """Put the absent weights back; return one whose weight was changed or replaced meanwhile, if any."""
        changed = None
        for tensors, name, value, absent in self._current:
            if (value._version or tensors.get(name) is not value) and changed is None:
                changed = self._check_change(tensors.get(name), value, absent)
            _put(tensors, name, absent)
        self._current.clear()
        return changed

    def _check_change(self, found: Any, value: torch.Tensor, absent: AbsentWeight) -> AbsentWeight | None:
        """Return `absent` if its weight was changed; None if an equal view of the same memory is there."""
        is_same_memory = isinstance(found, nn.Parameter) and found.data_ptr() == value.data_ptr()
        if is_same_memory and not value._version:
            return None
        self._installed.clear()
        return absent

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

    def __init__(self, stream: WeightStream, group: SweepGroup) -> None:
        """Serve modules from `stream`."""
        self._stream = stream
        self._group = group
        self._handles: list[Any] = []
        self._bindings: dict[int, UnitBinding] = {}
        self._open: dict[int, tuple[Lease, UnitBinding]] = {}

    def attach(self, modules: Iterable[StreamedModule]) -> None:
        """Put the hooks on `modules`."""
        for streamed in modules:
            self._bindings[streamed.index] = streamed.binding
            before, after = self._before(streamed), self._after(streamed)
            self._handles.append(streamed.module.register_forward_pre_hook(before, prepend=True))
            self._handles.append(streamed.module.register_forward_hook(after, always_call=True))
            self._replace_forward(streamed.module, without_backward(streamed.module.forward))

    def enter(self, index: int, binding: UnitBinding) -> None:
        """Install unit `index` in `binding` once it is on the device; a task first waits for its turn."""
        if self._group.is_task_thread():
            self._group.enter(
                index, partial(self._acquire, index, binding), partial(self._release_unchanged, index)
            )
        else:
            self._group.refuse_outsiders()
            self._acquire(index, binding)

    def leave(self, index: int) -> None:
        """Release unit `index`, if it is in place and no other task needs it in this visit.

        Raises:
            UnsupportedModelError: a weight of the unit was changed, which the next visit would undo.
        """
        if self._group.is_task_thread():
            self._group.leave(index)
        else:
            self._release_unchanged(index)

    def _acquire(self, index: int, binding: UnitBinding) -> None:
        lease = self._stream.acquire(index)
        binding.install(lease.key, lambda: self._stream.views(lease))
        self._open[index] = (lease, binding)

    def _release_unchanged(self, index: int) -> None:
        changed = self._release(index)
        if changed is not None:
            changed.refuse_write("a hook or another operation during the forward")

    def _release(self, index: int) -> AbsentWeight | None:
        entry = self._open.pop(index, None)
        if entry is None:
            return None
        lease, binding = entry
        changed = binding.release()
        self._stream.release(lease)
        return changed

    def leave_all(self) -> None:
        """Release every unit that an interrupted forward left in place."""
        for index in tuple(self._open):
            self._release(index)
        self._stream.release_all()

    def absent_weights(self, index: int) -> dict[str, AbsentWeight]:
        """Return the absent weights of unit `index` by the names of their tensors."""
        return self._bindings[index].absent

    def drop_views(self) -> None:
        """Drop every view of the slots, so that their memory can be freed; no unit may be in place."""
        for binding in self._bindings.values():
            binding.forget()

    def detach(self) -> None:
        """Take every hook off and every view out of the model."""
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
        self._open.clear()
        self.drop_views()
        self._bindings.clear()

    def slice_linear(self, module: nn.Linear, slices: Sequence[tuple[int, UnitBinding]]) -> None:
        """Run a linear layer slice by slice of its rows: its own forward on each, the results concatenated.

        Only this instance's `forward` is set; `detach` takes it off again.
        """
        plain_forward = module.forward

        def forward(inputs: torch.Tensor) -> torch.Tensor:
            if not slices[0][1].is_untouched:
                return plain_forward(inputs)
            results = []
            for index, binding in slices:
                self.enter(index, binding)
                try:
                    results.append(plain_forward(inputs))
                finally:
                    self.leave(index)
            return torch.cat(results, dim=-1)

        self._bindings |= dict(slices)
        self._replace_forward(module, without_backward(forward))

    def _replace_forward(self, module: nn.Module, forward: Callable[..., Any]) -> None:
        module.__dict__["forward"] = run_eagerly(forward)
        self._handles.append(_ForwardHandle(lambda: module.__dict__.pop("forward", None)))

    def _before(self, streamed: StreamedModule) -> Callable[..., None]:
        def before(*_: Any) -> None:
            self.enter(streamed.index, streamed.binding)

        return as_streaming_hook(before)

    def _after(self, streamed: StreamedModule) -> Callable[..., None]:
        def after(*_: Any) -> None:
            self.leave(streamed.index)

        return as_streaming_hook(after)


@dataclass(slots=True)
class _ForwardHandle:
    """Takes a replaced forward off, as the handles of torch's hooks do."""

    remove: Callable[[], object]
