"""Side by side: one prompt, the chosen variants one after another, their answers streaming into columns."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

import gradio as gr

from layerstream_compare import list_variants

from ..errors import VisitorError
from ..host_info import read_host_info
from ..job_runner import RunRequest
from ..run_state import RunState
from ..settings import Limits, Settings
from ..view.bars import plots_view
from ..view.columns import columns_view, empty_columns
from ..view.downloads import downloads_view
from ..view.elements import title_of
from ..view.how_to_read import how_to_read_columns
from .run_loop import Pictures, RunPage, wire_run
from .services import Services, block, prompt_box, queue_line, run_buttons

EXAMPLES = (
    "What is the capital of France, and what is it known for?",
    "Explain in two sentences why the sky is blue.",
    "Write a short poem about a river that carries stones to the sea.",
    "List three good uses of a paper clip.",
)
OPEN_CONTROLS_JS = "() => { document.body.classList.add('ls-open'); return []; }"
"""The style sheet folds the controls once there is a run; this class on the page opens them again."""

DEFAULT_VARIANTS = ("streamed", "resident", "bnb-int8", "bnb-nf4")


@dataclass(frozen=True, slots=True)
class Controls:
    """The controls that a link can fill in, and the model."""

    prompt: gr.Textbox
    variants: gr.CheckboxGroup
    new_tokens: gr.Slider
    budget: gr.Textbox
    quality: gr.Radio
    model: gr.Dropdown
    host_budget: gr.Textbox
    rounds: gr.Slider

    @property
    def inputs(self) -> list[Any]:
        """The arguments of a request, in their order."""
        return [
            self.prompt,
            self.variants,
            self.new_tokens,
            self.budget,
            self.quality,
            self.model,
            self.host_budget,
            self.rounds,
        ]


def available_variants() -> list[tuple[str, str]]:
    """Return the variants that can run on this machine, as pairs of title and name."""
    return [
        (title_of(variant.name), variant.name)
        for variant in list_variants("weights")
        if variant.availability() is None
    ]


def side_by_side(services: Services) -> tuple[Controls, gr.Button]:
    """Lay out and wire the page; return its controls and the button that copies a link."""
    limits = services.settings.limits
    chosen = _first_choice(limits)
    with gr.Row(elem_classes=["ls-controls"]):
        with gr.Column(scale=3, min_width=320, elem_classes=["ls-panel"]):
            prompt, start, stop, share = _prompt_panel(limits)
        with gr.Column(scale=2, min_width=300, elem_classes=["ls-panel"]):
            controls = _choices(services, prompt, chosen)
    queue = queue_line("queue")
    idle = (empty_columns(chosen), plots_view([]), downloads_view([]))
    names = ("answers", "plots", "downloads")
    answers = block(idle[0], elem_id=names[0])
    block(how_to_read_columns(has_device=read_host_info().has_gpu))
    blocks = [answers, *(block(html, elem_id=name) for html, name in zip(idle[1:], names[1:], strict=True))]
    page = RunPage(
        make_request=_request,
        draw=_draw,
        inputs=controls.inputs,
        blocks=blocks,
        start=start,
        stop=stop,
        queue=queue,
        idle=idle,
    )
    wire_run(services, page, prompt.submit)
    return controls, share


def _first_choice(limits: Limits) -> list[str]:
    available = {name for _, name in available_variants()}
    return [name for name in DEFAULT_VARIANTS if name in available][: limits.variants]


def _prompt_panel(limits: Limits) -> tuple[gr.Textbox, gr.Button, gr.Button, gr.Button]:
    prompt = prompt_box(EXAMPLES[0], limits, lines=2, max_lines=10)
    gr.Examples([[text] for text in EXAMPLES], [prompt], label="Or pick an example", examples_per_page=4)
    with gr.Row(elem_classes=["ls-actions"]):
        start, stop = run_buttons("Compare", start_id="compare", stop_id="stop")
        share = gr.Button("Copy link", scale=1, min_width=110, elem_id="share")
        change = gr.Button("Change", scale=1, min_width=90, elem_id="change")
    change.click(None, None, None, js=OPEN_CONTROLS_JS, api_visibility="private")
    return prompt, start, stop, share


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
        info="Answers are compared with the first exact variant (streamed or in memory).",
        elem_classes=["ls-variants"],
        elem_id="variants",
    )
    with gr.Accordion("More settings: length, memory, agreement, rounds", open=False, elem_id="more"):
        max_tokens = settings.limits.new_tokens
        new_tokens = gr.Slider(4, max_tokens, value=min(40, max_tokens), step=1, label="New tokens")
        budget, host_budget = _budgets(settings, has_gpu=read_host_info().has_gpu)
        quality = gr.Radio(
            [("on its answer", "answer"), ("also on prose (slow)", "prose"), ("no", "none")],
            value="answer",
            label="Measure agreement with the exact model",
            elem_classes=["ls-choice"],
        )
        rounds = gr.Slider(
            1,
            settings.limits.rounds,
            value=1,
            step=1,
            label="Rounds",
            info="Each variant is measured this often, in turns; the figures are medians.",
            elem_id="rounds",
        )
    return Controls(prompt, variants, new_tokens, budget, quality, model, host_budget, rounds)


def _budgets(settings: Settings, *, has_gpu: bool) -> tuple[gr.Textbox, gr.Textbox]:
    """Return the controls of the streamed model's budgets; the second one counts only with a GPU.

    They are plain text boxes: gradio's drop-down replaces typed text by the first entry that contains it.
    """
    budget = gr.Textbox(
        settings.budget,
        label=f"{'Device memory' if has_gpu else 'Memory'} budget of the streamed model",
        info="min is the smallest budget that works. Or give a size with its unit, such as 80 MiB or 1 GiB.",
        max_lines=1,
        elem_id="budget",
    )
    host_budget = gr.Textbox(
        "min",
        label="Host memory budget of the streamed model",
        info=(
            "Weights that fit are kept in host memory and not read from disk: min, auto (what is free), or a "
            "size such as 8 GiB."
        ),
        max_lines=1,
        elem_id="host-budget",
        visible=has_gpu,
    )
    return budget, host_budget


def _request(
    prompt: str,
    variants: list[str],
    new_tokens: float,
    budget: str,
    quality: str,
    model: str,
    host_budget: str,
    rounds: float,
) -> RunRequest:
    return RunRequest(
        model=model,
        prompt=prompt,
        variants=tuple(variants),
        new_tokens=int(new_tokens),
        budget=_typed_budget(budget),
        host_budget=_typed_budget(host_budget),
        quality=quality,
        rounds=int(rounds),
    )


def _typed_budget(text: str) -> str:
    """Return a budget as typed, `min` if nothing was.

    Raises:
        VisitorError: it is a bare number. Elsewhere that means bytes, which no visitor means.
    """
    budget = (text or "").strip() or "min"
    if budget.replace(".", "", 1).isdecimal():
        raise VisitorError(f"The budget {budget} has no unit. Write {budget} MiB or {budget} GiB, or min.")
    return budget


def _draw(state: RunState) -> Pictures:
    return (
        columns_view(state, time.monotonic()),
        plots_view(state.measurements),
        downloads_view(state.measurements if state.is_over else []),
    )
