"""The columns: each variant's answer as it comes, where it leaves the reference, and what it cost."""

from __future__ import annotations

import math
from collections.abc import Sequence

from layerstream_compare import Measurement

from ..run_state import PHASES, Column, RunState
from .elements import ABOUT, BY_KEY, DASH, escape, figure, tip, title_of

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
"""What stands under each column: a metric's key and its short name there."""

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


def columns_view(state: RunState, now_s: float) -> str:
    """Return every column, and a line above them that says where the run stands.

    Args:
        state: the run.
        now_s: seconds of the clock that the state was fed with.
    """
    lines = _lines(state.columns[0].case.max_new_tokens)
    columns = "".join(_column(state, column) for column in state.columns)
    num_columns = min(len(state.columns), 4)
    return (
        f'<section class="ls-answers" aria-label="Answers side by side">{_status(state, now_s)}'
        f'<div class="ls-columns" style="--columns:{num_columns};--lines:{lines}">{columns}</div></section>'
    )


def empty_columns(variants: Sequence[str], new_tokens: int = 40) -> str:
    """Return columns that say what will be seen there, as tall as they will be then.

    Args:
        variants: names of the columns.
        new_tokens: of an answer.
    """
    columns = "".join(_empty_column(name) for name in variants)
    return (
        '<section class="ls-answers" aria-label="Answers side by side"><p class="ls-status" role="status"><span>'
        "Press <b>Compare</b>: each variant answers in a process of its own, one after another, and its words appear here as they "
        "come.</span></p>"
        f'<div class="ls-columns" style="--columns:{max(1, min(len(variants), 4))};--lines:{_lines(new_tokens)}">{columns}</div>'
        "</section>"
    )


def _empty_column(name: str) -> str:
    return (
        f'<article class="ls-column empty"><header><h3>{escape(title_of(name))}</h3></header><p class="ls-badges"></p>'
        f'<p class="ls-about">{escape(ABOUT.get(name, ""))}</p><div class="ls-text"><div class="ls-ghost" aria-hidden="true">'
        f'<i></i><i></i><i></i></div></div><p class="ls-outcome">&nbsp;</p>{_figures(None)}</article>'
    )


def _lines(new_tokens: int) -> int:
    """Return the lines of text to keep room for, so that nothing moves while words come."""
    return min(24, max(5, math.ceil(new_tokens * _CHARACTERS_A_TOKEN / _CHARACTERS_A_LINE) + 1))


def _status(state: RunState, now_s: float) -> str:
    done, whole = state.num_over, len(state.columns)
    running = state.running
    if state.note:
        text = escape(state.note)
    elif state.is_stopped:
        text = "Stopped: the worker has ended and its memory is free. Press <b>Compare</b> to start again."
    elif running is not None:
        since = f"{max(0, math.floor(now_s - running.since_s))} s"
        phase = PHASES.get(running.phase, running.phase)
        text = f"{done + 1} of {whole}: <b>{escape(title_of(running.case.variant))}</b>, {escape(phase)}, {since}"
    elif state.is_over:
        text = _summary(state)
    else:
        text = "Starting"
    steps = "".join(f'<i class="{column.status}"></i>' for column in state.columns)
    return f'<p class="ls-status" role="status"><span class="ls-steps" aria-hidden="true">{steps}</span><span>{text}</span></p>'


def _summary(state: RunState) -> str:
    good = [column for column in state.columns if column.status == "ok"]
    reference = state.reference
    if reference is None or reference.status != "ok":
        return f"Done: {len(good)} of {len(state.columns)} measured. No exact variant was among them, so nothing is marked."
    others = [column for column in good if not column.is_reference]
    same = sum(state.first_difference(column) is None for column in others)
    if not others:
        return "Done."
    return f"Done: {same} of {len(others)} other columns gave the very words of <b>{escape(title_of(reference.case.variant))}</b>."


def _column(state: RunState, column: Column) -> str:
    classes = f"ls-column {column.status}" + (" reference" if column.is_reference else "")
    name = escape(title_of(column.case.variant))
    about = ABOUT.get(column.case.variant, "")
    return (
        f'<article class="{classes}" aria-label="{name}"><header><h3>{name}</h3><span class="ls-state {column.status}">'
        f'{STATES[column.status]}</span></header>{_badges(column)}<p class="ls-about">{escape(about)}</p>'
        f'<div class="ls-text" tabindex="0" aria-label="Answer of {name}">{_answer(state, column)}</div>'
        f'<p class="ls-outcome">{_outcome(state, column)}</p>{_figures(column.measurement)}</article>'
    )


def _badges(column: Column) -> str:
    badges = []
    if column.is_reference:
        badges.append('<span class="ls-badge ref">reference</span>')
    measurement = column.measurement
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


def _answer(state: RunState, column: Column) -> str:
    if column.status in ("failed", "unavailable"):
        reason = column.measurement.reason if column.measurement is not None else ""
        return f'<div class="ls-reason">{escape(reason) or "It gave no reason."}</div>'
    if not column.token_texts:
        if column.status == "running":
            return f'<div class="ls-wait">{escape(PHASES.get(column.phase, column.phase))}…</div>'
        return (
            '<div class="ls-wait">waits for its turn</div>'
            if column.status == "waiting"
            else '<div class="ls-wait">no words</div>'
        )
    caret = (
        '<span class="ls-caret" aria-hidden="true"></span>'
        if column.status == "running" and column.phase == "decode"
        else ""
    )
    return f"<div>{_marked(state, column)}{caret}</div>"


def _marked(state: RunState, column: Column) -> str:
    at = state.first_difference(column)
    if at is None:
        return escape("".join(column.token_texts))
    same = escape("".join(column.token_texts[:at]))
    token = escape(column.token_texts[at]) if at < len(column.token_texts) else ""
    after = escape("".join(column.token_texts[at + 1 :]))
    hint = _hint(state, at)
    return (
        f'{same}<mark tabindex="0" aria-label="first different token: {token or "end of the answer"}. {hint}">'
        f"{token or '(ends here)'}"
        f'<span class="ls-tip" role="tooltip">{hint}</span></mark><span class="ls-after">{after}</span>'
    )


def _hint(state: RunState, at: int) -> str:
    reference = state.reference
    texts = [] if reference is None else reference.token_texts
    theirs = repr(texts[at]) if at < len(texts) else "nothing: its answer ended"
    margin = state.margin_at(at)
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


def _outcome(state: RunState, column: Column) -> str:
    if column.is_reference and column.status == "ok":
        return "The others are compared with this answer."
    at = state.first_difference(column)
    if at is not None:
        margin = state.margin_at(at)
        told = "" if margin is None else f", reference's margin {margin:.2g}"
        return f'differs from token <b class="ls-differs">{at + 1}</b> on{told}'
    if column.status == "ok" and state.reference is not None and state.reference.status == "ok":
        return "same words as the reference"
    return "&nbsp;"


def _figures(measurement: Measurement | None) -> str:
    rows = []
    for key, name in FIGURES:
        value = escape(figure(measurement, key))
        quiet = ' class="none"' if value == DASH else ""
        rows.append(f"<div><dt>{name} {tip(BY_KEY[key].includes, name)}</dt><dd{quiet}>{value}</dd></div>")
    return f'<dl class="ls-figures">{"".join(rows)}</dl>'
