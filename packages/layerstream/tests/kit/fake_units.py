"""Numbered units without a model, for tests of the sweep group.

Test kit. It uses the sweep group alone.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from layerstream.streaming.scheduler import TaskResult
from layerstream.streaming.sweep_group import SweepGroup


class FakeUnits:
    """Units that record their visitors; `log` has one entry per event, in order."""

    def __init__(self, group: SweepGroup | None = None) -> None:
        self.group = group or SweepGroup()
        self.log: list[tuple[Any, ...]] = []
        self.in_place: set[int] = set()

    def visit(self, name: object, unit: int, inside: Callable[[], object] = lambda: None) -> None:
        self.group.enter(unit, lambda: self._acquire(unit), lambda: self._release(unit))
        try:
            assert unit in self.in_place
            self.log.append((unit, name))
            inside()
        finally:
            self.group.leave(unit)

    def walker(self, name: object, units: Sequence[int]) -> Callable[[], object]:
        def walk() -> object:
            for unit in units:
                self.visit(name, unit)
            return name

        return walk

    def visits(self) -> list[int]:
        return [unit for event, unit in self.log if event == "acquire"]

    def passages(self) -> list[tuple[Any, ...]]:
        return [entry for entry in self.log if entry[0] not in ("acquire", "release")]

    def _acquire(self, unit: int) -> None:
        assert unit not in self.in_place
        self.in_place.add(unit)
        self.log.append(("acquire", unit))

    def _release(self, unit: int) -> None:
        self.in_place.remove(unit)
        self.log.append(("release", unit))


def values(results: list[TaskResult]) -> list[Any]:
    assert [result.error for result in results] == [None] * len(results)
    return [result.value for result in results]
