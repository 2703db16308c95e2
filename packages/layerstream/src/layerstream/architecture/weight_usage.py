"""Find out where weights are read: inside which modules' calls.

Room: architecture. A weight can move with a module only if every read of it happens while that module runs.
Some models read an embedding's rows, a convolution's kernel or a layer's device from elsewhere.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch.overrides import TorchFunctionMode
from transformers import PreTrainedModel

from . import compat
from .meta_forward import forward_on_meta

_HARMLESS = frozenset(
    getattr(getattr(torch.Tensor, name), "__get__", getattr(torch.Tensor, name))
    for name in (
        "dtype",
        "shape",
        "ndim",
        "requires_grad",
        "is_meta",
        "layout",
        "size",
        "dim",
        "numel",
        "is_floating_point",
    )
)
"""Attributes and methods that a tensor on the meta device answers correctly."""

_PROMPT_TOKENS = 16
_DEVICE = torch.Tensor.device.__get__


class WeightUsage(TorchFunctionMode):
    """Record every read of a parameter or persistent buffer while this mode is active.

    Attributes:
        calls: the paths of the modules that were called, in order.
        scopes: by weight name, the modules that were running at every read of the weight's values.
        device_scopes: the same for reads of `.device`, which misleads on the meta device.
    """

    def __init__(self, model: PreTrainedModel) -> None:
        """Prepare to watch `model`."""
        super().__init__()
        self.calls: list[str] = []
        self.scopes: dict[str, frozenset[str]] = {}
        self.device_scopes: dict[str, frozenset[str]] = {}
        self._names = {id(tensor): name for name, tensor in model.state_dict(keep_vars=True).items()}
        self._running: list[str] = []
        self._handles: list[Any] = []
        self._model = model

    def __enter__(self) -> WeightUsage:
        """Install the hooks."""
        for path, module in self._model.named_modules():
            if path:
                self._handles.append(module.register_forward_pre_hook(self._entering(path), prepend=True))
                self._handles.append(module.register_forward_hook(self._leaving(path), always_call=True))
        super().__enter__()  # type: ignore[no-untyped-call]
        return self

    def __exit__(self, *details: Any) -> None:
        """Remove the hooks."""
        super().__exit__(*details)  # type: ignore[no-untyped-call]
        for handle in self._handles:
            handle.remove()

    def __torch_function__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        """Record the weights among the arguments."""
        if func not in _HARMLESS:
            scopes = self.device_scopes if func == _DEVICE else self.scopes
            for argument in (*args, *(kwargs or {}).values()):
                for value in argument if isinstance(argument, (list, tuple)) else (argument,):
                    name = self._names.get(id(value))
                    if name is not None:
                        running = frozenset(self._running)
                        scopes[name] = scopes.get(name, running) & running
        return func(*args, **(kwargs or {}))

    def moves_with(self, weight: str, module: str) -> bool:
        """Return whether `weight` is needed only while `module` runs."""
        return all(module in scopes.get(weight, (module,)) for scopes in (self.scopes, self.device_scopes))

    def values_move_with(self, weight: str, module: str) -> bool:
        """Like `moves_with`, but reads of the weight's device do not count."""
        return module in self.scopes.get(weight, (module,))

    def _entering(self, path: str) -> Callable[..., None]:
        def enter(*_: Any) -> None:
            self.calls.append(path)
            self._running.append(path)

        return enter

    def _leaving(self, path: str) -> Callable[..., None]:
        def leave(*_: Any) -> None:
            if path in self._running:
                del self._running[len(self._running) - 1 - self._running[::-1].index(path) :]

        return leave


def find_weight_usage(model: PreTrainedModel) -> WeightUsage | None:
    """Return which modules one prefill and one decoded token call, and where each weight is read.

    Args:
        model: a skeleton on the meta device.

    Returns:
        The usage; None when the model's forward cannot run on shapes.
    """
    with WeightUsage(model) as usage:
        output = forward_on_meta(model, _PROMPT_TOKENS)
        if output is None:
            return None
        prefill_calls = list(usage.calls)
        # A single token takes another path through recurrent layers, even when they keep their state in
        # their own attributes.
        if forward_on_meta(model, 1, compat.cache_of(model, output)) is None:
            return None
    usage.calls = prefill_calls
    return usage
