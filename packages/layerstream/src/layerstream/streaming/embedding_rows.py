"""Look up an embedding's rows in host memory or on disk, so that the table need not be on the device.

The embedding's own forward runs on a table of only the rows that the token ids name, with renumbered ids.
Room: streaming.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from ..checkpoint.reader import DiskReader
from ..spec.profiles import TensorRecipe
from .absent_weight import AbsentWeight, GuardedTensors
from .binding import InstalledWeight, as_installed, as_streaming_hook, is_streamed, places_of


class RowTable:
    """One embedding's rows, in host memory or on disk.

    Attributes:
        bytes_read: bytes read from disk so far.
    """

    def __init__(self, tensor: TensorRecipe, reader: DiskReader, host: torch.Tensor | None) -> None:
        """Look up rows in `host`, the whole table in host memory; on disk if it is None."""
        self._tensor, self._reader, self._host = tensor, reader, host
        self._source = tensor.pieces[0].source
        self._row_bytes = self._source.num_bytes // self._source.shape[0]
        self.bytes_read = 0

    def fetch(self, rows: torch.Tensor) -> torch.Tensor:
        """Return rows of the table, on the CPU.

        Args:
            rows: the row numbers, a one-dimensional int64 CPU tensor in any order.

        Returns:
            A tensor of shape (len(rows), width) in the run dtype.
        """
        if self._host is not None:
            return self._host[rows]
        buffer = torch.empty(rows.numel() * self._row_bytes, dtype=torch.uint8)
        view = memoryview(buffer.numpy())
        for position, row in enumerate(rows.tolist()):
            target = view[position * self._row_bytes : (position + 1) * self._row_bytes]
            self._reader.read_now(self._source.path, self._source.offset + row * self._row_bytes, target)
        self.bytes_read += buffer.numel()
        stored = buffer.view(getattr(torch, self._source.dtype)).reshape(
            rows.numel(), *self._source.shape[1:]
        )
        return stored.to(getattr(torch, self._tensor.dtype))


def _check_ids(unique: torch.Tensor, num_tokens: int) -> None:
    """Refuse ids outside the vocabulary; `unique` is sorted."""
    if unique.numel() and (unique[0] < 0 or unique[-1] >= num_tokens):
        outside = int(unique[-1] if unique[0] >= 0 else unique[0])
        raise IndexError(f"token id {outside} is outside the vocabulary of {num_tokens} tokens")


def attach_rows(
    model: nn.Module, tensor: TensorRecipe, table: RowTable, device: torch.device
) -> Callable[[], None]:
    """Serve the embedding that holds `tensor` from `table`; return a function that undoes this.

    A token id outside the vocabulary raises IndexError, as in torch.
    """
    module = model.get_submodule(tensor.name.rpartition(".")[0])
    assert isinstance(module, nn.Embedding)
    place, name = places_of(model, tensor.name)
    assert isinstance(place, GuardedTensors)
    absent: AbsentWeight = place[name]
    padding = module.padding_idx

    def before(
        _: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        if not is_streamed(place.get(name)):
            return args, kwargs  # Something else has taken the table's name.
        ids = args[0] if args else kwargs["input"]
        unique, renumbered = torch.unique(ids.detach().cpu(), return_inverse=True)
        _check_ids(unique, tensor.shape[0])
        with torch.inference_mode(False):
            fetched = table.fetch(unique.clone()).to(device)
            rows = as_installed(fetched, is_buffer=False, parameter=InstalledWeight)
        place.put(name, rows.requires_grad_(absent.requires_grad))
        # The padding row matters for gradients only, and its number is meaningless among renumbered rows.
        module.padding_idx = None
        renumbered = renumbered.to(ids.device)
        return ((renumbered, *args[1:]), kwargs) if args else (args, {**kwargs, "input": renumbered})

    def put_back() -> None:
        module.padding_idx = padding
        if is_streamed(place.get(name)):
            place.put(name, absent)

    def after(*_: Any) -> None:
        rows = place.get(name)
        put_back()
        if isinstance(rows, InstalledWeight) and rows._version:
            absent.refuse_write("a hook or another operation during the forward")

    handles = [
        module.register_forward_pre_hook(as_streaming_hook(before), with_kwargs=True),
        module.register_forward_hook(as_streaming_hook(after), always_call=True),
    ]

    def detach() -> None:
        for handle in handles:
            handle.remove()
        put_back()

    return detach
