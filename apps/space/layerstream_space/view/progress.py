"""How far a run has come: a bar for the run, a bar for each lane, and the time that is left.

Whatever depends on the time changes once a second; between two drawings the browser moves the bars.
"""

from __future__ import annotations

import math

from ..forecast import PHASES
from ..run_state import Column, RunState

STEP_TITLES = {
    "starting": "libraries",
    "load": "weights",
    "warm-up": "warm-up",
    "first-token": "prompt",
    "decode": "words",
    "quality": "agreement",
}
"""A lane's phases in one word each, for the bar."""

_LEAST_SHARE = 0.06
_ROUGH_S = 20.0


def whole_seconds(state: RunState, now_s: float) -> float:
    """Return `now_s`, cut to whole seconds since the running case began."""
    running = state.running
    return now_s if running is None else running.since_s + max(0.0, math.floor(now_s - running.since_s))


def time_left(state: RunState, now_s: float) -> str:
    """Return the estimated time until the end of the run, in words; empty if nothing is left."""
    seconds = state.remaining_s(now_s)
    if seconds < 1:
        return ""
    step = 1 if seconds < _ROUGH_S else 5
    rounded = math.ceil(seconds / step) * step
    text = f"{rounded} s" if rounded < 100 else f"{round(rounded / 60)} min"
    return f" · about {text} left in all"


def run_bar(state: RunState, now_s: float) -> str:
    """Return the bar of the run: a part for each column, as long as it is expected to take."""
    parts = []
    for column in state.columns:
        share = max(sum(column.expected.values()), 0.1)
        parts.append(
            f'<i class="{column.status}" style="--s:{share:.3g}">{_moving(*_of_column(column, now_s))}</i>'
        )
    return f'<div class="ls-runbar" aria-hidden="true">{"".join(parts)}</div>'


def lane_bar(column: Column, now_s: float) -> str:
    """Return the bar of a lane: a step for each phase, with the current one moving."""
    if column.status != "running":
        return '<div class="ls-lanebar" aria-hidden="true"></div>'
    steps = "".join(_step(column, phase, now_s) for phase in PHASES if column.expected.get(phase))
    return f'<div class="ls-lanebar" aria-hidden="true">{steps}</div>'


def _step(column: Column, phase: str, now_s: float) -> str:
    share = max(column.expected[phase] / sum(column.expected.values()), _LEAST_SHARE)
    place = _place(column, phase)
    bar = _moving(*_of_phase(column, now_s)) if place == "now" else ""
    return f'<i class="{place}" style="--s:{share:.3g}"><b>{bar}</b><span>{STEP_TITLES[phase]}</span></i>'


def _place(column: Column, phase: str) -> str:
    current = "load" if column.phase == "import" else column.phase
    if phase == current:
        return "now"
    is_behind = current in PHASES and PHASES.index(phase) > PHASES.index(current)
    return "next" if is_behind else "done"


def _of_phase(column: Column, now_s: float) -> tuple[float, float]:
    """Return how much of the current phase is done now, and in a second."""
    if column.phase == "decode":
        share = len(column.token_texts) / column.case.max_new_tokens
        return share, share
    expected_s = column.expected.get(column.phase, 1.0)
    elapsed_s = max(0.0, now_s - column.phase_since_s)
    return _share(elapsed_s, expected_s), _share(elapsed_s + 1, expected_s)


def _of_column(column: Column, now_s: float) -> tuple[float, float]:
    """Return how much of a column is done now, and in a second."""
    if column.status != "running":
        share = len(column.measurements) / column.rounds
        return share, share
    whole_s = sum(column.expected.values()) or 1.0
    over_s = sum(value for phase, value in column.expected.items() if phase in column.spent)
    current_s = column.expected.get(column.phase, 0.0)
    now, soon = _of_phase(column, now_s)

    def whole(share: float) -> float:
        return (len(column.measurements) + (over_s + share * current_s) / whole_s) / column.rounds

    return whole(now), whole(soon)


def _share(elapsed_s: float, expected_s: float) -> float:
    """Return a share that grows with the time and never reaches 1, however late a phase is."""
    return 1.0 - math.exp(-1.4 * elapsed_s / max(expected_s, 0.1))


def _moving(now: float, soon: float) -> str:
    return f'<u style="--now:{now:.3f};--soon:{soon:.3f}"></u>'
