"""Recognise conversions that only place tensors side by side, whose sources can be read straight into place.

Room: architecture. To stack experts and concatenate gate and up projections, transformers' generic conversion
copies a whole block (twice its size at the peak); reading in place costs nothing. All other conversions are
left to the generic one.
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
    """Return where each source lands in the single target; None when the conversion does more than that.

    Recognised are `MergeModulelist(0)` (expert e lands at `[e]`), the same followed by `Concatenate(1)`
    (source pattern p of expert e lands at `[e, rows before p:]`), and `Concatenate(0)` (sources one after
    another). All are contiguous runs of the target.

    Args:
        converter: transformers' converter.
        sources: (source pattern, stored tensor) in the order in which the converter would collect them.
        targets: the shapes of the tensors that it makes.
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
