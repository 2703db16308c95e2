"""`layerstream trace`: draw a timeline of reads, copies, waits and computation, measured or simulated."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ..spec.known_models import KNOWN_MODELS
from ..spec.options import LoadOptions, Workload
from . import backend, parts
from .options import MachineText, Model, model_or_default, takes_load_options
from .plan import plan_on_machine
from .printing import LOADING_TOKENIZER, loading_status, show, working

if TYPE_CHECKING:
    from ..spec.timeline import Span

Out = Annotated[
    Path,
    typer.Option(
        "--out", "-o", metavar="OUT", help="Write OUT.json (for Perfetto) and OUT.html (a web page)."
    ),
]
Prompt = Annotated[str, typer.Option("--prompt", "-p", metavar="TEXT", help="The prompt.")]
Sweeps = Annotated[
    int, typer.Option(help="Sweeps to draw: the prompt's, then one per token.", metavar="N", min=1, max=100)
]
Simulate = Annotated[
    bool, typer.Option("--simulate", help="Draw what the plan predicts: nothing is run, no weights are read.")
]


@takes_load_options()
def trace_command(
    model: Model = None,
    out: Out = Path("timeline"),
    prompt: Prompt = "The capital of France is",
    sweeps: Sweeps = 4,
    *,
    options: LoadOptions,
    simulate: Simulate = False,
    machine: MachineText = None,
) -> None:
    """Run a short prompt and draw when blocks were read, copied, waited for and computed."""
    html, perfetto = out.with_name(out.name + ".html"), out.with_name(out.name + ".json")
    parts.check_trace_path(html)
    model = model_or_default(model, options)
    if simulate or machine is not None or model in KNOWN_MODELS:
        spans, subtitle = _simulate(model, machine, options, sweeps)
    else:
        spans, subtitle = _measure(model, prompt, options, sweeps)
    for path in (html, perfetto):
        parts.write_trace(spans, path, model=model, subtitle=subtitle)
    show(f"{html} (open it in a browser)\n{perfetto} (open it at ui.perfetto.dev)")


def _measure(model: str, prompt: str, options: LoadOptions, sweeps: int) -> tuple[Sequence[Span], str]:
    with working(LOADING_TOKENIZER):
        tokenizer = backend.load_tokenizer(model, options)
    request = parts.GenerationRequest(
        prompt=backend.encode_prompt(tokenizer, prompt, chat=False), max_new_tokens=sweeps
    )
    workload = Workload(prompt_tokens=len(request.prompt), new_tokens=sweeps)
    backend.download_weights(model, options, shown=True)
    with loading_status() as on_progress:
        streamed = backend.load_with(
            model, replace(options, workload=workload), on_progress=on_progress, on_fetch=on_progress
        )
    with streamed:
        answer = backend.generate_answer(streamed, tokenizer, request, shows_text=False)
        plan = streamed.plan
        return streamed.timeline.spans(), f"Measured on {plan.device} in {plan.dtype}; {answer.explain()}."


def _simulate(
    model: str, machine_text: str | None, options: LoadOptions, sweeps: int
) -> tuple[Sequence[Span], str]:
    if machine_text is None:
        machine = backend.probe_machine(device=options.device)
    else:
        machine = parts.machine_from_text(machine_text)
    workload = Workload(prompt_tokens=1, new_tokens=sweeps)
    plan, profile = plan_on_machine(model, machine, replace(options, workload=workload))
    spans = backend.simulate_spans(plan, profile, machine, 1, sweeps)
    return spans, f"Simulated for {machine.name} in {plan.dtype}, one token per sweep; nothing was run."
