"""Find the linear layers of the decoder blocks, which a copy with fewer bits makes smaller.

Room: architecture.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

from torch import nn
from transformers import PreTrainedModel

from ..spec.profiles import LinearShape, TensorRecipe, UnitRecipe


def linear_weights(model: PreTrainedModel, blocks: Iterable[UnitRecipe]) -> dict[str, TensorRecipe]:
    """Return the weights of the plain linear layers in `blocks`, by name."""
    return {
        tensor.name: tensor
        for block in blocks
        for tensor in block.tensors
        if tensor.name.endswith(".weight")
        and type(model.get_submodule(tensor.name.removesuffix(".weight"))) is nn.Linear
    }


def linear_shapes(model: PreTrainedModel, blocks: Iterable[UnitRecipe]) -> tuple[LinearShape, ...]:
    """Return how many linear layers of each shape there are in `blocks`."""
    counts = Counter(tensor.shape for tensor in linear_weights(model, blocks).values())
    return tuple(
        LinearShape(rows=rows, columns=columns, count=count) for (rows, columns), count in counts.items()
    )
