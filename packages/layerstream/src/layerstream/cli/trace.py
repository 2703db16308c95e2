"""`layerstream trace`: a picture of who waited for whom, measured or simulated.

Room: surfaces.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from .. import Workload, load, probe_machine, profile_model
from ..architecture.known_models import KNOWN_MODELS, known_config
from ..engine.tokenizer import load_tokenizer
from ..planning.simulate import simulate_spans
from ..spec.timeline import Span
from .options import Budget, Device, Dtype, MachineText, Model, machine_from_text, model_or_default
from .plan import plan_on_machine
from .printing import err_console, out_console
from .session import Sampling, answer, encode_prompt
from .trace_files import check_trace_path, write_trace

Out = Annotated[
    Path, typer.Option("--out", "-o", help="Written as OUT.json (Perfetto) and OUT.html (a page of its own).")
]
Prompt = Annotated[str, typer.Option("--prompt", "-p", help="The prompt.")]
Sweeps = Annotated[int, typer.Option(help="Sweeps to draw: the prompt's, then one a token.", min=1, max=100)]
Simulate = Annotated[
    bool, typer.Option("--simulate", help="Draw what the plan predicts; nothing is run and no weight read.")
]


def trace_command(
    model: Model = None,
    out: Out = Path("timeline"),
    prompt: Prompt = "The capital of France is",
    sweeps: Sweeps = 4,
    budget: Budget = "auto",
    device: Device = "auto",
    dtype: Dtype = "auto",
    simulate: Simulate = False,
    machine: MachineText = None,
) -> None:
    """Run a short prompt (or, with --simulate, only the plan) and write its timeline of reads, copies, waits and computing."""
    html, perfetto = out.with_name(out.name + ".html"), out.with_name(out.name + ".json")
    check_trace_path(html)
    model = model_or_default(model)
    if simulate or machine is not None or model in KNOWN_MODELS:
        spans, subtitle = _simulated(model, machine, budget=budget, device=device, dtype=dtype, sweeps=sweeps)
    else:
        spans, subtitle = _measured(model, prompt, budget=budget, device=device, dtype=dtype, sweeps=sweeps)
    for path in (html, perfetto):
        write_trace(spans, path, model=model, subtitle=subtitle)
    out_console().print(
        f"{html} (open it in a browser)\n{perfetto} (load it at ui.perfetto.dev)", markup=False
    )


def _measured(
    model: str, prompt: str, *, budget: str, device: str, dtype: str, sweeps: int
) -> tuple[Sequence[Span], str]:
    tokenizer = load_tokenizer(model, revision=None, trust_remote_code=False)
    inputs = encode_prompt(tokenizer, prompt, chat=False)
    workload = Workload(prompt_tokens=int(inputs["input_ids"].shape[1]), new_tokens=sweeps)
    with err_console().status("planning and loading"):
        streamed = load(model, budget=budget, device=device, dtype=dtype, workload=workload)
    with streamed:
        result = answer(
            streamed, tokenizer, inputs, sampling=Sampling(max_new_tokens=sweeps), shows_text=False
        )
        plan = streamed.plan
        return streamed.timeline.spans(), f"Measured on {plan.device} in {plan.dtype}; {result.explain()}."


def _simulated(
    model: str, machine_text: str | None, *, budget: str, device: str, dtype: str, sweeps: int
) -> tuple[Sequence[Span], str]:
    machine = machine_from_text(machine_text) if machine_text is not None else probe_machine(device=device)
    workload = Workload(prompt_tokens=1, new_tokens=sweeps)
    plan = plan_on_machine(model, machine, workload, budget=budget, dtype=dtype)
    profile = profile_model(
        known_config(model) if model in KNOWN_MODELS else model, dtype=dtype, device=machine.device
    )
    spans = simulate_spans(plan, profile, machine, 1, sweeps)
    return spans, f"Simulated for {machine.name} in {plan.dtype}, one token a sweep; nothing was run."
