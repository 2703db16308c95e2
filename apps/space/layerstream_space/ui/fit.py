"""Will it fit?: any model on any machine, planned from its shape; no weight is downloaded and nothing is run."""

from __future__ import annotations

from typing import Any

import gradio as gr

from ..errors import VisitorError
from ..machines import MACHINES, machine_called
from ..models import hub_id, strip_paths
from ..view.elements import notice
from ..view.plan import fit_view, known_table
from .services import Services, block

FROM_LIST, FROM_HUB, FROM_CONFIG = "A known model", "A Hub id", "A config.json"
KNOWN = {
    "Llama-2-70B": "llama-2-70b",
    "BLOOM 176B": "bloom-176b",
    "GPT-3 175B": "gpt-3-175b",
    "Falcon-40B": "falcon-40b",
    "MPT-30B": "mpt-30b",
    "StarCoder 15.5B": "starcoder-15.5b",
}
"""Titles of layerstream's known models, and its names for them."""

DTYPES = {
    "as published": "auto",
    "16-bit (fp16)": "float16",
    "16-bit (bf16)": "bfloat16",
    "32-bit": "float32",
}

_STARTING = '<p class="ls-status" role="status"><span>The planner is starting; the first plan takes some seconds.</span></p>'
_INTRO = (
    '<p class="ls-intro">The planner knows a model by its <b>config</b> and a machine by its <b>numbers</b>. It says where every '
    "block would live, what memory that takes to the byte, and how long a token would take. It is the same planner that runs the "
    "streamed column.</p>"
)


def fit(services: Services) -> dict[str, Any]:
    """Lay the page out and wire it; return the event that plans, for when the page is opened."""
    block(_INTRO)
    with gr.Row(elem_classes=["ls-controls"]):
        with gr.Column(scale=1, min_width=300, elem_classes=["ls-panel"]):
            origin, known, hub, config, dtype = _model_panel(services)
        with gr.Column(scale=1, min_width=300, elem_classes=["ls-panel"]):
            machine = gr.Dropdown(
                list(MACHINES), value=next(iter(MACHINES)), label="Machine", elem_id="fit-machine"
            )
            prompt_tokens = gr.Slider(16, 32_768, value=512, step=16, label="Prompt tokens")
            new_tokens = gr.Slider(1, 4096, value=128, step=1, label="New tokens")
            ask = gr.Button("Plan it", variant="primary", elem_id="plan")
    result = block(_STARTING, elem_id="fit")
    with gr.Row():
        table_button = gr.Button(
            "Count the well-known models", size="sm", scale=0, min_width=240, elem_id="count"
        )
    table = block("", elem_id="known-table")

    def on_plan(
        origin: str, known: str, hub: str, config: str, dtype: str, machine: str, prompt: float, new: float
    ) -> str:
        try:
            subject = _subject(services, origin, known, hub, config)
            return plan_html(services, subject, machine, DTYPES.get(dtype, "auto"), int(prompt), int(new))
        except VisitorError as error:
            return notice("No plan for this", strip_paths(str(error)), kind="error")

    inputs = [origin, known, hub, config, dtype, machine, prompt_tokens, new_tokens]
    options: dict[str, Any] = {
        "show_progress": "minimal",
        "trigger_mode": "always_last",
        "api_visibility": "private",
    }
    changes = [
        known.change,
        machine.change,
        dtype.change,
        prompt_tokens.release,
        new_tokens.release,
        hub.submit,
    ]
    gr.on([ask.click, *changes], on_plan, inputs, result, **options)
    table_button.click(lambda: _table(services), None, table, **options)
    return {"fn": on_plan, "inputs": inputs, "outputs": result, **options}


def _model_panel(services: Services) -> tuple[gr.Radio, gr.Dropdown, gr.Textbox, gr.Textbox, gr.Radio]:
    names = [*KNOWN, *services.catalogue.names]
    origin = gr.Radio(
        [FROM_LIST, FROM_HUB, FROM_CONFIG], value=FROM_LIST, label="Model", elem_classes=["ls-choice"]
    )
    known = gr.Dropdown(names, value=names[0], label="Known model", elem_id="fit-model")
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


def plan_html(
    services: Services, subject: dict[str, Any], machine: str, dtype: str, prompt_tokens: int, new_tokens: int
) -> str:
    """Return the answer of the planner as HTML.

    Raises:
        VisitorError: why there is none.
    """
    answer = services.planner.ask(
        "plan",
        **subject,
        machine=machine_called(machine),
        dtype=dtype,
        prompt_tokens=prompt_tokens,
        new_tokens=new_tokens,
    )
    return fit_view(answer, machine)


def _subject(services: Services, origin: str, known: str, hub: str, config: str) -> dict[str, Any]:
    if origin == FROM_HUB:
        return {"model": hub_id(hub)}
    if origin == FROM_CONFIG:
        if not config.strip():
            raise VisitorError("Paste the whole content of a config.json.")
        if len(config) > services.settings.limits.config_characters:
            raise VisitorError(
                f"This config has {len(config)} characters; at most {services.settings.limits.config_characters} here."
            )
        return {"config": config}
    return subject_called(services, known)


def subject_called(services: Services, name: str) -> dict[str, Any]:
    """Return what the planner is asked for a name of the list.

    Raises:
        VisitorError: it is not on the list.
    """
    return {"known": KNOWN[name]} if name in KNOWN else {"model": services.job_runner.source_of(name)}


def _table(services: Services) -> str:
    card = machine_called(next(iter(MACHINES)))
    rows = []
    for title, name in KNOWN.items():
        model = services.planner.ask("plan", known=name, machine=card)["model"]
        rows.append(
            {
                "title": title,
                "parameters": model["parameters"],
                "bytes_by_precision": model["bytes_by_precision"],
            }
        )
    return known_table(rows)
