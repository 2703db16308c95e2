"""Which adapter is active on each layer of a model: read it, set it, and keep it apart for each task.

It works on the layers that peft has put into the model, whoever called peft, and does not import it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeAlias

from torch import nn

from ..errors import PlanError
from ..spec.options import NO_ADAPTER

_ACTIVE, _DISABLED = "_active_adapter", "_disable_adapters"
"""What peft (0.20 and 0.21) keeps on each layer with adapters, and reads in each of its forwards.

peft's own `set_adapter` also changes `requires_grad`, on which kernels depend in fp32.
"""

_OWN_ADAPTERS = "_adapters"
"""Where a layer that an adapter replaces as a whole (`modules_to_save`) names the adapters it has."""

Choice: TypeAlias = tuple[tuple[dict[str, Any], Any, bool], ...]
"""For each layer with adapters: its attributes, what is active, and whether it is disabled."""


class AdapterSwitch:
    """The adapters of one model, and which of them is active."""

    def __init__(self, model: nn.Module) -> None:
        """Take `model`; adapters may come and go later."""
        self._model = model
        self._layers: list[dict[str, Any]] = []
        self._watched: list[int] = []
        self._choices: dict[str, Choice] = {}
        self._last: Choice = ()
        self._found_for: tuple[Any, tuple[str, ...]] = (None, ())

    @property
    def names(self) -> tuple[str, ...]:
        """The names of all adapters in the model."""
        # the base model's attribute; a model without adapters has none
        return tuple(getattr(self._model, "peft_config", None) or ())

    def check(self, name: str | None, where: str) -> None:
        """Refuse the name of an adapter that the model does not have; None and `"base"` always pass.

        Raises:
            PlanError: there is no such adapter.
        """
        if name is not None and name != NO_ADAPTER and name not in self.names:
            known = ", ".join(map(repr, (*self.names, NO_ADAPTER)))
            raise PlanError(
                f"{where} names the adapter {name!r}, but the model has {known}: see load(adapter=…)"
            )

    def choose(self, name: str | None) -> None:
        """Make the adapter `name` active in all layers; `"base"` turns all off, and None changes nothing."""
        self._find_layers()
        if name is None:
            return
        if name not in self._choices:
            self._choices[name] = tuple(_setting(layer, name) for layer in self._layers)
        self.restore(self._choices[name])

    def capture(self) -> Choice:
        """Return what is active."""
        self._find_layers()
        if not self._is_set(self._last):
            self._last = tuple(
                (layer, layer.get(_ACTIVE), layer.get(_DISABLED, False)) for layer in self._layers
            )
        return self._last

    def restore(self, choice: Choice) -> None:
        """Make active what `choice` says."""
        if choice is self._last and self._is_set(choice):
            return
        for layer, active, is_disabled in choice:
            layer[_ACTIVE], layer[_DISABLED] = active, is_disabled
        self._last = choice

    def _is_set(self, choice: Choice) -> bool:
        """Return whether `choice` is in force, judged by one layer of each kind: peft sets all alike."""
        return len(choice) == len(self._layers) and all(
            self._layers[index].get(_ACTIVE) is choice[index][1]
            and self._layers[index].get(_DISABLED, False) is choice[index][2]
            for index in self._watched
        )

    def _find_layers(self) -> None:
        adapters = getattr(self._model, "peft_config", None)
        key = (adapters, tuple(adapters or ()))
        if self._found_for[0] is adapters and self._found_for[1] == key[1]:
            return
        modules = (
            [module for module in self._model.modules() if hasattr(module, _DISABLED)] if adapters else []
        )
        self._layers = [module.__dict__ for module in modules]
        kinds = {type(module): index for index, module in enumerate(modules)}
        self._watched = list(kinds.values())
        self._choices, self._last, self._found_for = {}, (), key


def _setting(layer: dict[str, Any], name: str) -> tuple[dict[str, Any], Any, bool]:
    """Return what peft sets on `layer` to make `name` active."""
    if name == NO_ADAPTER:
        return layer, layer.get(_ACTIVE), True
    own: Sequence[str] | None = layer.get(_OWN_ADAPTERS)
    if own is None:
        return layer, [name], False
    return layer, name if name in own else [], False
