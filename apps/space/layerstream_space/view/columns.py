"""The columns: each variant's answer as it comes, where it departs from the reference, and what it cost."""

from __future__ import annotations

import math
from collections.abc import Sequence

from layerstream_compare import Row

from ..run_state import Column, RunState
from .bars import has_device
from .elements import ABOUT, DASH, escape, figure, status_line, title_of
from .progress import lane_bar, run_bar, time_left, whole_seconds

COSTS = (
    ("needed_bytes", "peak memory"),
    ("held_bytes", "weights"),
    ("load_s", "loading"),
    ("first_token_s", "first token"),
    ("tokens_per_s", "tokens/s"),
    ("bytes_read", "read from disk"),
)
"""What a column cost: a metric's key and its short name."""

COSTS_WITH_DEVICE = (
    ("device_peak_bytes", "peak on device"),
    ("host_needed_bytes", "peak in host"),
    ("device_held_bytes", "weights on device"),
    ("host_held_bytes", "weights in host"),
    *COSTS[2:],
)
"""The same once a column was measured on an accelerator, which has a memory of its own."""

AGREEMENT = (("kl_mean_answer", "KL, nats"), ("top1_answer", "same top token"))
"""How well a column agrees with the reference while both read the reference's answer."""

STATUSES = {
    "waiting": "waiting",
    "running": "running",
    "ok": "done",
    "failed": "failed",
    "unavailable": "not available",
    "stopped": "stopped",
}

TWO_TEXTS = (
    "Above, it wrote an answer of its own, token by token. Here it reads the reference's answer, many "
    "tokens at a time, and its first choice was the reference's everywhere. That is no contradiction: the "
    "shape of the computation changes its rounding, and rounding decides a close call."
)
"""Shown where an answer differs and yet every top token was the same."""

_CHARACTERS_PER_TOKEN = 4.6
_CHARACTERS_PER_LINE = 38


def columns_view(state: RunState, now_s: float) -> str:
    """Return all columns and a status line above them.

    Args:
        state: the run.
        now_s: the time on the clock that the state's events were applied with.
    """
    # everything that moves with time moves once a second: each drawing takes time from the model
    now_s = whole_seconds(state, now_s)
    columns = [_column(state, column, now_s) for column in state.columns]
    head = _status(state, now_s) + run_bar(state, now_s)
    classes = "run" if state.is_over else "run live"
    return _section(head, columns, state.columns[0].case.max_new_tokens, classes)


def empty_columns(variants: Sequence[str], new_tokens: int = 40) -> str:
    """Return columns that say what will appear in them, as tall as they will be then.

    Args:
        variants: names of the variants.
        new_tokens: length of an answer.
    """
    status = status_line(
        "<span>Press <b>Compare</b>. The variants run one after another, each in its own process. Their "
        "words appear here as they are generated, and the first one that differs from the exact answer is "
        "marked.</span>"
    )
    return _section(status, [_empty_column(name) for name in variants], new_tokens, "")


def _section(head: str, columns: Sequence[str], new_tokens: int, classes: str) -> str:
    num_columns = max(1, min(len(columns), 4))
    return (
        f'<section class="ls-answers {classes}" aria-label="Answers side by side">{head}'
        '<div class="ls-columns" '
        f'style="--columns:{num_columns};--lines:{_lines(new_tokens)}">{"".join(columns)}</div>'
        "</section>"
    )


def _empty_column(name: str) -> str:
    return (
        f'<article class="ls-column empty"><header><h3>{escape(title_of(name))}</h3></header>'
        f'<p class="ls-about">{escape(ABOUT.get(name, ""))}</p>'
        '<div class="ls-text"><div class="ls-ghost" aria-hidden="true"><i></i><i></i><i></i></div></div>'
        "</article>"
    )


def _lines(new_tokens: int) -> int:
    """Return the lines of text to reserve, so that nothing moves while words arrive."""
    return min(24, max(5, math.ceil(new_tokens * _CHARACTERS_PER_TOKEN / _CHARACTERS_PER_LINE) + 1))


def _status(state: RunState, now_s: float) -> str:
    running = state.running
    if state.note:
        text = escape(state.note)
    elif state.is_stopped:
        text = "Stopped. The worker has ended and its memory is free. Press <b>Compare</b> to start again."
    elif running is not None:
        seconds = f"{max(0, math.floor(now_s - running.since_s))} s"
        title = f"<b>{escape(title_of(running.case.variant))}</b>"
        number = f"{state.num_measured + 1} of {state.num_cases}"
        left = time_left(state, now_s)
        text = f"{number}: {title}, {escape(running.phase_text)}, {seconds}<em>{left}</em>"
    elif state.is_over:
        text = _summary(state)
    else:
        text = f"Starting<em>{time_left(state, now_s)}</em>"
    return status_line(f"<span>{text}</span>")


def _summary(state: RunState) -> str:
    good = [column for column in state.columns if column.has_answer]
    reference = state.reference
    measured = f"Done: {len(good)} of {len(state.columns)} measured."
    if reference is None:
        return f"{measured} No exact variant was among them, so no differences are marked."
    title = f"<b>{escape(title_of(reference.case.variant))}</b>"
    if not reference.has_answer:
        return f"{measured} {title}, the reference, failed, so there was nothing to compare the others with."
    others = [column for column in good if not column.is_reference]
    if not others:
        return "Done."
    same = sum(state.first_difference(column) is None for column in others)
    return f"Done: {same} of {len(others)} other columns gave exactly the same answer as {title}."


