"""Find how many rows a budget holds, by trying. No torch."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from ..errors import BudgetTooSmallError

Made = TypeVar("Made")


def with_most_rows(make: Callable[[int], Made], num_rows: int) -> Made:
    """Return what `make` makes for `num_rows` rows at once, or for half as many until that fits.

    Raises:
        BudgetTooSmallError: the budget holds not even one row.
    """
    while True:
        try:
            return make(num_rows)
        except BudgetTooSmallError:
            if num_rows == 1:
                raise
            num_rows //= 2
