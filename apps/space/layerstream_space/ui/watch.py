"""Watch it stream: the budget decides where every block lives, before anything runs; then reads, copies and computing, live."""

from __future__ import annotations

import time
from collections.abc import Generator, Mapping
from contextlib import closing
from dataclasses import dataclass, field
from typing import Any

import gradio as gr

from ..errors import VisitorError
from ..job_runner import RunRequest
from ..models import strip_paths
from ..run_state import PHASES
from ..settings import Limits
from ..timeline_state import TimelineState
from ..view.elements import format_bytes, format_seconds, notice
from ..view.plan import ledger_bar, strip_view, total_bytes
from ..view.timeline import watch_view
from .services import DRAW_EVERY_S, Services, block, queue_line, session_of, wire_run

Outputs = tuple[Any, ...]

PROMPT = "Tell a short story about a lighthouse keeper who reads one page at a time."
TEMPLATE_TOKENS = 64
"""What a chat template adds to a prompt, at most."""

_INTRO = (
    '<p class="ls-intro">Move the slider: 0 is the least memory that works, 100 keeps every weight. The plan follows <b>at '
    "once</b>, from arithmetic alone. Then run it and watch the disk stay ahead of the computation, or not.</p>"
)


@dataclass(slots=True)
class _Watched:
    """One visitor's run."""

    timeline: TimelineState = field(default_factory=TimelineState)
    texts: list[str] = field(default_factory=list)
    phase: str = "starting"

    def html(self, *, is_over: bool, is_idle: bool = False) -> str:
        doing = "Run it, and the words appear here" if is_idle else PHASES.get(self.phase, self.phase)
        return watch_view(self.timeline, self.texts, doing, is_over=is_over)

    def plan_html(self, *, is_over: bool) -> Any:
        if self.timeline.plan is None:
            return gr.skip()
        return _plan_html(
            self.timeline.plan, at=None if is_over else self.timeline.unit_now, is_planned=False
        )


def watch(services: Services) -> dict[str, Any]:
    """Lay the page out and wire it; return the event that plans for the slider, for when the page is opened."""
    block(_INTRO)
    prompt, start, stop, share, new_tokens = _panels(services.settings.limits)
    queue = queue_line("watch-queue")
    plan = block(_planning(), elem_id="watch-plan")
    live = block(_Watched().html(is_over=False, is_idle=True), elem_id="watch")
    model = services.catalogue.names[0]

    def on_share(prompt: str, share: float, new_tokens: float) -> str:
        try:
            return _plan_html(_plan(services, model, prompt, share, int(new_tokens))["plan"])
        except VisitorError as error:
            return notice("No plan", strip_paths(str(error)), kind="error")

    watched: dict[str, _Watched] = {}

    def on_run(
        prompt: str, share: float, new_tokens: float, request: gr.Request
    ) -> Generator[Outputs, None, None]:
        yield from _shown(services, watched, session_of(request), (model, prompt, share, int(new_tokens)))

    def on_stop(request: gr.Request) -> Outputs:
        found = watched.pop(session_of(request), None)
        html = gr.skip() if found is None else found.html(is_over=True)
        return html, gr.skip(), gr.Button(interactive=True), gr.Button(interactive=False)

    wire_run(
        services,
        [start.click],
        stop,
        on_run=on_run,
        on_stop=on_stop,
        inputs=[prompt, share, new_tokens],
        outputs=[live, plan, start, stop],
        queue=queue,
    )
    replan = {
        "fn": on_share,
        "inputs": [prompt, share, new_tokens],
        "outputs": plan,
        "show_progress": "hidden",
        "api_visibility": "private",
    }
    gr.on([share.change, new_tokens.release], trigger_mode="always_last", **replan)
    return replan


