"""Watch it stream: a budget slider with an immediate plan, then a live timeline of the run."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

import gradio as gr

from layerstream import PlacementPlan, SpeculationReport, StreamReport, Workload

from ..errors import VisitorError
from ..job_runner import DRAFTS, RunRequest
from ..models import strip_paths
from ..planner import ModelSource
from ..run_state import Column, RunState
from ..settings import Limits
from ..timeline_state import TimelineState
from ..view.elements import escape, format_bytes, format_seconds, notice, status_line
from ..view.how_to_read import how_to_read_timeline
from ..view.plan import ledger_bar, strip_view
from ..view.progress import lane_bar, time_left, whole_seconds
from ..view.timeline import watch_view
from .run_loop import Pictures, RunPage, wire_run
from .services import Services, block, prompt_box, queue_line, run_buttons

PROMPT = "Tell a short story about a lighthouse keeper who reads one page at a time."
DRAFT_TITLES = {"int8": "int8: the model's own 8-bit copy", "lookup": "lookup: from the text so far"}
NO_DRAFT = ("none", "")
TEMPLATE_TOKENS = 64
"""A chat template adds at most this many tokens to a prompt."""

_INTRO = (
    '<p class="ls-intro">Choose how much memory the model may use: 0 is the smallest amount that works, 100 '
    "keeps every weight in "
    "memory. The plan below updates <b>at once</b>, because planning needs no run. Then run it and see "
    "whether the disk keeps ahead of the computation.</p>"
)
_STARTING = status_line("<span>The planner is starting. The plan appears in a few seconds.</span>")


@dataclass(frozen=True, slots=True, kw_only=True)
class _Controls:
    """What the visitor chooses, and the buttons."""

    prompt: gr.Textbox
    share: gr.Slider
    new_tokens: gr.Slider
    draft: gr.Radio
    start: gr.Button
    stop: gr.Button

    @property
    def inputs(self) -> list[Any]:
        """The arguments of a plan and of a request, in their order."""
        return [self.prompt, self.share, self.new_tokens, self.draft]


def watch(services: Services) -> dict[str, Any]:
    """Lay out and wire the page; return the event that makes the plan, for when the page is opened."""
    block(_INTRO)
    controls = _controls(services.settings.limits)
    queue = queue_line("watch-queue")
    plan = block(_STARTING, elem_id="watch-plan")
    idle = watch_view(TimelineState(), [], "Press Run it, and the answer appears here.", is_over=False)
    live = block(idle, elem_id="watch")
    block(how_to_read_timeline())

    def make_request(prompt: str, share: float, new_tokens: float, draft: str) -> RunRequest:
        return _request(services, prompt, share, int(new_tokens), draft)

    page = RunPage(
        make_request=make_request,
        draw=_draw,
        inputs=controls.inputs,
        blocks=[live, plan],
        start=controls.start,
        stop=controls.stop,
        queue=queue,
        idle=(idle, gr.skip()),
    )
    wire_run(services, page)
    return _wire_plan(services, controls, plan)


def _controls(limits: Limits) -> _Controls:
    with gr.Row(elem_classes=["ls-controls"]):
        with gr.Column(scale=3, min_width=320, elem_classes=["ls-panel"]):
            prompt = prompt_box(PROMPT, limits, lines=2, max_lines=6)
            with gr.Row(elem_classes=["ls-actions"]):
                start, stop = run_buttons("Run it", start_id="watch-run", stop_id="watch-stop")
        with gr.Column(scale=2, min_width=300, elem_classes=["ls-panel"]):
            share = gr.Slider(
                0, 100, value=25, step=5, label="Memory, from the minimum to all", elem_id="watch-share"
            )
            new_tokens = gr.Slider(4, min(limits.new_tokens, 128), value=24, step=1, label="New tokens")
            draft = gr.Radio(
                [NO_DRAFT, *((DRAFT_TITLES[name], name) for name in DRAFTS)],
                value="",
                label="Draft: guesses tokens that one sweep checks together",
                elem_id="watch-draft",
                elem_classes=["ls-choice"],
            )
    return _Controls(prompt=prompt, share=share, new_tokens=new_tokens, draft=draft, start=start, stop=stop)


def _wire_plan(services: Services, controls: _Controls, plan: gr.HTML) -> dict[str, Any]:
    def on_change(prompt: str, share: float, new_tokens: float, draft: str) -> str:
        try:
            return _plan_html(_plan(services, prompt, share, int(new_tokens), draft))
        except VisitorError as error:
            return notice("No plan", strip_paths(str(error)), kind="error")

    event = {
        "fn": on_change,
        "inputs": controls.inputs,
        "outputs": plan,
        "show_progress": "hidden",
        "api_visibility": "private",
    }
    changes = [controls.share.change, controls.new_tokens.release, controls.draft.change]
    gr.on(changes, trigger_mode="always_last", **event)
    return event


def _request(services: Services, prompt: str, share: float, new_tokens: int, draft: str) -> RunRequest:
    planned = _plan(services, prompt, share, new_tokens, draft)
    return RunRequest(
        model=services.catalogue.names[0],
        prompt=prompt,
        variants=("streamed",),
        new_tokens=new_tokens,
        budget=f"{planned.ledger.device_budget_bytes} B",
        host_budget=_size(planned.ledger.host_budget_bytes),
        quality="none",
        timeline=True,
        draft=draft,
    )


def _size(num_bytes: int) -> str:
    # a plan for a CPU has no host budget
    return f"{num_bytes} B" if num_bytes else "min"


def _plan(services: Services, prompt: str, share: float, new_tokens: int, draft: str) -> PlacementPlan:
    # The tokenizer is in the worker. A character is at most one token in any vocabulary of bytes or letters.
    prompt_tokens = len(prompt) + TEMPLATE_TOKENS
    answer = services.planner.plan(
        ModelSource(model=services.job_runner.source_of(services.catalogue.names[0])),
        machine=None,
        workload=Workload(prompt_tokens=prompt_tokens, new_tokens=new_tokens),
        share=share / 100,
        draft=draft or None,
    )
    if answer.plan is None:
        raise VisitorError(answer.reason)
    return answer.plan


def _draw(state: RunState) -> Pictures:
    column, timeline = state.columns[0], state.timeline
    current_unit = None if state.is_over else timeline.current_unit
    plan = (
        gr.skip()
        if timeline.plan is None
        else _plan_html(timeline.plan, current_unit=current_unit, has_run=True)
    )
    if column.has_failed:
        reason = "" if column.measurement is None else column.measurement.reason
        return notice("This did not run", reason, kind="error"), plan
    now_s = whole_seconds(state, time.monotonic())
    phase = state.note or f"{column.phase_text} …"
    bar = "" if state.is_over else lane_bar(column, now_s)
    if column.status == "running":
        left = time_left(state, now_s)
        bar = status_line(f"<span>{escape(phase)} {now_s - column.since_s:.0f} s<em>{left}</em></span>") + bar
    html = watch_view(
        timeline, column.token_texts, phase, is_over=state.is_over, bar=bar, report=_speculation(column)
    )
    return html, plan


def _speculation(column: Column) -> SpeculationReport | None:
    """Return what the draft did in a run that has ended; None without a draft."""
    facts = {} if column.measurement is None else column.measurement.facts
    return StreamReport.from_dict(facts["report"]).speculation if "report" in facts else None


def _plan_html(plan: PlacementPlan, *, current_unit: int | None = None, has_run: bool = False) -> str:
    budget, cost = format_bytes(plan.ledger.device_budget_bytes), plan.cost
    note = "This is the plan that runs." if has_run else "Nothing has run yet."
    unit = "sweep" if plan.draft else "token"
    status = status_line(
        f"<span>Plan for <b>{budget}</b>: each {unit} takes {format_seconds(cost.sweep_s)}, with "
        f"{format_bytes(cost.read_bytes)} read from disk; peak {format_bytes(plan.ledger.device_bytes)}. "
        f"{_draft_text(plan)}{note}</span>"
    )
    strip = strip_view(plan, current_unit=current_unit)
    return f'<section class="ls-plan">{status}{strip}{ledger_bar(plan)}</section>'


def _draft_text(plan: PlacementPlan) -> str:
    if plan.draft_refusal:
        return escape(f"No draft: {plan.draft_refusal}. ")
    if plan.draft_forecast is None:
        return ""
    return escape(f"Draft {plan.draft}: {plan.draft_forecast.explain()}. ")
