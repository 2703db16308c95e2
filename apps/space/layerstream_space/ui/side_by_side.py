"""Side by side: one prompt, the chosen variants one after another, their words in equal columns as they come."""

from __future__ import annotations

import time
from collections.abc import Generator
from contextlib import closing
from dataclasses import dataclass
from typing import Any

import gradio as gr

from layerstream_compare import list_variants

from ..errors import VisitorError
from ..job_runner import RunRequest
from ..run_state import RunState
from ..view.bars import plots_view
from ..view.columns import columns_view, empty_columns
from ..view.downloads import downloads_view
from ..view.elements import notice, title_of
from .services import DRAW_EVERY_S, Services, Sessions, block, queue_line, session_of, wire_run

EXAMPLES = (
    "What is the capital of France, and what is it known for?",
    "Explain in two sentences why the sky is blue.",
    "Write a short poem about a river that carries stones to the sea.",
    "List three good uses of a paper clip.",
)
DEFAULT_VARIANTS = ("streamed", "resident", "bnb-int8", "bnb-nf4")
BUDGETS = ("min", "80 MiB", "100 MiB", "150 MiB", "200 MiB", "300 MiB")

Outputs = tuple[Any, ...]
"""RunState, plots, downloads, Compare, Stop."""


@dataclass(frozen=True, slots=True)
class Controls:
    """What a link can fill in."""

    prompt: gr.Textbox
    variants: gr.CheckboxGroup
    new_tokens: gr.Slider
    budget: gr.Dropdown
    quality: gr.Radio
    model: gr.Dropdown


def available_variants() -> list[tuple[str, str]]:
    """Return the choices of variants: what this machine can run, by title and name."""
    return [
        (title_of(each.name), each.name) for each in list_variants("weights") if each.availability() is None
    ]


def side_by_side(services: Services) -> tuple[Controls, gr.Button]:
    """Lay the page out and wire it; return what a link can fill in, and the button that makes one."""
    limits = services.settings.limits
    chosen = [name for name in DEFAULT_VARIANTS if name in {value for _, value in available_variants()}][
        : limits.variants
    ]
    with gr.Row(elem_classes=["ls-controls"]):
        with gr.Column(scale=3, min_width=320, elem_classes=["ls-panel"]):
            prompt = gr.Textbox(
                EXAMPLES[0],
                label="Prompt",
                lines=4,
                max_lines=10,
                max_length=limits.prompt_characters,
                elem_classes=["ls-prompt"],
            )
            gr.Examples([[text] for text in EXAMPLES], [prompt], label="Or one of these", examples_per_page=4)
            with gr.Row(elem_classes=["ls-actions"]):
                compare = gr.Button("Compare", variant="primary", scale=3, min_width=120, elem_id="compare")
                stop = gr.Button(
                    "Stop", variant="secondary", scale=1, min_width=90, interactive=False, elem_id="stop"
                )
                share = gr.Button("Copy link", variant="secondary", scale=1, min_width=110, elem_id="share")
        with gr.Column(scale=2, min_width=300, elem_classes=["ls-panel"]):
            controls = _choices(services, prompt, chosen)
    queue = queue_line("queue")
    state = block(empty_columns(chosen), elem_id="answers")
    plots = block(plots_view([]), elem_id="plots")
    downloads = block(downloads_view([]), elem_id="downloads")
    _wire(services, controls, (state, plots, downloads, compare, stop), queue)
    return controls, share


def _choices(services: Services, prompt: gr.Textbox, chosen: list[str]) -> Controls:
    settings, names = services.settings, services.catalogue.names
    model = gr.Dropdown(
        list(names),
        value=names[0],
        label="Model",
        allow_custom_value=settings.any_model,
        visible=settings.any_model or len(names) > 1,
    )
    variants = gr.CheckboxGroup(
        available_variants(),
        value=chosen,
        label="Variants",
        info="The first exact one, streamed or in memory, is the reference of the others.",
        elem_classes=["ls-variants"],
        elem_id="variants",
    )
    most = settings.limits.new_tokens
    new_tokens = gr.Slider(4, most, value=min(40, most), step=1, label="New tokens")
    budget = gr.Dropdown(
        list(dict.fromkeys([settings.budget, *BUDGETS])),
        value=settings.budget,
        label="Memory of the streamed column",
        info="min is the least that works; or any size, such as 120 MiB.",
        allow_custom_value=True,
    )
    quality = gr.Radio(
        [("on its answer", "answer"), ("and on prose (slow)", "prose"), ("no", "none")],
        value="answer",
        label="Agreement with the exact model",
        elem_classes=["ls-choice"],
    )
    return Controls(prompt, variants, new_tokens, budget, quality, model)


def _wire(services: Services, controls: Controls, outputs: tuple[Any, ...], queue: gr.HTML) -> None:
    *_, compare, stop = outputs
    sessions = Sessions()

    def on_compare(
        prompt: str,
        variants: list[str],
        new_tokens: float,
        budget: str,
        quality: str,
        model: str,
        request: gr.Request,
    ) -> Generator[Outputs, None, None]:
        run_request = RunRequest(
            model=model,
            prompt=prompt,
            variants=tuple(variants),
            new_tokens=int(new_tokens),
            budget=(budget or "min").strip(),
            quality=quality,
        )
        yield from _shown(services, sessions, session_of(request), run_request)

    def on_stop(request: gr.Request) -> Outputs:
        found = sessions.take(session_of(request))
        if found is None:
            return gr.skip(), gr.skip(), gr.skip(), gr.Button(interactive=True), gr.Button(interactive=False)
        found.stop()
        return _final(found)

    inputs = [
        controls.prompt,
        controls.variants,
        controls.new_tokens,
        controls.budget,
        controls.quality,
        controls.model,
    ]
    wire_run(
        services,
        [compare.click, controls.prompt.submit],
        stop,
        on_run=on_compare,
        on_stop=on_stop,
        inputs=inputs,
        outputs=outputs,
        queue=queue,
    )


def _shown(
    services: Services, sessions: Sessions, session: str, request: RunRequest
) -> Generator[Outputs, None, None]:
    skip = gr.skip()
    ready = gr.Button(interactive=True), gr.Button(interactive=False)
    drawn_s, state = 0.0, None
    try:
        with closing(services.job_runner.start(request)) as steps:
            for step in steps:
                if state is None:
                    state = step.state
                    sessions.put(session, state)
                    yield (
                        skip,
                        plots_view([]),
                        downloads_view([]),
                        gr.Button(interactive=False),
                        gr.Button(interactive=True),
                    )
                now_s = time.monotonic()
                if step.event is not None and step.event.measurement is not None:
                    yield columns_view(state, now_s), plots_view(state.measurements), skip, skip, skip
                elif now_s - drawn_s > DRAW_EVERY_S:
                    drawn_s = now_s
                    yield columns_view(state, now_s), skip, skip, skip, skip
    except VisitorError as error:
        yield notice("This cannot be run", str(error), kind="error"), skip, skip, *ready
        return
    finally:
        sessions.take(session)
    if state is not None:
        yield _final(state)


def _final(state: RunState) -> Outputs:
    return (
        columns_view(state, time.monotonic()),
        plots_view(state.measurements),
        downloads_view(state.measurements),
        gr.Button(interactive=True),
        gr.Button(interactive=False),
    )
