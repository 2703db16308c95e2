"""The line that says what a draft did."""

from __future__ import annotations

import pytest

from layerstream.spec.speculation import SpeculationReport


@pytest.mark.parametrize(
    ("ahead", "end"),
    [
        (0, "drafting took 1.79 s"),
        (1, "drafting took 1.79 s, and 1 token was drafted during sweeps"),
        (7, "drafting took 1.79 s, and 7 tokens were drafted during sweeps"),
    ],
)
def test_the_line_names_what_was_drafted_during_sweeps(ahead: int, end: str) -> None:
    report = SpeculationReport(
        draft="int8",
        tokens=23,
        sweeps=4,
        verified=22,
        drafted=(3, 3, 2),
        accepted=(3, 2, 1),
        draft_s=1.79,
        ahead=ahead,
    )
    assert report.explain() == (
        f"int8: 5.8 tokens per sweep (23 in 4), 6 of 22 drafted tokens accepted, {end}"
    )
