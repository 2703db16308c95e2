"""Will it fit?: any model on any machine, planned from its config. No weights are downloaded."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from typing import Any

import gradio as gr

from layerstream import KNOWN_MODELS, Machine

from ..errors import VisitorError
from ..machines import MACHINE_KEYS, MACHINES, Figures, choose, figures_of
from ..models import strip_paths
from ..planner import many_prompts
from ..view.elements import notice, status_line
from ..view.fit import FitText, fit_view, known_table
from .fit_request import (
    DTYPES,
    FIRST,
    FROM_CONFIG,
    FROM_HUB,
    FROM_LIST,
    KNOWN,
    MOST_NEW_TOKENS,
    MOST_PROMPT_TOKENS,
    FitRequest,
    command_of,
    known_model,
    source_of,
    workload_of,
)
from .run_loop import session_of
from .services import Services, block

_FIRST_MACHINE = next(iter(MACHINE_KEYS))

_BOXES = {
    "gpu": "Card, GB",
    "ram": "RAM, GB",
    "disk": "Disk, GB/s",
    "pcie": "PCIe, GB/s",
}
"""Labels of the machine's figures."""

_BOXES_NOTE = (
    '<p class="ls-note">Write your own figures: the memory of the graphics card (0 for none), the RAM, how '
    "fast the disk reads, and how fast the bus copies to the card.</p>"
)

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
_COPY_JS = """(origin, known, hub, config, dtype, machine, gpu, ram, disk, pcie, prompt, answer) => {
  const isPasted = origin === FROM_CONFIG;
  const done = isPasted ? "Copied, without the config" : "Link copied";
  const query = {tab: "fit", machine, gpu, ram, disk, pcie};
  Object.assign(query, {prompt_tokens: prompt, new_tokens: answer});
  if (!isPasted) query.model = origin === FROM_HUB ? hub : known;
  if (dtype !== "auto") query.dtype = dtype;
  window.layerstream.copyLink(query, "#fit-share", done);
  return [];
}""".replace("FROM_CONFIG", json.dumps(FROM_CONFIG)).replace("FROM_HUB", json.dumps(FROM_HUB))
"""Its arguments are the controls, in their order."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FitControls:
    """What the visitor chooses: one component for each attribute of `FitRequest`, in its order."""

    origin: gr.Radio
    known: gr.Dropdown
    hub: gr.Textbox
    config: gr.Textbox
    dtype: gr.Radio
    machine: gr.Dropdown
    gpu: gr.Number
    ram: gr.Number
    disk: gr.Number
    pcie: gr.Number
    prompt_tokens: gr.Slider
    new_tokens: gr.Slider

    @property
    def components(self) -> list[Any]:
        """All of them, in order."""
        return [getattr(self, each.name) for each in fields(self)]

    @property
    def figures(self) -> list[Any]:
        """The boxes of the machine's figures."""
        return [self.gpu, self.ram, self.disk, self.pcie]


def fit(services: Services) -> tuple[dict[str, Any], FitControls]:
    """Lay out and wire the page.

    Returns:
        The event that makes the plan, for when the page is opened, and the controls, which addresses fill.
    """
    block(_INTRO)
    with gr.Row(elem_classes=["ls-controls"]):
        with gr.Column(scale=1, min_width=300, elem_classes=["ls-panel"]):
            model = _model_panel(services)
            with gr.Row(elem_classes=["ls-actions"]):
                start = gr.Button("Plan it", variant="primary", scale=3, min_width=120, elem_id="plan")
                share = gr.Button("Copy link", scale=1, min_width=120, elem_id="fit-share")
        with gr.Column(scale=1, min_width=300, elem_classes=["ls-panel"]):
            machine = _machine_panel()
    controls = FitControls(**model, **machine)
    result = block(_STARTING, elem_id="fit")
    block(known_table(KNOWN_MODELS))
    share.click(None, controls.components, None, js=_COPY_JS, api_visibility="private")
    return _wire_plan(services, controls, start, result), controls


