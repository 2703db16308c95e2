"""Numbers of parameters, converted to bytes."""

from __future__ import annotations

import pytest

from layerstream.errors import PlanError
from layerstream.planning.estimate import bytes_by_precision


@pytest.mark.parametrize(
    ("precision", "expected"),
    [
        ("float32", 280_000_000_000),
        ("float16", 140_000_000_000),
        ("bfloat16", 140_000_000_000),
        ("8-bit", 70_000_000_000),
        ("4-bit", 35_000_000_000),
        ("3-bit", 26_250_000_000),
        ("2-bit", 17_500_000_000),
    ],
)
def test_70_billion_parameters_take_their_bits_per_parameter(precision: str, expected: int) -> None:
    assert bytes_by_precision(70_000_000_000)[precision] == expected


def test_bits_are_rounded_up_to_bytes() -> None:
    assert bytes_by_precision(3)["3-bit"] == 2


def test_a_negative_count_is_refused() -> None:
    with pytest.raises(PlanError, match="0 or more"):
        bytes_by_precision(-1)
