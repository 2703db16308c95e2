"""Observe where weights are read: inside which modules' calls.

Room: architecture. A weight can move with a module only if every read of it happens while that module runs; some models look at an
embedding's rows, a convolution's kernel or a layer's device from elsewhere.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch.overrides import TorchFunctionMode
from transformers import PreTrainedModel

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
"""What a tensor on the meta device answers truthfully."""

_PROMPT_TOKENS = 16
_DEVICE = torch.Tensor.device.__get__


class WeightUsage(TorchFunctionMode):
    """Note, under this mode, every read of a parameter or persistent buffer.

    Attributes:
        calls: paths of the modules that were called, in order.
        scopes: by weight name, the modules that were running at every read of its values.
        device_scopes: the same for reads of `.device`, which on the meta device misleads.
    """

    def __init__(self, model: PreTrainedModel) -> None:
        """Watch `model`."""
        super().__init__()
        self.calls: list[str] = []
        self.scopes: dict[str, frozenset[str]] = {}
        self.device_scopes: dict[str, frozenset[str]] = {}
        self._names = {id(tensor): name for name, tensor in model.state_dict(keep_vars=True).items()}
        self._running: list[str] = []
        self._handles: list[Any] = []
        self._model = model

    def __enter__(self) -> WeightUsage:
        """Put the hooks on."""
        for path, module in self._model.named_modules():
            if path:
                self._handles.append(module.register_forward_pre_hook(self._entering(path), prepend=True))
                self._handles.append(module.register_forward_hook(self._leaving(path), always_call=True))
        super().__enter__()  # type: ignore[no-untyped-call]
        return self

    def __exit__(self, *details: Any) -> None:
        """Take the hooks off."""
        super().__exit__(*details)  # type: ignore[no-untyped-call]
        for handle in self._handles:
            handle.remove()

    def __torch_function__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        """Note the weights among the arguments."""
        if func not in _HARMLESS:
            noted = self.device_scopes if func == _DEVICE else self.scopes
            for value in (*args, *(kwargs or {}).values()):
                for one in value if isinstance(value, (list, tuple)) else (value,):
                    name = self._names.get(id(one))
                    if name is not None:
                        running = frozenset(self._running)
                        noted[name] = noted.get(name, running) & running
        return func(*args, **(kwargs or {}))

    def moves_with(self, weight: str, module: str) -> bool:
        """Return whether `weight` is needed only while `module` runs."""
        return all(module in noted.get(weight, (module,)) for noted in (self.scopes, self.device_scopes))

    def values_move_with(self, weight: str, module: str) -> bool:
        """Return whether the values of `weight` are needed only while `module` runs; its device may be asked for elsewhere."""
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


def record_weight_usage(model: PreTrainedModel, run: Callable[[int, Any], Any]) -> WeightUsage | None:
    """Run a prefill and one decoded token under observation.

    Args:
        model: a skeleton on the meta device.
        run: runs the model's forward on that many tokens' shapes, given the cache of the forward before it or None; returns None
            when it cannot.

    Returns:
        What was read where; None when the model cannot be run on shapes.
    """
    with WeightUsage(model) as reads:
        output = run(_PROMPT_TOKENS, None)
        if output is None:
            return None
        calls = list(reads.calls)
        # A single token takes another way through recurrent layers, also where these keep their state to themselves.
        if run(1, getattr(output, "past_key_values", None)) is None:
            return None
    reads.calls = calls
    return reads