def _wire_plan(
    services: Services, controls: FitControls, start: gr.Button, result: gr.HTML
) -> dict[str, Any]:
    newest = _NewestPlans()

    def on_plan(visitor: gr.Request, *values: Any) -> Iterator[Any]:
        number = newest.begin(session_of(visitor))
        for html in _plan_or_refusal(services, values):
            yield html if newest.is_newest(session_of(visitor), number) else gr.skip()

    def on_machine(key: str) -> list[Any]:
        try:
            figures = figures_of(_base(services, key))
        except VisitorError:
            # planning says why
            return [gr.skip() for _ in controls.figures]
        return [getattr(figures, each.name) for each in fields(figures)]

    event = {"fn": on_plan, "inputs": controls.components, "outputs": result, **_EVENT_OPTIONS}
    # `input` is what a visitor does; an address that fills the page plans once, at its end
    changes = [
        controls.known.input,
        controls.dtype.input,
        *(box.input for box in controls.figures),
        controls.prompt_tokens.release,
        controls.new_tokens.release,
        controls.hub.submit,
    ]
    gr.on([start.click, *changes], **event)
    filled = controls.machine.input(
        on_machine, controls.machine, controls.figures, show_progress="hidden", api_visibility="private"
    )
    filled.then(**event)
    return event


class _NewestPlans:
    """Tells whether a page has asked for another plan since: a slow answer must not replace a later one."""

    _MOST_PAGES = 1000

    def __init__(self) -> None:
        self._numbers: dict[str, int] = {}
        self._count = itertools.count()

    def begin(self, page: str) -> int:
        """Return the number of the plan that `page` asks for now."""
        self._numbers.pop(page, None)
        number = self._numbers[page] = next(self._count)
        while len(self._numbers) > self._MOST_PAGES:
            self._numbers.pop(next(iter(self._numbers)), None)
        return number

    def is_newest(self, page: str, number: int) -> bool:
        """Return whether `page` has asked for no plan after this one."""
        return self._numbers.get(page, number) == number


def _plan_or_refusal(services: Services, values: Sequence[Any]) -> Iterator[str]:
    try:
        yield from _plan_html(services, FitRequest.from_values(values))
    except VisitorError as error:
        yield notice("This cannot be planned", strip_paths(str(error)), kind="error")


def _plan_html(services: Services, request: FitRequest) -> Iterator[str]:
    """Yield the answer at once, and again when it is known how long many prompts take."""
    workload = workload_of(request)
    figures = Figures(gpu=request.gpu, ram=request.ram, disk=request.disk, pcie=request.pcie)
    base = _base(services, request.machine)
    chosen = choose(base, figures)
    source = source_of(services, request)
    answer = services.planner.plan(source, machine=chosen.machine, workload=workload, dtype=request.dtype)
    known = known_model(request)
    is_as_listed = figures == figures_of(base)
    text = FitText(
        machine_title=MACHINE_KEYS[request.machine] if is_as_listed else figures.title,
        hub_id="" if known is None else known.hub_id,
        note="" if known is None else known.note,
        command=command_of(request, chosen.text),
    )
    yield fit_view(answer, None, text)
    if answer.plan is not None:
        yield fit_view(answer, many_prompts(answer), text)


def _base(services: Services, key: str) -> Machine:
    return MACHINES[MACHINE_KEYS[key]] or services.planner.this_machine()


def _model_panel(services: Services) -> dict[str, Any]:
    names = [*KNOWN.items(), *((name, name) for name in services.catalogue.names)]
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
    dtype = gr.Radio(list(DTYPES.items()), value="auto", label="Precision", elem_classes=["ls-choice"])
    origin.change(
        lambda chosen: [gr.update(visible=chosen == each) for each in (FROM_LIST, FROM_HUB, FROM_CONFIG)],
        origin,
        [known, hub, config],
        queue=False,
        show_progress="hidden",
        api_visibility="private",
    )
    return {"origin": origin, "known": known, "hub": hub, "config": config, "dtype": dtype}


def _machine_panel() -> dict[str, Any]:
    machines = [(title, key) for key, title in MACHINE_KEYS.items()]
    first = MACHINES[MACHINE_KEYS[_FIRST_MACHINE]]
    assert first is not None, "the first machine's figures fill the boxes before anything is measured"
    figures = figures_of(first)
    machine = gr.Dropdown(machines, value=_FIRST_MACHINE, label="Machine", elem_id="fit-machine")
    with gr.Row(elem_classes=["ls-numbers"]):
        boxes = {
            name: gr.Number(
                getattr(figures, name), label=label, minimum=0, min_width=120, elem_id=f"fit-{name}"
            )
            for name, label in _BOXES.items()
        }
    block(_BOXES_NOTE)
    prompt_tokens = gr.Slider(16, MOST_PROMPT_TOKENS, value=512, step=16, label="Prompt tokens")
    new_tokens = gr.Slider(1, MOST_NEW_TOKENS, value=128, step=1, label="New tokens")
    return {"machine": machine, **boxes, "prompt_tokens": prompt_tokens, "new_tokens": new_tokens}
