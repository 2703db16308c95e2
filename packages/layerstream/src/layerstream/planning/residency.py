"""Choose which units stay: a fixed set, spread evenly over the visiting order.

A sweep is a loop, so a least-recently-used cache smaller than the loop never hits. A fixed set hits in
proportion to its size, and spreading it evenly gives the reader an even load.
"""

from __future__ import annotations

from collections.abc import Sequence


def spread(num_units: int, num_chosen: int) -> tuple[int, ...]:
    """Return `num_chosen` evenly spread indices of `num_units`; gaps between them differ by at most one."""
    return tuple((2 * i + 1) * num_units // (2 * num_chosen) for i in range(num_chosen))


def spread_sizes(sizes: Sequence[int]) -> list[tuple[int, int]]:
    """Return (bytes, number chosen) of every even choice among units of `sizes`, the largest first.

    With units of unequal size, more units can take fewer bytes. A binary search would miss that, so the
    whole table is computed.
    """
    count = len(sizes)
    table = [(0, 0)]
    for chosen in range(1, count + 1):
        # (2i+1)*count for i in 0..chosen-1, in steps of 2*count
        indices = range(count, 2 * count * chosen, 2 * count)
        step = 2 * chosen
        table.append((sum([sizes[index // step] for index in indices]), chosen))
    return sorted(table, reverse=True)


def spread_within(sizes: Sequence[int], room_bytes: int) -> tuple[int, ...]:
    """Return an even choice among units of `sizes` that fills `room_bytes` well and never exceeds it.

    Only tries counts near the one that the mean size suggests, which is exact for units of one size.
    """
    total, count = sum(sizes), len(sizes)
    if not total or total <= room_bytes:
        return tuple(range(count))
    guess = count * max(room_bytes, 0) // total
    best: tuple[int, ...] = ()
    best_bytes = 0
    for chosen in range(min(count, guess + 2), 0, -1):
        indices = spread(count, chosen)
        size = sum([sizes[index] for index in indices])
        if best_bytes < size <= room_bytes:
            best, best_bytes = indices, size
        if best and chosen < guess - 2:
            break
    return best
