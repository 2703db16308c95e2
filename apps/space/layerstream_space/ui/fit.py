"""Will it fit?: any model on any machine, planned from its config. No weights are downloaded."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import gradio as gr

from layerstream import KNOWN_MODELS, Workload

from ..errors import VisitorError
from ..machines import MACHINES
from ..models import hub_id, strip_paths
from ..planner import ModelSource
from ..view.elements import notice, status_line
from ..view.plan import fit_view, known_table
from .services import Services, block

FROM_LIST, FROM_HUB, FROM_CONFIG = "A known model", "A Hub id", "A config.json"
KNOWN = {known.title: name for name, known in KNOWN_MODELS.items()}
"""Titles of well-known models, and layerstream's names for them."""

FIRST = KNOWN_MODELS["llama-2-70b"].title
"""The model that is chosen at first."""

DTYPES = {
    "as published": "auto",
    "16-bit (fp16)": "float16",
    "16-bit (bf16)": "bfloat16",
    "32-bit": "float32",
}

_EVENT_OPTIONS: dict[str, Any] = {
    "show_progress": "minimal",
    "trigger_mode": "always_last",
    "api_visibility": "private",
}
_STARTING = status_line("<span>The planner is starting. The first plan takes a few seconds.</span>")
_INTRO = (
    "<p class=\"ls-intro\">The planner needs only a model's <b>config</b> and a machine's <b>figures</b>. "
    "It shows where every block would live, how much memory that takes to the byte, and how long a token "
    "would take. The same planner drives the streamed model.</p>"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Controls:
    """What the visitor chooses, and the button."""

    origin: gr.Radio
    known: gr.Dropdown
    hub: gr.Textbox
    config: gr.Textbox
    dtype: gr.Radio
    machine: gr.Dropdown
    prompt_tokens: gr.Slider
    new_tokens: gr.Slider
    start: gr.Button


def fit(services: Services) -> dict[str, Any]:
    """Lay out and wire the page; return the event that makes the plan, for when the page is opened."""
    block(_INTRO)
    controls = _controls(services)
    result = block(_STARTING, elem_id="fit")
    _sizes_on_request(services)
    return _wire_plan(services, controls, result)


def _controls(services: Services) -> _Controls:
    with gr.Row(elem_classes=["ls-controls"]):
        with gr.Column(scale=1, min_width=300, elem_classes=["ls-panel"]):
            origin, known, hub, config, dtype = _model_panel(services)
        with gr.Column(scale=1, min_width=300, elem_classes=["ls-panel"]):
            machine = gr.Dropdown(
                list(MACHINES), value=next(iter(MACHINES)), label="Machine", elem_id="fit-machine"
            )
            prompt_tokens = gr.Slider(16, 32_768, value=512, step=16, label="Prompt tokens")
            new_tokens = gr.Slider(1, 4096, value=128, step=1, label="New tokens")
            start = gr.Button("Plan it", variant="primary", elem_id="plan")
    return _Controls(
        origin=origin,
        known=known,
        hub=hub,
        config=config,
        dtype=dtype,
        machine=machine,
        prompt_tokens=prompt_tokens,
        new_tokens=new_tokens,
        start=start,
    )


def _sizes_on_request(services: Services) -> None:
    with gr.Row():
        show = gr.Button(
            "Show the sizes of well-known models", size="sm", scale=0, min_width=300, elem_id="count"
        )
    table = block("", elem_id="known-table")
    show.click(lambda: _known_table(services), None, table, **_EVENT_OPTIONS)


def _wire_plan(services: Services, controls: _Controls, result: gr.HTML) -> dict[str, Any]:
    def on_plan(
        origin: str, known: str, hub: str, config: str, dtype: str, machine: str, prompt: float, new: float
    ) -> str:
        workload = Workload(prompt_tokens=int(prompt), new_tokens=int(new))
        try:
            source = _source(services, origin, known, hub, config)
            answer = services.planner.plan(
                source, machine=MACHINES[machine], workload=workload, dtype=DTYPES.get(dtype, "auto")
            )
        except VisitorError as error:
            return notice("This cannot be planned", strip_paths(str(error)), kind="error")
        return fit_view(answer, machine)

    model = [controls.origin, controls.known, controls.hub, controls.config, controls.dtype]
    inputs = [*model, controls.machine, controls.prompt_tokens, controls.new_tokens]
    changes = [
        controls.known.change,
        controls.machine.change,
        controls.dtype.change,
        controls.prompt_tokens.release,
        controls.new_tokens.release,
        controls.hub.submit,
    ]
    event = {"fn": on_plan, "inputs": inputs, "outputs": result, **_EVENT_OPTIONS}
    gr.on([controls.start.click, *changes], **event)
    return event


def _model_panel(services: Services) -> tuple[gr.Radio, gr.Dropdown, gr.Textbox, gr.Textbox, gr.Radio]:
    names = [*KNOWN, *services.catalogue.names]
    origin = gr.Radio(
        [FROM_LIST, FROM_HUB, FROM_CONFIG], value=FROM_LIST, label="Model", elem_classes=["ls-choice"]
    )
    known = gr.Dropdown(names, value=FIRST, label="Known model", elem_id="fit-model")
    hub = gr.Textbox(
        label="Hub id", placeholder="owner/name", max_length=200, visible=False, elem_id="fit-hub"
    )
    config = gr.Textbox(
        label="Content of its config.json",
        placeholder='{"model_type": "llama", …}',
        lines=5,
        max_lines=8,
        max_length=services.settings.limits.config_characters,
        visible=False,
        elem_id="fit-config",
    )
    dtype = gr.Radio(list(DTYPES), value="as published", label="Precision", elem_classes=["ls-choice"])
    origin.change(
        lambda chosen: [gr.update(visible=chosen == each) for each in (FROM_LIST, FROM_HUB, FROM_CONFIG)],
        origin,
        [known, hub, config],
        queue=False,
        show_progress="hidden",
        api_visibility="private",
    )
    return origin, known, hub, config, dtype


def _source(services: Services, origin: str, known: str, hub: str, config: str) -> ModelSource:
    if origin == FROM_HUB:
        return ModelSource(model=hub_id(hub))
    if origin == FROM_LIST:
        return listed_source(services, known)
    limit = services.settings.limits.config_characters
    if not config.strip():
        raise VisitorError("Paste the whole content of a config.json.")
    if len(config) > limit:
        raise VisitorError(f"This config has {len(config)} characters; the limit here is {limit}.")
    return ModelSource(config=config)


def listed_source(services: Services, name: str) -> ModelSource:
    """Return the source of a known model or of one of this page's models.

    Raises:
        VisitorError: it is not on the list.
    """
    if name in KNOWN:
        return ModelSource(known=KNOWN[name])
    return ModelSource(model=services.job_runner.source_of(name))


def _known_table(services: Services) -> str:
    return known_table(
        {
            title: services.planner.profile(ModelSource(known=name), device="cuda").num_parameters
            for title, name in KNOWN.items()
        }
    )
