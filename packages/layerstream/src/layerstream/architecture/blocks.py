"""Find the decoder blocks, the head and the embeddings of a model.

Room: architecture. Decides by structure and by transformers' own marks, never by a model's name.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import nn
from transformers import PreTrainedModel

from ..errors import BlocksNotFoundError
from . import compat


def find_blocks(model: PreTrainedModel) -> tuple[tuple[str, nn.Module], ...]:
    """Return (path, module) of every decoder block, in the order of the model's lists.

    The blocks are the entries of every outermost `nn.ModuleList` in which transformers marks an entry as a
    block. Without such a mark, they are the entries of the list with the most bytes.

    Raises:
        BlocksNotFoundError: the model has no list of modules with weights.
    """
    lists = [(path, modules) for path, modules in _outermost_lists(model, "") if _num_bytes(modules)]
    if not lists:
        raise BlocksNotFoundError(
            f"{type(model).__name__} has no list of decoder blocks, so nothing can be streamed; load it with "
            "transformers"
        )
    marked = [
        (path, modules)
        for path, modules in lists
        if any(compat.is_marked_as_block(model, module) for module in modules)
    ]
    chosen = marked or [max(lists, key=lambda entry: _num_bytes(entry[1]))]
    return tuple(
        (f"{path}.{index}", module)
        for path, modules in chosen
        for index, module in modules.named_children()
        if _num_bytes(module)
    )


def _outermost_lists(module: nn.Module, path: str) -> Iterator[tuple[str, nn.ModuleList]]:
    for name, child in module.named_children():
        child_path = f"{path}.{name}" if path else name
        if isinstance(child, nn.ModuleList):
            yield child_path, child
        else:
            yield from _outermost_lists(child, child_path)


def _num_bytes(module: nn.Module) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in module.parameters())


def find_head(model: PreTrainedModel) -> str | None:
    """Return the path of the head when it is a separate module with a weight matrix; else None."""
    head = model.get_output_embeddings()
    if (
        not isinstance(head, nn.Module)
        or getattr(head, "weight", None) is None
        or any(True for _ in head.children())
    ):
        return None
    return next((path for path, module in model.named_modules() if module is head), None)


def find_row_tables(model: PreTrainedModel, block_paths: tuple[str, ...]) -> tuple[str, ...]:
    """Return the paths of the embeddings outside the blocks whose forward only looks up rows.

    Such a table can stay on disk: the rows that the ids name are fetched, and the module's own forward runs
    on them.
    """
    prefixes = tuple(f"{path}." for path in block_paths)
    return tuple(
        path
        for path, module in model.named_modules()
        if isinstance(module, nn.Embedding) and not path.startswith(prefixes) and _looks_up_rows(module)
    )


def _looks_up_rows(module: nn.Embedding) -> bool:
    """Try it out: permuting the table's rows and the ids alike must not change the result."""
    if module.max_norm is not None or len(list(module.parameters())) != 1:
        return False
    if type(module).forward is nn.Embedding.forward:
        return True
    table = torch.arange(4.0).reshape(4, 1).expand(4, module.embedding_dim).to(module.weight.dtype) + 1
    ids = torch.tensor([[1, 0, 2, 1]])
    order = torch.tensor([2, 0, 1, 3])
    weight, padding = module._parameters["weight"], module.padding_idx
    try:
        module.padding_idx = None
        module._parameters["weight"] = nn.Parameter(table, requires_grad=False)
        plain = _forward_on_cpu(module, ids)
        module._parameters["weight"] = nn.Parameter(table[order], requires_grad=False)
        reordered = _forward_on_cpu(module, order.argsort()[ids])
    finally:
        module._parameters["weight"], module.padding_idx = weight, padding
    return plain is not None and reordered is not None and torch.equal(plain, reordered)


def _forward_on_cpu(module: nn.Module, ids: torch.Tensor) -> torch.Tensor | None:
    buffers = dict(module._buffers)
    try:
        # A scale may be a buffer that is still on the meta device; its value does not matter here.
        module._buffers.update(
            {
                name: torch.ones_like(value, device="cpu")
                for name, value in buffers.items()
                if value is not None
            }
        )
        result = module(ids)
        return result if isinstance(result, torch.Tensor) else None
    except (RuntimeError, TypeError, ValueError, IndexError, AttributeError, NotImplementedError):
        return None
    finally:
        module._buffers.update(buffers)