def _panels(limits: Limits) -> tuple[gr.Textbox, gr.Button, gr.Button, gr.Slider, gr.Slider]:
    with gr.Row(elem_classes=["ls-controls"]):
        with gr.Column(scale=3, min_width=320, elem_classes=["ls-panel"]):
            prompt = gr.Textbox(
                PROMPT,
                label="Prompt",
                lines=2,
                max_lines=6,
                max_length=limits.prompt_characters,
                elem_classes=["ls-prompt"],
            )
            with gr.Row(elem_classes=["ls-actions"]):
                start = gr.Button("Run it", variant="primary", scale=3, min_width=120, elem_id="watch-run")
                stop = gr.Button("Stop", scale=1, min_width=90, interactive=False, elem_id="watch-stop")
        with gr.Column(scale=2, min_width=300, elem_classes=["ls-panel"]):
            share = gr.Slider(
                0, 100, value=25, step=5, label="Memory, from the least to all", elem_id="watch-share"
            )
            new_tokens = gr.Slider(4, min(limits.new_tokens, 128), value=24, step=1, label="New tokens")
    return prompt, start, stop, share, new_tokens


def _planning() -> str:
    return '<p class="ls-status" role="status"><span>The planner is starting; the plan appears in a few seconds.</span></p>'


def _plan(services: Services, model: str, prompt: str, share: float, new_tokens: int) -> dict[str, Any]:
    source = services.job_runner.source_of(model)
    # the tokenizer is the worker's: a character is a token at most, in every vocabulary that knows bytes or letters
    prompt_tokens = len(prompt) + TEMPLATE_TOKENS
    return services.planner.ask(
        "plan",
        model=source,
        machine=None,
        prompt_tokens=prompt_tokens,
        new_tokens=new_tokens,
        share=share / 100,
    )


def _plan_html(plan: Mapping[str, Any], *, at: int | None = None, is_planned: bool = True) -> str:
    budget, cost = plan["ledger"]["device_budget_bytes"], plan["cost"]
    note = "Nothing was run for this." if is_planned else "This is what runs."
    told = (
        f'<p class="ls-status" role="status"><span>Planned for <b>{format_bytes(budget)}</b>: '
        f"{format_bytes(cost['read_bytes'])} read and {format_seconds(cost['sweep_s'])} for each token, "
        f"peak {format_bytes(total_bytes(plan, 'device'))}. {note}</span></p>"
    )
    return f'<section class="ls-plan">{told}{strip_view(plan, at=at)}{ledger_bar(plan)}</section>'


def _shown(
    services: Services, watched: dict[str, _Watched], session: str, asked: tuple[str, str, float, int]
) -> Generator[Outputs, None, None]:
    model, prompt, share, new_tokens = asked
    mine = watched[session] = _Watched()
    skip = gr.skip()
    try:
        yield mine.html(is_over=False), skip, gr.Button(interactive=False), gr.Button(interactive=True)
        budget = _plan(services, model, prompt, share, new_tokens)["plan"]["ledger"]["device_budget_bytes"]
        request = RunRequest(
            model=model,
            prompt=prompt,
            variants=("streamed",),
            new_tokens=new_tokens,
            budget=f"{budget} B",
            quality="none",
            timeline=True,
        )
        drawn_s, problem = 0.0, ""
        with closing(services.job_runner.start(request)) as steps:
            for step in steps:
                event = step.event
                if event is not None:
                    mine.timeline.take(event)
                    mine.phase = str(event.data.get("phase", mine.phase))
                    mine.texts += [str(event.data["text"])] if event.kind == "token" else []
                    if event.measurement is not None and event.measurement.status != "ok":
                        problem = event.measurement.reason
                now_s = time.monotonic()
                due = now_s - drawn_s > DRAW_EVERY_S
                drawn_s = now_s if due else drawn_s
                yield (
                    (mine.html(is_over=False), mine.plan_html(is_over=False), skip, skip)
                    if due
                    else (skip, skip, skip, skip)
                )
    except VisitorError as error:
        problem = str(error)
    finally:
        watched.pop(session, None)
    html = (
        mine.html(is_over=True)
        if not problem
        else notice("This did not run", strip_paths(problem), kind="error")
    )
    yield html, mine.plan_html(is_over=True), gr.Button(interactive=True), gr.Button(interactive=False)
