"""Answers end before a stop text, however the text is cut into pieces."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from layerstream.uses.batching.stop_texts import StopFilter


def filtered(pieces: list[str], *stop: str) -> list[str]:
    written: list[str] = []
    stop_filter = StopFilter(stop, written.append)
    for piece in pieces:
        stop_filter.feed(piece)
    stop_filter.end()
    assert stop_filter.text == "".join(written)
    return written


@pytest.mark.parametrize(
    ("pieces", "stop", "written"),
    [
        (["one two"], [], ["one two"]),
        (["one\n", "Qu", "estion: two"], ["Question:"], ["one\n"]),
        (["one Qu", "ite"], ["Question:"], ["one ", "Quite"]),
        (["one Qu"], ["Question:"], ["one ", "Qu"]),
        (["aab"], ["ab"], ["a"]),
        (["a", "a", "b"], ["ab"], ["a"]),
        (["stop", " more"], ["stop"], []),
        (["x b a"], ["a", "b"], ["x "]),
    ],
)
def test_text_is_passed_on_up_to_the_stop_text_and_only_what_may_begin_one_is_held_back(
    pieces: list[str], stop: list[str], written: list[str]
) -> None:
    assert filtered(pieces, *stop) == written


@given(
    text=st.text("ab\n", max_size=12),
    stop=st.text("ab\n", min_size=1, max_size=4),
    cuts=st.lists(st.integers(0, 12), max_size=6),
)
def test_the_pieces_make_no_difference(text: str, stop: str, cuts: list[int]) -> None:
    pieces = [text[start:end] for start, end in pairwise([0, *sorted(cuts), len(text)])]
    assert "".join(filtered(pieces, stop)) == text.split(stop)[0]
