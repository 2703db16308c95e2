"""One figure of the reports: its title, what it includes and how it is shown."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from ..measurement import Measurement

Value = Callable[[Measurement], "float | None"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Metric:
    """One figure.

    Attributes:
        key: its name in the CSV file, unit included.
        group: `memory`, `time` or `quality`.
        title: column heading.
        includes: what the number includes, for tooltips.
        value: returns it from a measurement, in bytes, seconds, nats or shares; None if it was not measured.
        show: formats it with its unit.
    """

    key: str
    group: str
    title: str
    includes: str
    value: Value
    show: Callable[[float], str]
