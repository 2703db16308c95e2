"""`layerstream chat`: a conversation with a model that may not fit in memory.

Only answers go to stdout, so that they can be piped. Everything else goes to stderr.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from ..errors import PlanError
from ..spec.options import LoadOptions
from ..spec.sizes import format_seconds
from . import backend, parts
from .answer_options import Seed, Temperature, TopP
from .options import Model, model_or_default, takes_load_options
from .printing import LOADING_TOKENIZER, note, working
from .run import Quiet
from .workloads import CONTEXTS, NEW_TOKENS, load_for_largest, workloads_for

if TYPE_CHECKING:
    from ..spec.options import Workload
    from ..spec.plans import PlacementPlan

NewTokens = Annotated[
    int | None,
    typer.Option(
        "--max-new-tokens",
        "-n",
        metavar="N",
        help="The maximum number of tokens of an answer.",
        min=1,
        show_default=f"{NEW_TOKENS}, at most half of the context",
    ),
]
ContextTokens = Annotated[
    int | None,
    typer.Option(
        metavar="N",
        help="Reserve memory for so many tokens, conversation and answer together. When they are used up, "
        "the oldest turns are left out.",
        min=2,
        show_default=f"up to {CONTEXTS[0]}, as the model and the budget allow",
    ),
]
System = Annotated[
    str | None, typer.Option(metavar="TEXT", help="The system message at first.", show_default=False)
]


@takes_load_options(draft=True)
def chat_command(
    model: Model = None,
    max_new_tokens: NewTokens = None,
    *,
    options: LoadOptions,
    system: System = None,
    context_tokens: ContextTokens = None,
    temperature: Temperature = None,
    top_p: TopP = None,
    seed: Seed = None,
    quiet: Quiet = False,
) -> None:
    """Talk with a chat model that may not fit in memory. /help lists the commands of the chat.

    If the input is no terminal, each line is a message.
    """
    model = model_or_default(model, options)
    with working(LOADING_TOKENIZER, shown=not quiet):
        tokenizer, config = backend.load_text_parts(model, options)
    if not tokenizer.chat_template:
        raise PlanError(
            "this checkpoint's tokenizer has no chat template, which a chat needs: "
            "use 'layerstream run' for a model that only continues texts"
        )
    if system is not None:
        parts.check_system(tokenizer, system)
    limit = getattr(config, "max_position_embeddings", None)
    workloads = workloads_for(context_tokens, max_new_tokens, limit=limit)
    if seed is not None:
        backend.manual_seed(seed)
    # with a draft, the model's own options reserve more than this
    streamed, workload = load_for_largest(model, options, workloads, shows_status=not quiet)
    with streamed:
        if not quiet:
            note(_greeting(streamed.plan, workload))
        settings = parts.ChatSettings(
            max_new_tokens=workload.new_tokens,
            prompt_tokens=workload.prompt_tokens,
            request=parts.sampling_settings(temperature, top_p),
            quiet=quiet,
        )
        parts.Chat(streamed, tokenizer, settings, system=system).run()


def _greeting(plan: PlacementPlan, workload: Workload) -> str:
    speed = f"about {format_seconds(plan.token_s)} per token, " if plan.token_s > 0 else ""
    return (
        f"{plan.model_name}: {speed}a context of {workload.context_tokens} tokens, answers of up to "
        f"{workload.new_tokens}. /help lists the commands"
    )
