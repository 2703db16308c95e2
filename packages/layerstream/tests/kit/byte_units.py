"""Units without a model: unit i of a file is `UNIT_BYTES` bytes of value i + 1.

Test kit. It uses checkpoint and streaming alone.
"""

from __future__ import annotations

import time
from pathlib import Path

import torch

from layerstream.spec.profiles import Piece, StoredTensor, TensorRecipe, UnitRecipe
from layerstream.streaming.fetches import StreamedUnit
from layerstream.streaming.sources import UnitSource
from layerstream.streaming.stream import WeightStream

NUM_UNITS = 5
UNIT_BYTES = 40_000


def byte_unit(path: Path, index: int) -> StreamedUnit:
    source = StoredTensor(
        name=f"t{index}",
        dtype="uint8",
        shape=(UNIT_BYTES,),
        path=str(path),
        offset=index * UNIT_BYTES,
        num_bytes=UNIT_BYTES,
    )
    pieces = (Piece(source=source),)
    tensor = TensorRecipe(
        name=f"t{index}", dtype="uint8", shape=(UNIT_BYTES,), num_bytes=UNIT_BYTES, pieces=pieces
    )
    return StreamedUnit(
        name=f"unit{index}",
        position=index,
        source=UnitSource(UnitRecipe(name=f"unit{index}", tensors=(tensor,))),
    )


def visit(stream: WeightStream, index: int, pause_s: float = 0.0) -> None:
    """Acquire a unit, pause, check its bytes and release it."""
    lease = stream.acquire(index)
    if pause_s:
        time.sleep(pause_s)
    (tensor,) = stream.views(lease).values()
    assert torch.equal(tensor, torch.full((UNIT_BYTES,), index + 1, dtype=torch.uint8))
    stream.release(lease)
