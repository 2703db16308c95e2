from __future__ import annotations

import math

import pytest

from layerstream_compare.errors import ExperimentError
from layerstream_compare.units import (
    format_bytes,
    format_nats,
    format_number,
    format_seconds,
    format_share,
    is_size,
    parse_length,
)


@pytest.mark.parametrize(("text", "tokens"), [("512", 512), ("1k", 1024), (" 4K ", 4096), ("0", 0)])
def test_a_prompt_length_is_a_number_of_tokens_or_of_1024_tokens(text, tokens):
    assert parse_length(text) == tokens


@pytest.mark.parametrize("text", ["", "k", "-1", "1.5k", "1m", "1 2", "٣"])
def test_what_is_no_prompt_length_is_refused_with_its_text(text):
    with pytest.raises(ExperimentError, match="is no prompt length"):
        parse_length(text)


@pytest.mark.parametrize("text", ["1", "100MiB", "1.5G", ".5 gb", " 6 GiB "])
def test_a_size_is_a_number_of_bytes_with_or_without_a_unit(text):
    assert is_size(text)


@pytest.mark.parametrize("text", ["", "min", "0", "0.0 GB", "-3 MiB", "6 X", "6 GiB 2", "٣"])
def test_what_is_no_size(text):
    assert not is_size(text)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (format_bytes(0), "0 B"),
        (format_bytes(269_060_000), "257 MiB"),
        (format_bytes(1.72 * 1024**3), "1.72 GiB"),
        (format_seconds(0), "0 ms"),
        (format_seconds(0.0512), "51.2 ms"),
        (format_seconds(12.34), "12.3 s"),
        (format_seconds(245), "4 min 05 s"),
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
def test_numbers_carry_their_unit_and_exact_ones_are_told_apart_from_almost_exact_ones(text, expected):
    assert text == expected
