"""What is in a weight's place while it is not in memory: it says what the weight is, and loses nothing.

Shape, dtype, device and `requires_grad` are the weight's. An operation that reads its values reads them from
the checkpoint, exactly, for that operation alone. An operation that would write to it raises an error: the
next visit would overwrite what was written. Room: streaming.

Source: https://docs.pytorch.org/docs/stable/notes/extending.html (subclasses with `__torch_dispatch__`).
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable, Mapping, Sequence
from copy import deepcopy
from functools import partial
from typing import Any, NoReturn

import torch
from torch import nn
from torch.utils._pytree import tree_iter, tree_map

from ..errors import UnsupportedModelError

_aten = torch.ops.aten

_SHAPE_ONLY = frozenset(
    {
        _aten.empty_like,
        _aten.zeros_like,
        _aten.ones_like,
        _aten.full_like,
        _aten.rand_like,
        _aten.randn_like,
        _aten.randint_like,
        _aten.new_empty,
        _aten.new_empty_strided,
        _aten.new_zeros,
        _aten.new_ones,
        _aten.new_full,
    }
)
"""Operations that use a tensor's shape, dtype and device, but not its values."""


class AbsentWeight(torch.Tensor):
    """A parameter or buffer whose values are in the checkpoint, not in memory.

    Attributes:
        weight_name: the name in the model, for messages.
    """

    weight_name: str
    _shape_on_meta: torch.Tensor
    _read: Callable[[], torch.Tensor]
    _keeps_identity: weakref.ref[AbsentWeight]
    """`torch.utils.swap_tensors` refuses a tensor that has a weak reference."""

    __torch_function__ = torch._C._disabled_torch_function_impl  # type: ignore[assignment]

    @staticmethod
    def __new__(
        cls,
        name: str,
        like: torch.Tensor,
        device: torch.device,
        read: Callable[[], torch.Tensor],
        *,
        is_parameter: bool,
    ) -> AbsentWeight:
        """Return what takes the place of the weight `name` while it is away.

        Args:
            cls: this class.
            name: the weight's name in the model.
            like: a meta tensor of its shape and dtype.
            device: where the weight is whenever it is in memory.
            read: returns its values, in memory of their own.
            is_parameter: it is a parameter, so it starts with `requires_grad` where that is possible.
        """
        with torch.inference_mode(False):
            weight = torch.Tensor._make_wrapper_subclass(
                cls, like.shape, strides=like.stride(), dtype=like.dtype, device=device
            )
        weight.weight_name, weight._shape_on_meta, weight._read = name, like, read
        weight._keeps_identity = weakref.ref(weight)
        if is_parameter:
            weight._is_param = True
            weight.requires_grad_(like.is_floating_point() or like.is_complex())
        return weight

    def read(self) -> torch.Tensor:
        """Return the weight's values in memory of their own, on the weight's device."""
        with torch.inference_mode(False), torch.no_grad():
            return self._read()

    def equals(self, value: torch.Tensor) -> bool:
        """Return whether `value` holds exactly this weight."""
        return value.shape == self.shape and torch.equal(self.read(), value.to(self.device, self.dtype))

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]
        cls, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        """Run `func` on the values, or refuse it if it writes to them."""
        kwargs = kwargs or {}
        for written in _written(func, args, kwargs):
            if func is _aten.copy_.default and written.equals(args[1]):
                return written  # An adapter's file may hold the weights of the layer it is on.
            if func is _aten.set_.source_Tensor and args[1] is written:
                return written  # Registering a parametrization does so.
            written.refuse_write(f"{func.overloadpacket.__name__}()")
        if func.overloadpacket in _SHAPE_ONLY:
            return func(*_map_absent(AbsentWeight._without_values, args), **kwargs)
        if args and isinstance(args[0], AbsentWeight) and _returns_a_view(func):
            return args[0]._view(func, args, kwargs)
        values: dict[int, torch.Tensor] = {}

        def values_of(weight: AbsentWeight) -> torch.Tensor:
            return values.setdefault(id(weight), weight.read())

        return func(*_map_absent(values_of, args), **_map_absent(values_of, kwargs))

    def _view(self, func: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
        """Return a view as an absent weight too (or several), so that it refuses writes and stays lazy."""
        shapes = func(self._shape_on_meta, *args[1:], **kwargs)
        if isinstance(shapes, torch.Tensor):
            return self._like(shapes, lambda: func(self._read(), *args[1:], **kwargs))

        def read_part(index: int) -> torch.Tensor:
            part: torch.Tensor = func(self._read(), *args[1:], **kwargs)[index]
            return part

        return [self._like(shape, partial(read_part, index)) for index, shape in enumerate(shapes)]

    def _like(self, shape: torch.Tensor, read: Callable[[], torch.Tensor]) -> AbsentWeight:
        return AbsentWeight(self.weight_name, shape, self.device, read, is_parameter=False)

    def _without_values(self) -> torch.Tensor:
        return torch.empty((), dtype=self.dtype, device=self.device).expand(self.shape)

    def on_meta(self) -> torch.Tensor:
        """Return a meta tensor of the weight's shape, dtype and `requires_grad`."""
        meta = self._shape_on_meta.detach()
        return nn.Parameter(meta, self.requires_grad) if isinstance(self, nn.Parameter) else meta

    def refuse_write(self, what: str) -> NoReturn:
        """Raise the error for `what`, which would change the weight."""
        raise UnsupportedModelError(
            f"{what} cannot change {self.weight_name!r}: this weight is streamed, and the next forward reads "
            "it from the checkpoint again. Change the checkpoint, put an adapter on the model, or load it "
            "with a budget that keeps all weights resident"
        )

    # -- what never reaches __torch_dispatch__ -------------------------------------------------------------

    @property
    def data(self) -> torch.Tensor:
        """The weight without its history."""
        return self.detach()

    @data.setter
    def data(self, value: torch.Tensor) -> None:
        if value is not self:
            self.refuse_write("an assignment to .data")

    def __repr__(self, *, tensor_contents: Any = None) -> str:  # type: ignore[override]
        """Return what it is, without reading it."""
        what = f"shape={tuple(self.shape)}, dtype={self.dtype}, device={str(self.device)!r}"
        return f"AbsentWeight({self.weight_name!r}, {what})"

    def __deepcopy__(self, memo: dict[int, Any]) -> torch.Tensor:
        """Return the weight itself, read into memory of its own."""
        if id(self) not in memo:
            # In fresh memory, as a copy of the resident weight would be: kernels depend on the alignment.
            copy = self.read().clone()
            memo[id(self)] = (
                nn.Parameter(copy, self.requires_grad) if isinstance(self, nn.Parameter) else copy
            )
        return memo[id(self)]  # type: ignore[no-any-return]

    def __reduce_ex__(self, protocol: Any) -> NoReturn:
        """Refuse to be pickled."""
        raise UnsupportedModelError(
            f"{self.weight_name!r} cannot be pickled or saved: this weight is streamed from the checkpoint, "
            "where it already is. Copy the checkpoint's files, or save a model loaded with transformers"
        )

    def share_memory_(self) -> NoReturn:
        """Refuse to be shared."""
        raise UnsupportedModelError(
            f"{self.weight_name!r} cannot be shared between processes: this weight is streamed and has no "
            "memory of its own. Load the model in each process"
        )

    def data_ptr(self) -> NoReturn:
        """Refuse: there is no memory to point at. Functions that write files ask for the address."""
        raise UnsupportedModelError(
            f"{self.weight_name!r} has no memory to point at: this weight is streamed from the checkpoint, "
            "where it already is. Copy the checkpoint's files, or save a model loaded with transformers"
        )

    def untyped_storage(self) -> torch.UntypedStorage:
        """Return an empty storage: this weight takes no memory."""
        return torch.UntypedStorage(0)

    def numpy(self, *, force: bool = False) -> Any:
        """Return the values as an array that cannot be written to."""
        array = self.detach().read().numpy(force=force)  # type: ignore[attr-defined]
        array.flags.writeable = False
        return array

    def tolist(self) -> Any:
        """Return the values as nested lists."""
        return self.read().tolist()


class GuardedTensors(dict[str, Any]):
    """A module's dictionary of parameters or buffers that refuses to overwrite an absent weight.

    layerstream's own changes go around this, by `put` or by the methods of `dict`. A weight may be deleted,
    and something else may then take its name, as a parametrization does: from then on nothing is streamed to
    this place.
    """

    def __init__(self, module: nn.Module, tensors: Mapping[str, Any]) -> None:
        """Take over the `tensors` of `module`."""
        super().__init__(tensors)
        self._module = module

    def put(self, name: str, tensor: torch.Tensor) -> None:
        """Set `name`, whatever is there now."""
        super().__setitem__(name, tensor)

    def __setitem__(self, name: str, tensor: Any) -> None:
        """Set `name`, unless an absent weight is there, or comes here from another place."""
        current = self.get(name)
        if isinstance(current, AbsentWeight) and tensor is not current:
            current.refuse_write("an assignment")
        if isinstance(tensor, AbsentWeight) and tensor.weight_name.rpartition(".")[2] != name:
            tensor.refuse_write(f"registering it as {name!r}")
        super().__setitem__(name, tensor)

    def place_of(self, name: str) -> tuple[dict[str, Any], str]:
        """Return where the tensor `name` of this module is: here, or inside its parametrization."""
        parametrized = self._module.__dict__["_modules"].get("parametrizations")
        if parametrized is None or name not in parametrized:
            return self, name
        original: dict[str, Any] = parametrized[name].__dict__["_parameters"]
        return original, "original"

    def __deepcopy__(self, memo: dict[int, Any]) -> dict[str, Any]:
        """Return a plain dictionary with a copy of every tensor, read from the checkpoint where absent."""
        return {name: deepcopy(tensor, memo) for name, tensor in self.items()}


def _written(func: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Iterable[AbsentWeight]:
    """Return the absent weights that `func` would write to."""
    if not func._schema.is_mutable:
        return []
    given = dict(zip((argument.name for argument in func._schema.arguments), args, strict=False))
    given.update(kwargs)
    return [
        value
        for argument in func._schema.arguments
        if argument.alias_info is not None and argument.alias_info.is_write
        for value in tree_iter(given.get(argument.name))
        if isinstance(value, AbsentWeight)
    ]


def _returns_a_view(func: Any) -> bool:
    returned = func._schema.returns
    return bool(returned) and returned[0].alias_info is not None and not returned[0].alias_info.is_write


def _map_absent(change: Callable[[AbsentWeight], torch.Tensor], values: Any) -> Any:
    return tree_map(lambda value: change(value) if isinstance(value, AbsentWeight) else value, values)
