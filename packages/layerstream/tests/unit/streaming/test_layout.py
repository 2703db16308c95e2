"""Every tensor of every unit starts where a kernel would find the resident model's, modulo alignment."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from kit.families import save_tiny

from layerstream.engine.inspect import inspect_model
from layerstream.spec.options import LoadOptions
from layerstream.spec.plans import Granularity
from layerstream.spec.profiles import UnitRecipe
from layerstream.streaming.layout import PAGE, stored_as_used
from layerstream.streaming.sources import UnitSource


def sources_of(path: Path, dtype: str) -> list[UnitSource]:
    """Return every unit of every size, and the head whole and in slices."""
    units = inspect_model(path, LoadOptions(dtype=dtype)).units
    assert set(units.streamed) == set(Granularity)
    recipes: list[UnitRecipe] = [recipe for sized in units.streamed.values() for recipe in sized]
    recipes += [*units.head_slices(1), *units.head_slices(2), *units.edges.values()]
    return [UnitSource(recipe) for recipe in recipes]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("family", ["llama", "mixtral", "qwen3_moe"])
def test_tensors_are_aligned_and_contiguous_in_host_and_device_memory(
    family: str, dtype: str, tmp_path: Path
) -> None:
    """In fp32 they are stored as they are used; in bf16 they are cast."""
    for source in sources_of(save_tiny(family, tmp_path), dtype):
        layout = source.layout
        assert all(offset % 512 == 0 for offset in layout.device_offsets.values())
        for tensor in source.unit.tensors:
            offset = layout.host_offsets[tensor.name]
            if stored_as_used(tensor):
                assert (offset - tensor.pieces[0].source.offset) % PAGE == 0
            else:
                assert offset % 64 == 0
        device = source.device_views(torch.zeros(layout.device_bytes, dtype=torch.uint8))
        host = source.host_views(torch.zeros(layout.host_bytes, dtype=torch.uint8))
        for tensor in source.unit.tensors:
            for view in (device[tensor.name], host[tensor.name]):
                assert (tuple(view.shape), view.is_contiguous()) == (tensor.shape, True)
