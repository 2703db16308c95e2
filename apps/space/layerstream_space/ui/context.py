"""Long context: attention variants against prompt length, a point at a time; the quadratic and the linear one on one plot."""

from __future__ import annotations

import time
from collections.abc import Generator, Sequence
from contextlib import closing
from typing import Any

import gradio as gr

from layerstream_compare import list_variants

from ..errors import VisitorError
from ..job_runner import RunRequest
from ..run_state import PHASES, RunState
from ..view.curves import curves_view
from ..view.elements import escape, notice, title_of
from .services import Services, Sessions, block, queue_line, session_of, wire_run

Outputs = tuple[Any, ...]

LENGTHS = (128, 256, 512, 1024, 2048, 4096, 8192)
TEXT = "A river carries what it is given: leaves, light, and the sound of the stones below. "
NEW_TOKENS = 2

_INTRO = (
    '<p class="ls-intro">The same weights in memory in <b>bf16</b>, the same text repeated to each length, another attention '
    "kernel. Eager attention keeps a score for every pair of tokens, so that its memory grows with the <b>square</b> of the "
    "length; SDPA's flash kernel never holds them all and grows <b>in a line</b>.</p>"
)


def context(services: Services) -> None:
    """Lay the page out and wire it."""
    limits = services.settings.limits
    kinds = [
        (title_of(each.name), each.name) for each in list_variants("attention") if each.availability() is None
    ]
    lengths = [length for length in LENGTHS if length <= limits.context_tokens]
    block(_INTRO)
    with gr.Row(elem_classes=["ls-controls"]), gr.Column(elem_classes=["ls-panel"]):
        attention = gr.CheckboxGroup(
            kinds,
            value=["eager", "sdpa"],
            label="Attention",
            elem_classes=["ls-variants"],
            elem_id="context-attention",
        )
        chosen = gr.CheckboxGroup(
            [(str(length), length) for length in lengths],
            value=lengths[2:5],
            label="Prompt lengths, in tokens",
            elem_id="context-lengths",
            elem_classes=["ls-choice"],
        )
        with gr.Row(elem_classes=["ls-actions"]):
            start = gr.Button("Measure", variant="primary", scale=3, min_width=120, elem_id="context-run")
            stop = gr.Button("Stop", scale=1, min_width=90, interactive=False, elem_id="context-stop")
    queue = queue_line("context-queue")
    result = block(
        curves_view([], "Each point is a process of its own; a length takes some seconds, long ones more."),
        elem_id="context",
    )
    sessions = Sessions()

    def on_run(
        attention: list[str], lengths: list[int], request: gr.Request
    ) -> Generator[Outputs, None, None]:
        run_request = _request(services, attention, lengths)
        yield from _shown(services, sessions, session_of(request), run_request)

    def on_stop(request: gr.Request) -> Outputs:
        found = sessions.take(session_of(request))
        html = (
            gr.skip()
            if found is None
            else curves_view(found.measurements, "Stopped. The points that are there stay.")
        )
        return html, gr.Button(interactive=True), gr.Button(interactive=False)

    wire_run(
        services,
        [start.click],
        stop,
        on_run=on_run,
        on_stop=on_stop,
        inputs=[attention, chosen],
        outputs=[result, start, stop],
        queue=queue,
    )


def _request(services: Services, attention: Sequence[str], lengths: Sequence[int]) -> RunRequest:
    return RunRequest(
        model=services.catalogue.names[0],
        prompt=TEXT,
        variants=("resident",),
        attention=tuple(attention),
        lengths=tuple(sorted(int(length) for length in lengths)),
        new_tokens=NEW_TOKENS,
        dtype="bfloat16",
        quality="none",
    )


def _shown(
    services: Services, sessions: Sessions, session: str, request: RunRequest
) -> Generator[Outputs, None, None]:
    ready = gr.Button(interactive=True), gr.Button(interactive=False)
    state, last = None, ""
    try:
        if not request.attention or not request.lengths:
            raise VisitorError("Tick at least one attention variant and one length.")
        with closing(services.job_runner.start(request)) as steps:
            for step in steps:
                if state is None:
                    state = step.state
                    sessions.put(session, state)
                    yield gr.skip(), gr.Button(interactive=False), gr.Button(interactive=True)
                html = curves_view(state.measurements, _running(state))
                yield html if html != last else gr.skip(), gr.skip(), gr.skip()
                last = html
    except VisitorError as error:
        yield notice("This cannot be measured", str(error), kind="error"), *ready
        return
    finally:
        sessions.take(session)
    if state is not None:
        yield curves_view(state.measurements, _done(state)), *ready


def _running(state: RunState) -> str:
    column = state.running
    if state.note or column is None:
        return escape(state.note or "Starting")
    seconds = int(time.monotonic() - column.since_s)
    told = f"<b>{escape(title_of(column.case.attention))}</b> at {column.case.prompt_tokens} tokens"
    return f"{state.num_over + 1} of {len(state.columns)}: {told}, {escape(PHASES.get(column.phase, column.phase))}, {seconds} s"


def _done(state: RunState) -> str:
    failed = [column for column in state.columns if column.status in ("failed", "unavailable")]
    if not failed:
        return f"Done: {len(state.columns)} points." if not state.note else escape(state.note)
    reason = "" if failed[0].measurement is None else failed[0].measurement.reason
    return f"Done, but {len(failed)} of {len(state.columns)} points could not be measured: {escape(reason)}"
