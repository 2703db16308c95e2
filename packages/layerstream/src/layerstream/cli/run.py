"""`layerstream run`: answer a prompt and stream the text, with the plan before and the report after.

Only the answer goes to stdout, so that it can be piped. Everything else goes to stderr.
"""

from __future__ import annotations

import sys
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ..errors import PlanError
from ..spec.options import LoadOptions, Workload
from . import backend, parts
from .answer_options import Chat, Seed, System, Temperature, TopP, refuse_unused_system, stop_texts
from .delay import explain_delay
from .options import AsJson, Model, model_or_default, takes_load_options
from .printing import LOADING_TOKENIZER, loading_status, note, print_json, working

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from ..model import StreamedModel
    from ..spec.verification import VerificationReport
    from ..uses.batching.requests import GenerationRequest

Prompt = Annotated[
    str | None,
    typer.Option(
        "--prompt", "-p", metavar="TEXT", help="The prompt; by default, what is piped in.", show_default=False
    ),
]
NewTokens = Annotated[
    int, typer.Option("--max-new-tokens", "-n", metavar="N", help="The maximum number of new tokens.", min=1)
]
Stop = Annotated[
    list[str] | None,
    typer.Option(
        metavar="TEXT",
        help="End the answer before this text. Repeat it for several.",
        show_default=False,
    ),
]
Quiet = Annotated[
    bool, typer.Option("--quiet", "-q", help="Print only the answer: no plan, progress or report.")
]
Verify = Annotated[
    bool,
    typer.Option(
        "--verify",
        help="First compare some streamed units with resident copies, bit for bit; end with status 2 if one "
        "differs.",
    ),
]
TraceFile = Annotated[
    Path | None,
    typer.Option(
        metavar="FILE", help="Write the timeline to this .json, .html or .svg file.", show_default=False
    ),
]


@takes_load_options(draft=True)
def run_command(
    model: Model = None,
    prompt: Prompt = None,
    max_new_tokens: NewTokens = 128,
    *,
    options: LoadOptions,
    chat: Chat = False,
    system: System = None,
    stop: Stop = None,
    temperature: Temperature = None,
    top_p: TopP = None,
    seed: Seed = None,
    verify: Verify = False,
    trace: TraceFile = None,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Answer a prompt with a model that may not fit in memory. The text is streamed to stdout."""
    if trace is not None:
        parts.check_trace_path(trace)
    refuse_unused_system(system, chat=chat)
    text = _prompt_text(prompt)
    stops = stop_texts(stop)
    model = model_or_default(model, options)
    with working(LOADING_TOKENIZER, shown=not quiet):
        tokenizer = backend.load_tokenizer(model, options)
    request = parts.GenerationRequest(
        prompt=backend.encode_prompt(tokenizer, text, chat=chat, system=system),
        max_new_tokens=max_new_tokens,
        stop=stops,
        seed=seed,
        **parts.sampling_settings(temperature, top_p),
    )
    streamed = _load(model, options, request, shows_status=not quiet)
    shows_notes = not quiet and not as_json
    with streamed:
        if shows_notes:
            note(streamed.plan.explain() + "\n" + _hint_at_chat(tokenizer, is_used=chat))
        verification = _verify(streamed, shows_notes=shows_notes) if verify else None
        answer = backend.generate_answer(
            streamed, tokenizer, request, shows_text=not as_json, shows_progress=not quiet
        )
        report = streamed.report()
        if shows_notes:
            delay = explain_delay(answer.later_token_s, streamed.plan.token_s, report)
            note(f"\n{answer.explain()}\n{report.explain()}{delay}")
        if as_json:
            print_json(
                {
                    "prompt": text,
                    "answer": asdict(answer),
                    "plan": streamed.plan.to_dict(),
                    "report": report.to_dict(),
                    **({} if verification is None else {"verification": verification.to_dict()}),
                }
            )
        if trace is not None:
            parts.write_trace(streamed.timeline.spans(), trace, model=model, subtitle=answer.explain())


def _hint_at_chat(tokenizer: PreTrainedTokenizerBase, *, is_used: bool) -> str:
    if is_used or not tokenizer.chat_template:
        return ""
    return "  hint        this is a chat model: with --chat, the prompt is put into its chat template\n"


def _load(
    model: str, options: LoadOptions, request: GenerationRequest, *, shows_status: bool
) -> StreamedModel:
    workload = Workload(prompt_tokens=len(request.prompt), new_tokens=request.max_new_tokens)
    backend.download_weights(model, options, shown=shows_status)
    with loading_status(shown=shows_status) as on_progress:
        return backend.load_with(
            model, replace(options, workload=workload), on_progress=on_progress, on_fetch=on_progress
        )


def _verify(streamed: StreamedModel, *, shows_notes: bool) -> VerificationReport:
    """Return what `streamed.verify` found; the run's report starts afterwards.

    Raises:
        VerificationError: it found a difference.
    """
    with working("verifying", shown=shows_notes):
        verification = streamed.verify()
    if shows_notes:
        note(verification.explain() + "\n")
    backend.refuse_difference(verification)
    streamed.reset_report()
    return verification


def _prompt_text(prompt: str | None) -> str:
    if prompt is None and sys.stdin.isatty():
        raise PlanError("there is no prompt: use --prompt TEXT, or pipe it in")
    text = sys.stdin.read() if prompt is None else prompt
    if not text.strip():
        raise PlanError("the prompt is empty: give one with --prompt, or pipe it in")
    return text
