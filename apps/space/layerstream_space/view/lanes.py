"""The lanes: each variant's answer as it comes, where it leaves the reference, and what it cost."""

from __future__ import annotations

import math
from collections.abc import Sequence

from layerstream_compare import Measurement

from ..board import PHASES, Board, Lane
from .words import ABOUT, BY_KEY, DASH, escape, figure, tip, title_of

FIGURES = (
    ("needed_bytes", "peak memory"),
    ("held_bytes", "of it weights"),
    ("load_s", "loading"),
    ("first_token_s", "first token"),
    ("tokens_per_s", "tokens/s"),
    ("bytes_read", "read from disk"),
    ("kl_mean_answer", "KL, nats"),
    ("top1_answer", "same top token"),
)
"""What stands under each lane: a metric's key and its short name there."""

STATES = {
    "waiting": "waits",
    "running": "runs",
    "ok": "done",
    "failed": "failed",
    "unavailable": "not here",
    "stopped": "stopped",
}

_CHARACTERS_A_TOKEN = 4.6
_CHARACTERS_A_LINE = 38


def board_view(board: Board, now_s: float) -> str:
    """Return every lane, and a line above them that says where the run stands.

    Args:
        board: the run.
        now_s: seconds of the clock that the board was fed with.
    """
    lines = _lines(board.lanes[0].case.max_new_tokens)
    lanes = "".join(_lane(board, lane) for lane in board.lanes)
    columns = min(len(board.lanes), 4)
    return (
        f'<section class="ls-board" aria-label="Answers side by side">{_status(board, now_s)}'
        f'<div class="ls-lanes" style="--columns:{columns};--lines:{lines}">{lanes}</div></section>'
    )


def empty_board(variants: Sequence[str], new_tokens: int = 40) -> str:
    """Return lanes that say what will be seen there, as tall as they will be then.

    Args:
        variants: names of the lanes.
        new_tokens: of an answer.
    """
    lanes = "".join(_empty_lane(name) for name in variants)
    return (
        '<section class="ls-board" aria-label="Answers side by side"><p class="ls-status" role="status"><span>'
        "Press <b>Compare</b>: each variant answers in a process of its own, one after another, and its words appear here as they "
        "come.</span></p>"
        f'<div class="ls-lanes" style="--columns:{max(1, min(len(variants), 4))};--lines:{_lines(new_tokens)}">{lanes}</div>'
        "</section>"
    )


def _empty_lane(name: str) -> str:
    return (
        f'<article class="ls-lane empty"><header><h3>{escape(title_of(name))}</h3></header><p class="ls-badges"></p>'
        f'<p class="ls-about">{escape(ABOUT.get(name, ""))}</p><div class="ls-text"><div class="ls-ghost" aria-hidden="true">'
        f'<i></i><i></i><i></i></div></div><p class="ls-outcome">&nbsp;</p>{_figures(None)}</article>'
    )


def _lines(new_tokens: int) -> int:
    """Return the lines of text to keep room for, so that nothing moves while words come."""
    return min(24, max(5, math.ceil(new_tokens * _CHARACTERS_A_TOKEN / _CHARACTERS_A_LINE) + 1))


def _status(board: Board, now_s: float) -> str:
    done, whole = board.num_over, len(board.lanes)
    running = board.running
    if board.note:
        text = escape(board.note)
    elif board.is_stopped:
        text = "Stopped: the worker has ended and its memory is free. Press <b>Compare</b> to start again."
    elif running is not None:
        since = f"{max(0, math.floor(now_s - running.since_s))} s"
        phase = PHASES.get(running.phase, running.phase)
        text = f"{done + 1} of {whole}: <b>{escape(title_of(running.case.variant))}</b>, {escape(phase)}, {since}"
    elif board.is_over:
        text = _summary(board)
    else:
        text = "Starting"
    steps = "".join(f'<i class="{lane.status}"></i>' for lane in board.lanes)
    return f'<p class="ls-status" role="status"><span class="ls-steps" aria-hidden="true">{steps}</span><span>{text}</span></p>'


def _summary(board: Board) -> str:
    good = [lane for lane in board.lanes if lane.status == "ok"]
    reference = board.reference
    if reference is None or reference.status != "ok":
        return f"Done: {len(good)} of {len(board.lanes)} measured. No exact variant was among them, so nothing is marked."
    others = [lane for lane in good if not lane.is_reference]
    same = sum(board.first_difference(lane) is None for lane in others)
    if not others:
        return "Done."
    return f"Done: {same} of {len(others)} other lanes gave the very words of <b>{escape(title_of(reference.case.variant))}</b>."


