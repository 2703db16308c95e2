"""Run the end of a forward for its last positions only.

Room: architecture. Finds the final norm by structure and lets it work on the last rows of its input. Its
output keeps its shape, with zeros in the other rows. It does not know what the rows are for.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from .blocks import find_blocks


def find_final_norm(model: PreTrainedModel) -> nn.Module | None:
    """Return the norm between the last block and the head, when structure tells which one it is; else None.

    It is a sibling of the list of blocks, and all its weights are vectors. If there are several, it comes
    after the list.
    """
    parent, name = _list_of_blocks(model)
    siblings: list[tuple[str, nn.Module]] = list(model.get_submodule(parent).named_children())
    blocks_index = next(index for index, (sibling, _) in enumerate(siblings) if sibling == name)
    norms = [(index, module) for index, (_, module) in enumerate(siblings) if _has_vectors_only(module)]
    for candidates in (
        [module for index, module in norms if index > blocks_index],
        [module for _, module in norms],
    ):
        if len(candidates) == 1:
            return candidates[0]
    return None


def _list_of_blocks(model: PreTrainedModel) -> tuple[str, str]:
    parent, _, name = find_blocks(model)[-1][0].rpartition(".")[0].rpartition(".")
    return parent, name


def backbone(model: PreTrainedModel) -> nn.Module:
    """Return the model without its language-model head; the model itself where it has none."""
    base: nn.Module = model.base_model
    if base is not model:
        return base
    # Some classes name another child as their base; the backbone is the child that holds the blocks.
    return model.get_submodule(_list_of_blocks(model)[0])


def _has_vectors_only(module: nn.Module) -> bool:
    shapes = [parameter.ndim for parameter in module.parameters()]
    return bool(shapes) and set(shapes) == {1}


class LastPositions:
    """Narrows a model's final norm to the last positions, only in threads that request it."""

    def __init__(self, model: PreTrainedModel, *, device_is_host: bool) -> None:
        """Find the norm; nothing changes before `attached`, and on an accelerator nothing at all.

        There, the number of rows decides how the threads divide one row's sum, and so how it is rounded.
        """
        self._norm = find_final_norm(model) if device_is_host else None
        self._thread = threading.local()

    @contextmanager
    def attached(self) -> Iterator[None]:
        """Install the hooks that `last_rows` needs; remove them at the end."""
        if self._norm is None:
            yield
            return
        before = self._norm.register_forward_pre_hook(self._narrow)
        after = self._norm.register_forward_hook(self._widen)
        try:
            yield
        finally:
            before.remove()
            after.remove()

    @contextmanager
    def last_rows(self, rows: int) -> Iterator[None]:
        """Give the norm only the last `rows` positions, in forwards of the calling thread."""
        self._thread.rows = rows
        try:
            yield
        finally:
            self._thread.rows = None

    def _narrow(self, _: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...] | None:
        rows = getattr(self._thread, "rows", None)
        self._thread.tokens = None
        if rows is None or not args or args[0].ndim < 2 or args[0].shape[-2] <= rows:
            return None
        self._thread.tokens = args[0].shape[-2]
        return (args[0][..., self._thread.tokens - rows :, :], *args[1:])

    def _widen(self, _: nn.Module, __: tuple[Any, ...], output: torch.Tensor) -> torch.Tensor | None:
        tokens = getattr(self._thread, "tokens", None)
        if tokens is None:
            return None
        self._thread.tokens = None
        whole = output.new_zeros(*output.shape[:-2], tokens, output.shape[-1])
        whole[..., tokens - output.shape[-2] :, :] = output
        return whole
