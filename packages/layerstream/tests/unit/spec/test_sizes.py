"""Sizes, rates and durations: text to numbers and back."""

from __future__ import annotations

import pytest

from layerstream.errors import PlanError
from layerstream.spec.sizes import dtype_bytes, format_bytes, format_seconds, parse_size


@pytest.mark.parametrize(
    ("text", "num_bytes"),
    [
        (512, 512),
        ("512", 512),
        ("512 B", 512),
        ("1.5 KiB", 1536),
        ("500MB", 500_000_000),
        ("6G", 6 * 1024**3),
        ("6 gb", 6_000_000_000),
    ],
)
def test_a_size_is_parsed_as_binary_unless_it_ends_in_a_decimal_unit(text: str | int, num_bytes: int) -> None:
    assert parse_size(text) == num_bytes


def test_bytes_and_seconds_are_written_for_people() -> None:
    assert [format_bytes(size) for size in (512, 1536, 150 * 1024**2)] == ["512 B", "1.5 KiB", "150 MiB"]
    seconds = (0.35, 12.34, 245, 7800)
    assert [format_seconds(value) for value in seconds] == ["350 ms", "12.3 s", "4 min 05 s", "2 h 10 min"]


def test_an_unknown_dtype_names_the_known_ones() -> None:
    assert dtype_bytes("float16", 3) == 6
    with pytest.raises(PlanError, match="unknown dtype 'half': give one of float64, "):
        dtype_bytes("half")