def _lane(board: Board, lane: Lane) -> str:
    classes = f"ls-lane {lane.status}" + (" reference" if lane.is_reference else "")
    name = escape(title_of(lane.case.variant))
    about = ABOUT.get(lane.case.variant, "")
    return (
        f'<article class="{classes}" aria-label="{name}"><header><h3>{name}</h3><span class="ls-state {lane.status}">'
        f'{STATES[lane.status]}</span></header>{_badges(lane)}<p class="ls-about">{escape(about)}</p>'
        f'<div class="ls-text" tabindex="0" aria-label="Answer of {name}">{_answer(board, lane)}</div>'
        f'<p class="ls-outcome">{_outcome(board, lane)}</p>{_figures(lane.measurement)}</article>'
    )


def _badges(lane: Lane) -> str:
    badges = []
    if lane.is_reference:
        badges.append('<span class="ls-badge ref">reference</span>')
    measurement = lane.measurement
    if (
        measurement is not None
        and measurement.agreements
        and all(each.is_bit_exact for each in measurement.agreements)
    ):
        badges.append('<span class="ls-badge exact">bit-exact</span>')
    if measurement is not None and measurement.timing is not None and measurement.timing.is_noisy:
        badges.append(
            '<span class="ls-badge noisy" title="The machine was busy: read the times with care">noisy</span>'
        )
    return f'<p class="ls-badges">{"".join(badges)}</p>'


def _answer(board: Board, lane: Lane) -> str:
    if lane.status in ("failed", "unavailable"):
        reason = lane.measurement.reason if lane.measurement is not None else ""
        return f'<div class="ls-reason">{escape(reason) or "It gave no reason."}</div>'
    if not lane.token_texts:
        if lane.status == "running":
            return f'<div class="ls-wait">{escape(PHASES.get(lane.phase, lane.phase))}…</div>'
        return (
            '<div class="ls-wait">waits for its turn</div>'
            if lane.status == "waiting"
            else '<div class="ls-wait">no words</div>'
        )
    caret = (
        '<span class="ls-caret" aria-hidden="true"></span>'
        if lane.status == "running" and lane.phase == "decode"
        else ""
    )
    return f"<div>{_marked(board, lane)}{caret}</div>"


def _marked(board: Board, lane: Lane) -> str:
    at = board.first_difference(lane)
    if at is None:
        return escape("".join(lane.token_texts))
    same = escape("".join(lane.token_texts[:at]))
    token = escape(lane.token_texts[at]) if at < len(lane.token_texts) else ""
    after = escape("".join(lane.token_texts[at + 1 :]))
    hint = _hint(board, at)
    return (
        f'{same}<mark tabindex="0" aria-label="first different token: {token or "end of the answer"}. {hint}">'
        f"{token or '(ends here)'}"
        f'<span class="ls-tip" role="tooltip">{hint}</span></mark><span class="ls-after">{after}</span>'
    )


def _hint(board: Board, at: int) -> str:
    reference = board.reference
    texts = [] if reference is None else reference.token_texts
    theirs = repr(texts[at]) if at < len(texts) else "nothing: its answer ended"
    margin = board.margin_at(at)
    if margin is None:
        return escape(f"First different token. The reference has {theirs} here.", quote=True)
    weight = (
        "close to a coin flip"
        if margin < 0.05
        else "not a close call"
        if margin > 0.3
        else "a choice that was open"
    )
    told = f"First different token. The reference has {theirs} here, with a margin of {margin:.2g} over its second choice: {weight}."
    return escape(told, quote=True)


def _outcome(board: Board, lane: Lane) -> str:
    if lane.is_reference and lane.status == "ok":
        return "The others are compared with this answer."
    at = board.first_difference(lane)
    if at is not None:
        margin = board.margin_at(at)
        told = "" if margin is None else f", reference's margin {margin:.2g}"
        return f'differs from token <b class="ls-differs">{at + 1}</b> on{told}'
    if lane.status == "ok" and board.reference is not None and board.reference.status == "ok":
        return "same words as the reference"
    return "&nbsp;"


def _figures(measurement: Measurement | None) -> str:
    rows = []
    for key, name in FIGURES:
        value = escape(figure(measurement, key))
        quiet = ' class="none"' if value == DASH else ""
        rows.append(f"<div><dt>{name} {tip(BY_KEY[key].includes, name)}</dt><dd{quiet}>{value}</dd></div>")
    return f'<dl class="ls-figures">{"".join(rows)}</dl>'
