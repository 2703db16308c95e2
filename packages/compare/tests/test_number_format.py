from __future__ import annotations

import math

import pytest

from layerstream_compare.reports.number_format import format_nats, format_number, format_share


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (format_nats(0), "0"),
        (format_nats(2.2e-5), "2.2e-05"),
        (format_nats(math.inf), "∞"),
        (format_nats(math.nan), "not a number"),
        (format_share(1), "100 %"),
        (format_share(0.99999), "99.99 %"),
        (format_share(0.922), "92.2 %"),
        (format_number(19.456), "19.5"),
    ],
)
def test_exact_values_are_formatted_differently_from_almost_exact_ones(text, expected):
    assert text == expected
