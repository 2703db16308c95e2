"""What a verification found: streamed units, each compared with a resident copy of it. Frozen values."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from .serialize import JsonValue


@dataclass(frozen=True, slots=True, kw_only=True)
class UnitVerification:
    """One unit's output, compared with that of a resident copy for the same input.

    Attributes:
        unit: its module path; for a head that was checked in slices, all of them together.
        device: the device that computed both.
        num_values: the values that were compared.
        num_finite: those that are finite in both; without any, equality would prove nothing.
        num_different: those that differ in any bit.
        largest_difference: between the two results for one value; 0.0 when all are equal, None when a value
            that differs is not finite in both, or when the outputs differ in shape or dtype.
    """

    DERIVED_KEYS: ClassVar = ("is_equal",)

    unit: str
    device: str
    num_values: int
    num_finite: int
    num_different: int
    largest_difference: float | None

    @property
    def is_equal(self) -> bool:
        """Whether every bit is equal, and at least one value is finite."""
        return not self.num_different and self.num_finite > 0

    def explain(self) -> str:
        """Return the result in a few words."""
        if self.is_equal:
            return f"equal in all {self.num_values:,} values"
        if not self.num_different:
            return f"not comparable: none of {self.num_values:,} values is finite"
        size = "" if self.largest_difference is None else f", by at most {self.largest_difference:.3g}"
        return f"differs in {self.num_different:,} of {self.num_values:,} values{size}"


@dataclass(frozen=True, slots=True, kw_only=True)
class VerificationReport(JsonValue):
    """The outcome of `StreamedModel.verify`.

    Attributes:
        model_name: path or Hub id.
        dtype: the run dtype.
        units: the units that were checked, device by device in visiting order; empty when no unit is
            streamed.
    """

    DERIVED_KEYS: ClassVar = ("is_equal",)

    model_name: str
    dtype: str
    units: tuple[UnitVerification, ...]

    @property
    def is_equal(self) -> bool:
        """Whether every unit that was checked is equal; true when none was."""
        return not self.different

    @property
    def different(self) -> tuple[UnitVerification, ...]:
        """The units whose output differs from their resident copy's, or has no finite value to compare."""
        return tuple(unit for unit in self.units if not unit.is_equal)

    def explain(self) -> str:
        """Return the report as text for people: a title, and one line for each unit."""
        title = f"{self.model_name} in {self.dtype}: "
        if not self.units:
            return f"{title}no unit is streamed, so there is nothing to verify"
        found = "all equal" if self.is_equal else f"{len(self.different)} of them FAILED"
        several = len({unit.device for unit in self.units}) > 1
        names = [f"{unit.unit} on {unit.device}" if several else unit.unit for unit in self.units]
        width = max(map(len, names))
        title += f"{len(self.units)} units compared with resident copies: {found}"
        rows = [f"  {name:<{width}}  {unit.explain()}" for name, unit in zip(names, self.units, strict=True)]
        return "\n".join([title, *rows])
