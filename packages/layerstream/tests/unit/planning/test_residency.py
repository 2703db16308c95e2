"""The even spread of resident units, and how it fills a budget."""

from __future__ import annotations

import pytest

from layerstream.planning.residency import spread, spread_sizes, spread_within


@pytest.mark.parametrize(
    ("num_units", "num_chosen", "expected"),
    [(8, 0, ()), (8, 1, (4,)), (8, 2, (2, 6)), (8, 4, (1, 3, 5, 7)), (7, 3, (1, 3, 5)), (3, 3, (0, 1, 2))],
)
def test_the_spread_takes_the_middle_of_equal_intervals(
    num_units: int, num_chosen: int, expected: tuple[int, ...]
) -> None:
    assert spread(num_units, num_chosen) == expected


def test_the_table_of_sizes_agrees_with_the_spread_and_starts_with_the_most_bytes() -> None:
    sizes = [4, 6, 4, 6, 4, 6]
    table = spread_sizes(sizes)
    assert table == sorted(
        ((sum(sizes[index] for index in spread(6, count)), count) for count in range(7)), reverse=True
    )
    assert table[0] == (30, 6)


@pytest.mark.parametrize(
    ("room_bytes", "expected"), [(-1, ()), (9, ()), (10, (4,)), (45, (1, 3, 5, 7)), (80, tuple(range(8)))]
)
def test_the_room_is_filled_and_never_exceeded(room_bytes: int, expected: tuple[int, ...]) -> None:
    assert spread_within([10] * 8, room_bytes) == expected
