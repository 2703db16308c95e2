"""State that is global to the process or the model, but that each interleaved task must have to itself.

These are torch's random generators, the active adapter, and the few attributes that transformers changes on
the model in the middle of a `generate()` call. A generator object that a task passes in belongs to that task
anyway.
"""

from __future__ import annotations

from typing import Any

import torch
from transformers import PreTrainedModel

from ..architecture import compat
from ..architecture.module_state import ModuleState
from .adapter_switch import AdapterSwitch, Choice

_ABSENT: Any = object()

_Values = list[tuple[dict[str, Any], dict[str, Any]]]

State = tuple[torch.Tensor | None, Any, _Values, Choice]
"""Random state on the host and on the device, attributes, and the active adapter."""


class ModelTaskState:
    """Captures and restores that state; implements `streaming.sweep_run.TaskState`.

    Attributes:
        adapters: the model's adapters.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        device: torch.device,
        state: ModuleState = (),
        *,
        has_host_random: bool = True,
    ) -> None:
        """Find the state in `model`.

        Args:
            model: the model whose tasks interleave.
            device: where it computes.
            state: attributes in which its modules keep state of their own.
            has_host_random: keep the CPU's random state per task too. All threads share that state, so of
                several models that run at the same time only one may do this.
        """
        self.adapters = AdapterSwitch(model)
        self._model, self._device, self._has_host_random = model, device, has_host_random
        module = None if device.type == "cpu" else torch.get_device_module(device)
        self._module: Any = module if hasattr(module, "get_rng_state") else None
        configs = {id(m.config): m.config for m in model.modules() if isinstance(m, PreTrainedModel)}
        self._configs = list(configs.values())
        self._rotary = [module for module in model.modules() if compat.remembers_lengths(module)]
        self._state = [(model.get_submodule(path), names) for path, names in state]

    def capture(self) -> State:
        """Return the current state."""
        values = [_values_of(self._model.__dict__, compat.STATE_OF_MODEL)]
        values += [_values_of(config.__dict__, compat.STATE_OF_CONFIG) for config in self._configs]
        values += [_values_of(module.__dict__, names) for module, names in self._state]
        for module in self._rotary:
            values += [
                _values_of(module.__dict__, compat.STATE_OF_ROTARY),
                (module._buffers, dict(module._buffers)),
            ]
        on_device = None if self._module is None else self._module.get_rng_state(self._device)
        on_host = torch.get_rng_state() if self._has_host_random else None
        return on_host, on_device, values, self.adapters.capture()

    def restore(self, state: State) -> None:
        """Put `state` back."""
        on_host, on_device, values, adapters = state
        self.adapters.restore(adapters)
        if on_host is not None:
            torch.set_rng_state(on_host)
        if self._module is not None:
            self._module.set_rng_state(on_device, self._device)
        for place, kept in values:
            for name, value in kept.items():
                if value is _ABSENT:
                    place.pop(name, None)
                else:
                    place[name] = value


def _values_of(place: dict[str, Any], names: tuple[str, ...]) -> tuple[dict[str, Any], dict[str, Any]]:
    return place, {name: place.get(name, _ABSENT) for name in names}
