"""What a draft proposed and the sweeps accepted: a row of marks for each sweep, the newest first."""

from __future__ import annotations

from layerstream import SpeculationReport, VerifiedTokens

from ..timeline_state import TimelineState
from .elements import escape

MARKS = {"yes": "●", "own": "◆", "no": "○"}
"""Text, so that a row of many takes few bytes and wraps like words."""

MEANINGS = {"yes": "drafted and accepted", "own": "the model's own next token", "no": "drafted and rejected"}
SHOWN_ROWS = 12


def draft_view(timeline: TimelineState, report: SpeculationReport | None) -> str:
    """Return the card about the draft; empty if there is none.

    Args:
        timeline: what the run has done so far.
        report: what the whole run did; None before its end.
    """
    if timeline.plan is None or not timeline.plan.draft:
        return ""
    keys = "".join(
        f'<li><b class="{kind}" aria-hidden="true">{mark}</b>{MEANINGS[kind]}</li>'
        for kind, mark in MARKS.items()
    )
    return (
        '<div class="ls-card ls-draft"><h3>What each sweep verified</h3>'
        f'<ul class="ls-legend">{keys}</ul><p class="ls-tally">{_tally(timeline, report)}</p>'
        f"{_rows(timeline.verified)}</div>"
    )


def _tally(timeline: TimelineState, report: SpeculationReport | None) -> str:
    if report is not None:
        return escape(report.explain())
    if not timeline.verified:
        return "The prompt comes first. Then tokens are drafted for every sweep."
    return f"<b>{timeline.tokens_per_sweep:.1f}</b> tokens per sweep so far"


def _rows(verified: list[VerifiedTokens]) -> str:
    groups = _groups(verified)
    shown = groups[-SHOWN_ROWS:]
    rows = "".join(_row(first, sweeps) for first, sweeps in reversed(shown))
    num_earlier = shown[0][0] - 1 if shown else 0
    earlier = f'<p class="ls-note">sweeps before these: {num_earlier}</p>' if num_earlier else ""
    return f'<ol class="ls-sweeps" aria-label="Sweeps, the newest first">{rows}</ol>{earlier}'


def _groups(verified: list[VerifiedTokens]) -> list[tuple[int, list[VerifiedTokens]]]:
    """Return each sweep with its number, from 1; those in a row with nothing drafted are together."""
    groups: list[tuple[int, list[VerifiedTokens]]] = []
    for number, sweep in enumerate(verified, start=1):
        if groups and not sweep.drafted and not groups[-1][1][-1].drafted:
            groups[-1][1].append(sweep)
        else:
            groups.append((number, [sweep]))
    return groups


def _row(first: int, sweeps: list[VerifiedTokens]) -> str:
    drafted, accepted, tokens = (
        sum(getattr(sweep, name) for sweep in sweeps) for name in ("drafted", "accepted", "tokens")
    )
    # an answer that ends within the accepted tokens has none of the model's own after them
    counts = {"yes": accepted, "own": max(0, tokens - accepted), "no": drafted - accepted}
    marks = "".join(f'<b class="{kind}">{MARKS[kind] * count}</b>' for kind, count in counts.items() if count)
    name = f"sweep {first}" if len(sweeps) == 1 else f"sweeps {first} to {first + len(sweeps) - 1}"
    found = f"{accepted} of {drafted} accepted" if drafted else "nothing drafted"
    grown = f"{tokens} {'token' if tokens == 1 else 'tokens'}"
    if tokens <= accepted:
        grown += ", the end"
    return (
        f"<li><span>{name}</span><span>{found}, {grown}</span>"
        f'<span class="marks" aria-hidden="true">{marks}</span></li>'
    )