def _column(state: RunState, column: Column, now_s: float) -> str:
    classes = f"ls-column {column.status}" + (" reference" if column.is_reference else "")
    name = escape(title_of(column.case.variant))
    about = ABOUT.get(column.case.variant, "")
    return (
        f'<article class="{classes}" aria-label="{name}"><header><h3>{name}</h3>'
        f'<span class="ls-state {column.status}">{_state(column)}</span></header>'
        f'{_badges(column)}<p class="ls-about">{escape(about)}</p>{lane_bar(column, now_s)}'
        f'<div class="ls-text" tabindex="0" aria-label="Answer of {name}">{_answer(state, column)}</div>'
        f'<p class="ls-outcome">{_outcome(state, column)}</p>{_figures(state, column)}</article>'
    )


def _state(column: Column) -> str:
    if column.rounds > 1 and not column.is_over:
        return f"{STATUSES[column.status]}, {len(column.measurements)} of {column.rounds} rounds done"
    return STATUSES[column.status]


def _badges(column: Column) -> str:
    badges = []
    if column.is_reference:
        badges.append('<span class="ls-badge ref">reference</span>')
    row = column.row
    if row is not None:
        if row.is_bit_exact:
            badges.append('<span class="ls-badge exact">bit-exact</span>')
        if row.is_noisy:
            badges.append(
                '<span class="ls-badge noisy" title="The machine was busy with other work, so the times may '
                'be off">'
                "noisy</span>"
            )
    return f'<p class="ls-badges">{"".join(badges)}</p>'


def _answer(state: RunState, column: Column) -> str:
    if column.has_failed:
        reason = "" if column.measurement is None else column.measurement.reason
        return f'<div class="ls-reason">{escape(reason) or "No reason was given."}</div>'
    if not column.token_texts:
        waits = {"running": f"{escape(column.phase_text)}…", "waiting": "waiting for its turn"}
        return f'<div class="ls-wait">{waits.get(column.status, "no words")}</div>'
    is_writing = column.status == "running" and column.phase == "decode"
    caret = '<span class="ls-caret" aria-hidden="true"></span>' if is_writing else ""
    return f"<div>{_marked(state, column)}{caret}</div>"


def _marked(state: RunState, column: Column) -> str:
    index = state.first_difference(column)
    if index is None:
        return escape("".join(column.token_texts))
    same = escape("".join(column.token_texts[:index]))
    token = escape(column.token_texts[index]) if index < len(column.token_texts) else ""
    after = escape("".join(column.token_texts[index + 1 :]))
    hint = _hint(state, index)
    return (
        f'{same}<mark tabindex="0" aria-label="first different token: {token or "end of the answer"}. '
        f'{hint}">'
        f"{token or '(ends here)'}"
        f'<span class="ls-tip" role="tooltip">{hint}</span></mark><span class="ls-after">{after}</span>'
    )


def _hint(state: RunState, index: int) -> str:
    reference = state.reference
    texts = [] if reference is None else reference.token_texts
    expected = f"has {texts[index]!r}" if index < len(texts) else "has ended"
    margin = state.margin_at(index)
    hint = f"First different token. The reference {expected} here"
    if margin is None:
        return escape(f"{hint}.", quote=True)
    meaning = "an open choice"
    if margin < 0.05:
        meaning = "close to a coin flip"
    elif margin > 0.3:
        meaning = "not a close call"
    return escape(f"{hint}, with a margin of {margin:.2g} over its second choice: {meaning}.", quote=True)


def _outcome(state: RunState, column: Column) -> str:
    if column.is_reference and column.has_answer:
        return "The other answers are compared with this one."
    index = state.first_difference(column)
    if index is not None:
        margin = state.margin_at(index)
        detail = "" if margin is None else f"; the reference's margin there is {margin:.2g}"
        return f'differs from token <b class="ls-differs">{index + 1}</b> on{detail}'
    if column.has_answer and state.reference is not None and state.reference.has_answer:
        return "same answer as the reference"
    return "&nbsp;"


def _figures(state: RunState, column: Column) -> str:
    row = column.row
    costs = COSTS_WITH_DEVICE if has_device(state.measurements) else COSTS
    html = _list(row, costs)
    if column.case.quality:
        html += f'<p class="ls-figures-about">reading the reference\'s answer:</p>{_list(row, AGREEMENT)}'
        if state.first_difference(column) is not None and row is not None:
            html += f'<p class="ls-two-texts">{TWO_TEXTS}</p>' if row.median_of("top1_answer") == 1.0 else ""
    return html


def _list(row: Row | None, keys: Sequence[tuple[str, str]]) -> str:
    entries = []
    for key, name in keys:
        value = escape(figure(row, key))
        quiet = ' class="none"' if value == DASH else ""
        entries.append(f"<div><dt>{name}</dt><dd{quiet}>{value}</dd></div>")
    return f'<dl class="ls-figures">{"".join(entries)}</dl>'
