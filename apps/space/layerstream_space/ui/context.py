"""Long context: memory and time of attention variants against prompt length, measured point by point."""

from __future__ import annotations

import time

import gradio as gr

from layerstream_compare import list_variants

from ..errors import VisitorError
from ..job_runner import RunRequest
from ..run_state import RunState
from ..view.curves import curves_view
from ..view.elements import escape, title_of
from ..view.progress import time_left
from .run_loop import Pictures, RunPage, wire_run
from .services import Services, block, queue_line, run_buttons

LENGTHS = (128, 256, 512, 1024, 2048, 4096, 8192)
TEXT = "A river carries what it is given: leaves, light, and the sound of the stones below. "
DEFAULT_LENGTHS = (1024, 2048)
"""Two lengths are the least that show a growth; longer ones take eager attention gigabytes."""

NEW_TOKENS = 2

_INTRO = (
    '<p class="ls-intro">Each point runs the same weights, in memory and in <b>bf16</b>, on the same text '
    "repeated to that "
    "length. Only the attention kernel differs. Eager attention stores a score for every pair of tokens: "
    "twice the length, four times the scores. SDPA's flash kernel never stores all the scores, so its memory "
    "should grow no faster than the length. Both axes are logarithmic: <b>the steeper line grows "
    "faster</b>, and the power that was measured stands beside each name. It is taken from prompts of more "
    "than 512 tokens only: in shorter ones the warm-up has already taken part of the memory, and their "
    "points lie too low.</p>"
)


def context(services: Services) -> None:
    """Lay out and wire the page."""
    block(_INTRO)
    with gr.Row(elem_classes=["ls-controls"]), gr.Column(elem_classes=["ls-panel"]):
        attention, lengths = _choices(services)
        with gr.Row(elem_classes=["ls-actions"]):
            start, stop = run_buttons("Measure", start_id="context-run", stop_id="context-stop")
    queue = queue_line("context-queue")
    status = "Each point runs in its own process and takes a few seconds; long prompts take more."
    curves = block(curves_view([], status), elem_id="context")

    def make_request(attention: list[str], lengths: list[int]) -> RunRequest:
        if not attention or not lengths:
            raise VisitorError("Tick at least one attention variant and one length.")
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

    page = RunPage(
        make_request=make_request,
        draw=_draw,
        inputs=[attention, lengths],
        blocks=[curves],
        start=start,
        stop=stop,
        queue=queue,
        idle=(curves_view([], status),),
    )
    wire_run(services, page)


def _choices(services: Services) -> tuple[gr.CheckboxGroup, gr.CheckboxGroup]:
    available = [
        (title_of(variant.name), variant.name)
        for variant in list_variants("attention")
        if variant.availability() is None
    ]
    lengths = [length for length in LENGTHS if length <= services.settings.limits.context_tokens]
    return (
        gr.CheckboxGroup(
            available,
            value=["eager", "sdpa"],
            label="Attention",
            elem_classes=["ls-variants"],
            elem_id="context-attention",
        ),
        gr.CheckboxGroup(
            [(str(length), length) for length in lengths],
            value=[length for length in lengths if length in DEFAULT_LENGTHS],
            label="Prompt lengths, in tokens",
            elem_id="context-lengths",
            elem_classes=["ls-choice"],
        ),
    )


def _draw(state: RunState) -> Pictures:
    status = _status(state)
    return (curves_view(state.measurements, status, is_live=not state.is_over),)


def _status(state: RunState) -> str:
    if state.is_stopped:
        return escape(state.note) or "Stopped. The points measured so far stay."
    if state.is_over:
        return _summary(state)
    column = state.running
    if state.note or column is None:
        return escape(state.note or "Starting")
    seconds = int(time.monotonic() - column.since_s)
    point = f"<b>{escape(title_of(column.case.attention))}</b> at {column.case.prompt_tokens} tokens"
    number = f"{state.num_over + 1} of {len(state.columns)}"
    left = time_left(state, column.since_s + seconds)
    return f"{number}: {point}, {escape(column.phase_text)}, {seconds} s<em>{left}</em>"


def _summary(state: RunState) -> str:
    failed = [column for column in state.columns if column.has_failed]
    if not failed:
        return f"Done: {len(state.columns)} points."
    reason = "" if failed[0].measurement is None else failed[0].measurement.reason
    return f"Done, but {len(failed)} of {len(state.columns)} points could not be measured: {escape(reason)}"
