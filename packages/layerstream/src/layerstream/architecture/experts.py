"""Recognise conversions that only place tensors side by side, so that they are read straight into their place.

Room: architecture. Stacking experts and concatenating gate and up projections copies a whole block in transformers' generic
conversion (twice its size at the peak); read in place, it costs nothing. Anything else is left to the generic conversion.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

from ..spec.profiles import Piece, StoredTensor
from . import compat


def direct_pieces(
    converter: compat.WeightConverter | None,
    sources: Sequence[tuple[str, StoredTensor]],
    targets: Sequence[tuple[int, ...]],
) -> tuple[Piece, ...] | None:
    """Return where each source lands in the single target, or None when the conversion is more than placing.

    Recognised: `MergeModulelist(0)` (expert e lands at `[e]`), that followed by `Concatenate(1)` (source pattern p of expert e
    lands at `[e, rows before p:]`), and `Concatenate(0)` (sources one after another). All are contiguous runs of the target.

    Args:
        converter: transformers' converter.
        sources: (source pattern, stored tensor) in the order in which the converter would collect them.
        targets: the shapes of the tensors it makes.
    """
    if converter is None or len(targets) != 1 or converter.quantization_operation is not None:
        return None
    by_pattern: dict[str, list[StoredTensor]] = {pattern: [] for pattern in converter.source_patterns}
    for pattern, source in sources:
        by_pattern[pattern].append(source)
    columns = [column for column in by_pattern.values() if column]
    operations = converter.operations
    match operations:
        case [compat.MergeModulelist(dim=0)] if len(columns) == 1:
            pieces = _interleave(columns)
        case [compat.MergeModulelist(dim=0), compat.Concatenate(dim=1)]:
            pieces = _interleave(columns)
        case [compat.Concatenate(dim=0)]:
            pieces = _one_after_another([source for column in columns for source in column])
        case _:
            return None
    if pieces is None or sum(prod(piece.source.shape) for piece in pieces) != prod(targets[0]):
        return None
    return pieces


def _interleave(columns: Sequence[Sequence[StoredTensor]]) -> tuple[Piece, ...] | None:
    """Place expert 0 of every column, then expert 1 of every column, and so on."""
    if len({len(column) for column in columns}) != 1:
        return None
    return _one_after_another([source for expert in zip(*columns, strict=True) for source in expert])


def _one_after_another(sources: Sequence[StoredTensor]) -> tuple[Piece, ...]:
    pieces, start = [], 0
    for source in sources:
        pieces.append(Piece(source=source, start_element=start))
        start += prod(source.shape)
    return tuple(pieces)
