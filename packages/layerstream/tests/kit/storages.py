"""Count every tensor storage that operations allocate, as long as it is alive.

Test kit. It uses torch only.
"""

from __future__ import annotations

import weakref
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter


class Alive:
    """Bytes of the storages that are alive, over all threads, of which one runs at a time."""

    def __init__(self) -> None:
        self.sizes: dict[int, int] = {}
        self.now_bytes = self.peak_bytes = 0

    def add(self, storage: torch.UntypedStorage) -> None:
        key, size = storage._cdata, storage.nbytes()
        if key in self.sizes:
            return
        self.sizes[key] = size
        self.now_bytes += size
        self.peak_bytes = max(self.peak_bytes, self.now_bytes)
        weakref.finalize(storage, self.remove, key)

    def remove(self, key: int) -> None:
        self.now_bytes -= self.sizes.pop(key)


class Watch(TorchDispatchMode):
    """Adds every storage that an operation allocates to `alive`; views of weights allocate none."""

    def __init__(self, alive: Alive) -> None:
        super().__init__()
        self.alive = alive

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        given = {
            leaf.untyped_storage()._cdata
            for leaf in tree_iter((args, kwargs))
            if isinstance(leaf, torch.Tensor)
        }
        result = func(*args, **kwargs)
        for leaf in tree_iter(result):
            if isinstance(leaf, torch.Tensor) and leaf.untyped_storage()._cdata not in given:
                self.alive.add(leaf.untyped_storage())
        return result
